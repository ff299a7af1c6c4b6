"""BERT and RoBERTa, both ways, against Hugging Face's transformers: options are drawn, models small and random.

What it saves, in any dtype and number of files, loads here and computes the same, forward and backward; what we save loads there and
computes the same. Padding is on either side, where its positions are the same there.
"""

import json

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from autograd import backend
from tests.tinygpt.helpers import weights
from tinygpt import Checkpoint
from tinygpt.data.tokenizer import CharacterTokenizer
from tinygpt.encoder_config import EncoderConfig
from tinygpt.finetuning.common import set_trainable
from tinygpt.finetuning.encoder_classifier import EncoderClassifier
from tinygpt.finetuning.lora import LoraConfig
from tinygpt.models import Encoder
from tinygpt.weights.bert import BERT, ROBERTA

if backend.name != "numpy":
    pytest.skip("the other side computes on the CPU", allow_module_level=True)
torch = pytest.importorskip("torch", reason="parity tests need the extra `parity`")
transformers = pytest.importorskip("transformers", reason="parity tests need the extra `parity`")
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
torch.set_num_threads(1)  # the test runner's processes share the cores
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

V, T = 61, 40
FAMILIES = {"Bert": BERT, "Roberta": ROBERTA}
LABELS = ["ham", "eggs", "spam"]


@st.composite
def drawn(draw, name):
    """Keys of config.json, of the options that the family has."""
    pick = lambda *values: draw(st.sampled_from(values))  # noqa: E731
    heads = pick(1, 2, 3)
    fields = {
        "vocab_size": V, "hidden_size": heads * pick(4, 8), "num_hidden_layers": pick(1, 2, 3), "num_attention_heads": heads,
        "intermediate_size": pick(24, 40), "max_position_embeddings": T, "type_vocab_size": pick(1, 2, 3), "pad_token_id": pick(0, 1, 4),
        "layer_norm_eps": pick(1e-12, 1e-5, 1e-2), "tie_word_embeddings": pick(True, False),
    }  # fmt: skip
    return fields | ({"hidden_act": pick("gelu", "relu", "gelu_pytorch_tanh", "silu")} if name == "Bert" else {})


def made(name, fields, seed, task="ForMaskedLM"):
    """Their model, with norms and biases that are numbers of their own."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(**fields)
    model = getattr(transformers, name + task)._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for p in model.parameters():
            p += torch.randn_like(p) * 0.2
    return model


def loaded(directory, name, task="ForMaskedLM"):
    """Their model of a directory, computing in float32."""
    cls = getattr(transformers, name + task)
    return cls.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32).eval()


def batch(config, seed):
    """(ids, attention mask, token types): texts of several lengths, padded as the family's models know it."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, V, (3, 30))
    mask = np.ones_like(ids)
    mask[1, 17:] = 0
    mask[2, :9] = 0
    ids[mask == 0] = config.pad_token_id
    return ids, mask, rng.integers(0, config.type_vocab_size, ids.shape)


def theirs(model, ids, mask, types, **options):
    tensors = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types, **options}
    return model(**{name: torch.as_tensor(array) for name, array in tensors.items()})


def check_logits(mine, other, seed):
    ids, mask, types = batch(other.config, seed)
    with torch.no_grad():
        expected = theirs(other, ids, mask, types).logits.numpy()
    assert expected.std() > 0.2  # far from even, so that agreeing means something
    real = mask == 1
    np.testing.assert_allclose(mine(ids, mask, types).data[real], expected[real], atol=1e-4, rtol=0)


def check_loss_and_gradients(mine, other, family, seed):
    ids, mask, types = batch(other.config, seed)
    rng = np.random.default_rng(seed)
    targets = np.where((rng.random(ids.shape) < 0.2) & (mask == 1), rng.integers(0, V, ids.shape), -100)
    targets[0, 0] = 7
    their_loss = theirs(other, ids, mask, types, labels=targets).loss
    other.zero_grad()
    their_loss.backward()
    mine.zero_grad()
    loss = mine.loss(ids, targets, mask, types)
    loss.backward()
    assert loss.item() == pytest.approx(their_loss.item(), abs=1e-5)
    expected = {family.canonical_name(name): p.grad for name, p in other.named_parameters()}
    for name, p in mine.named_parameters():
        for part in family.parts(mine.config, name):
            there = expected.pop(family.canonical_name(part.name))
            if there is None:  # the bias that is not in use there, where the output matrix is not the embedding's
                assert part.name.endswith(("predictions.bias", "lm_head.bias")) and not mine.config.tie_word_embeddings
                continue
            here, there = part.stored(p.grad), there.numpy()
            # A key's bias moves all scores of a query alike: its gradient is 0, and what is computed is the rounding of both sides.
            assert np.linalg.norm(here - there) <= 1e-4 * np.linalg.norm(there) + 1e-6, part.name
    assert not expected


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=10, phases=[Phase.generate])
@given(data=st.data())
def test_the_same_model_there_and_here(tmp_path_factory, name, data):
    fields, seed = data.draw(drawn(name)), data.draw(st.integers(0, 1000))
    dtype, shards = data.draw(st.sampled_from(["float32", "bfloat16", "float16"])), data.draw(st.booleans())
    there, back, again = (tmp_path_factory.mktemp(folder) for folder in ("there", "back", "again"))
    made(name, fields, seed).to(getattr(torch, dtype)).save_pretrained(there, **({"max_shard_size": "1KB"} if shards else {}))
    assert (len(list(there.glob("*.safetensors"))) > 1) == shards
    other, mine = loaded(there, name), Encoder.from_pretrained(there).eval()
    check_logits(mine, other, seed)
    check_loss_and_gradients(mine, other, FAMILIES[name], seed)

    mine.save_pretrained(back)
    assert json.loads((back / "config.json").read_bytes())["model_type"] == name.lower()
    reread = Checkpoint.open(back).model()
    reread.save_pretrained(again)
    assert type(reread) is Encoder and reread.config == mine.config
    np.testing.assert_equal(weights(reread), weights(mine))
    for file in ("config.json", "model.safetensors"):
        assert (back / file).read_bytes() == (again / file).read_bytes()
    returned = loaded(back, name)
    ids, mask, types = batch(other.config, seed + 1)
    with torch.no_grad():
        real, expected = torch.as_tensor(mask == 1), theirs(other, ids, mask, types).logits
        assert torch.equal(theirs(returned, ids, mask, types).logits[real], expected[real])


def test_the_pooled_vector_of_a_model_for_next_sentences(tmp_path):
    """Google's files, and those of transformers' BertForPreTraining, have a pooler in addition to the head for masked words."""
    other = made(
        "Bert",
        {"vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24},
        3,
        "ForPreTraining",
    )
    other.save_pretrained(tmp_path)
    mine = Encoder.from_pretrained(tmp_path).eval()
    ids, mask, types = batch(other.config, 0)
    with torch.no_grad():
        inputs = {"input_ids": torch.as_tensor(ids), "attention_mask": torch.as_tensor(mask), "token_type_ids": torch.as_tensor(types)}
        expected = other.bert(**inputs).pooler_output.numpy()
        words = other(**inputs).prediction_logits.numpy()
    first = mask[:, 0] == 1  # with padding on the left, the first position is none of the text: they read it all the same
    np.testing.assert_allclose(mine.pooled(ids, mask, types).data[first], expected[first], atol=1e-5)
    np.testing.assert_allclose(mine(ids, mask, types).data[mask == 1], words[mask == 1], atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=5, phases=[Phase.generate])
@given(data=st.data())
def test_classifiers_there_and_here(tmp_path_factory, name, data):
    fields, seed = data.draw(drawn(name)), data.draw(st.integers(0, 1000))
    there, back = (tmp_path_factory.mktemp(folder) for folder in ("there", "back"))
    task, names = "ForSequenceClassification", dict(enumerate(LABELS))
    other = made(name, fields | {"num_labels": 3, "id2label": names}, seed, task)
    other.save_pretrained(there)
    CharacterTokenizer.train("abc").save(there)
    checkpoint = Checkpoint.open(there)
    mine = checkpoint.model()
    assert type(mine) is EncoderClassifier and mine.labels == LABELS and mine.config == checkpoint.config
    assert mine.pad_id == fields["pad_token_id"] and not mine.config.head
    mine.save_pretrained(back)
    returned = loaded(back, name, task)
    assert returned.config.id2label == names and returned.config.pad_token_id == fields["pad_token_id"]
    ids, mask, _ = batch(other.config, seed)
    ids, mask = ids[:2], mask[:2]  # padded on the right: on the left they would read padding
    expected = other(torch.as_tensor(ids), attention_mask=torch.as_tensor(mask), labels=torch.as_tensor([2, 0]))
    logits = expected.logits.detach().numpy()
    np.testing.assert_allclose(mine.eval()(ids, mask).data, logits, atol=1e-4 * max(1, np.abs(logits).max()))
    with torch.no_grad():
        assert torch.equal(returned(torch.as_tensor(ids), attention_mask=torch.as_tensor(mask)).logits, expected.logits)

    expected.loss.backward()
    loss = mine.loss(ids, np.array([2, 0]), mask)
    loss.backward()
    assert loss.item() == pytest.approx(expected.loss.item(), abs=1e-5)
    found = {FAMILIES[name].canonical_name(key): p.grad.numpy() for key, p in other.named_parameters()}
    for key in ("score.weight", "score.bias", "pooler.weight", "h.0.attn.c_attn.weight", "wtt.weight"):
        p = dict(mine.named_parameters())[key if key.startswith("score") else f"transformer.{key}"]
        for part in FAMILIES[name].parts(mine.config, key):
            expected_gradient = found[FAMILIES[name].canonical_name(part.name)]
            difference = np.linalg.norm(part.stored(p.grad) - expected_gradient)
            assert difference <= 1e-4 * np.linalg.norm(expected_gradient) + 1e-7, part.name


@pytest.mark.parametrize(("preset", "name"), [("bert-base", "Bert"), ("bert-large", "Bert"), ("roberta-base", "Roberta")])
def test_presets_have_as_many_weights_as_the_models_of_transformers(preset, name):
    config = EncoderConfig.preset(preset)
    written = FAMILIES[name].write(config)
    with torch.device("meta"):
        model = getattr(transformers, f"{name}ForMaskedLM")(getattr(transformers, f"{name}Config")(**written))
    unused = 0 if config.count_padding else (config.pad_id + 1) * config.n_embd
    assert config.n_parameters() + unused == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_of_classifiers_are_pefts(tmp_path, name):
    """What LoRA has trained here gives the same logits in PEFT, head and pooler included."""
    peft = pytest.importorskip("peft", reason="parity tests need the extra `parity`")
    fields = {
        "vocab_size": V,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "pad_token_id": 1,
    }
    task = "ForSequenceClassification"
    made(name, fields | {"id2label": dict(enumerate(LABELS))}, 0, task).save_pretrained(tmp_path / "base")
    CharacterTokenizer.train("abc").save(tmp_path / "base")
    mine = EncoderClassifier.from_pretrained(tmp_path / "base")
    adapter = set_trainable(mine, "lora", LoraConfig(2, targets=("q", "v", "mlp.c_proj")))
    rng = np.random.default_rng(0)
    for p in mine.parameters():
        p.data[...] += p.requires_grad * rng.standard_normal(p.shape) * 0.3
    adapter.save(tmp_path / "adapter", str(tmp_path / "base"))
    other = peft.PeftModel.from_pretrained(loaded(tmp_path / "base", name, task), tmp_path / "adapter").eval()
    ids, mask, _ = batch(other.config, 0)
    with torch.no_grad():
        expected = other(input_ids=torch.as_tensor(ids[:2]), attention_mask=torch.as_tensor(mask[:2])).logits.numpy()
    np.testing.assert_allclose(mine.eval()(ids[:2], mask[:2]).data, expected, atol=1e-4)
