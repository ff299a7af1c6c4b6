"""Held against Hugging Face's transformers: what we load, save, compute and generate is what it loads, saves, computes and generates."""

import dataclasses
import json
import random
import sys
import unicodedata

import numpy as np
import pytest

import autograd as ag
from autograd import backend
from tests.tinygpt.helpers import load
from tinygpt import GPT, GPTConfig
from tinygpt.data.tokenizer import BPETokenizer, CharacterTokenizer, WordTokenizer, gpt2_tokenizer
from tinygpt.data.tokenizer_files import load_tokenizer
from tinygpt.finetuning.classifier import GPTClassifier
from tinygpt.inference.beam import beam_search
from tinygpt.inference.decoding import generate
from tinygpt.inference.likelihood import token_nats
from tinygpt.inference.sampling import Sampling
from tinygpt.inference.text import complete
from tinygpt.weights.pretrained import save_pretrained

if backend.name != "numpy":
    pytest.skip("the other side computes on the CPU", allow_module_level=True)
torch = pytest.importorskip("torch", reason="parity tests need the extra `parity`")
transformers = pytest.importorskip("transformers", reason="parity tests need the extra `parity`")
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
torch.set_num_threads(1)  # the test runner's processes share the cores

# The four sizes of GPT-2 with their own numbers of layers and heads, channels and vocabulary scaled down.
SIZES = {
    "gpt2": GPTConfig(n_layer=12, n_head=12, n_embd=48, n_positions=160, vocab_size=503),
    "gpt2-medium": GPTConfig(n_layer=24, n_head=16, n_embd=64, n_positions=160, vocab_size=503),
    "gpt2-large": GPTConfig(n_layer=36, n_head=20, n_embd=80, n_positions=160, vocab_size=503),
    "gpt2-xl": GPTConfig(n_layer=48, n_head=25, n_embd=100, n_positions=160, vocab_size=503),
}


def theirs(config, seed=0, cls="GPT2LMHeadModel", **more):
    """A random model of theirs. Matrices larger than at the start of training: attention and logits are then far from even."""
    torch.manual_seed(seed)
    fields = {key: getattr(config, key) for key in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")}
    model = getattr(transformers, cls)(transformers.GPT2Config(**fields, **more)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p += torch.randn_like(p) * 0.05
    return model


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.as_tensor(ids)).logits.numpy()


def close(mine, other, atol=1e-4):
    np.testing.assert_allclose(mine, other, atol=atol * max(1, np.abs(other).max()), rtol=0)


@pytest.fixture(scope="module", params=SIZES)
def pair(request, tmp_path_factory):
    """(config, their model, the same model loaded here)."""
    directory = tmp_path_factory.mktemp(request.param)
    model = theirs(SIZES[request.param])
    model.save_pretrained(directory)
    return SIZES[request.param], model, GPT.from_pretrained(directory).eval()


def test_logits(pair):
    config, other, mine = pair
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, 50))
    close(mine(ids).data, logits_of(other, ids))


def test_greedy_continuation_of_100_tokens(pair):
    config, other, mine = pair
    ids = np.random.default_rng(1).integers(0, config.vocab_size, (1, 20))
    expected = other.generate(torch.as_tensor(ids), max_new_tokens=100, min_new_tokens=100, do_sample=False, pad_token_id=0)
    np.testing.assert_array_equal(generate(mine, ids, 100, temperature=0.0).ids, expected.numpy())


def test_loss_and_every_gradient(pair):
    config, other, mine = pair
    loss_and_gradients_agree(config, other, mine, np.random.default_rng(2).integers(0, config.vocab_size, (2, 41)))


def loss_and_gradients_agree(config, other, mine, ids):
    their_loss = other(torch.as_tensor(ids[:, :-1])).logits
    their_loss = torch.nn.functional.cross_entropy(their_loss.reshape(-1, config.vocab_size), torch.as_tensor(ids[:, 1:].reshape(-1)))
    other.zero_grad()
    their_loss.backward()
    mine.zero_grad()
    my_loss = mine.loss(ids[:, :-1], ids[:, 1:])
    my_loss.backward()
    assert my_loss.item() == pytest.approx(their_loss.item(), abs=1e-5)
    gradients = dict(other.transformer.named_parameters())
    for name, p in mine.named_parameters():
        expected = gradients[name].grad.numpy()
        assert np.abs(p.grad - expected).max() <= 1e-4 * np.abs(expected).max(), name


def test_124m(tmp_path):
    """The smallest size as it is: loading, logits, greedy continuation, loss and every gradient."""
    config = GPTConfig.preset("gpt2")
    other = theirs(config)
    other.save_pretrained(tmp_path)
    mine, ids = GPT.from_pretrained(tmp_path).eval(), np.random.default_rng(9).integers(0, config.vocab_size, (1, 32))
    close(mine(ids).data, logits_of(other, ids))
    expected = other.generate(torch.as_tensor(ids), max_new_tokens=100, min_new_tokens=100, do_sample=False, pad_token_id=0)
    np.testing.assert_array_equal(generate(mine, ids, 100, temperature=0.0).ids, expected.numpy())
    loss_and_gradients_agree(config, other, mine, np.random.default_rng(10).integers(0, config.vocab_size, (1, 33)))


TINY = GPTConfig(n_layer=2, n_head=2, n_embd=16, n_positions=40, vocab_size=300)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_what_we_save_they_load(tmp_path, tied, qkv_bias):
    config = GPTConfig(n_layer=2, n_head=2, n_embd=16, n_positions=40, vocab_size=300, tie_word_embeddings=tied, qkv_bias=qkv_bias)
    mine = GPT(config, seed=1)
    for _, p in mine.named_parameters():
        p.data += np.random.default_rng(p.size).standard_normal(p.shape, dtype=np.float32) * 0.1
    mine.eval().save_pretrained(tmp_path)
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = np.random.default_rng(3).integers(0, 300, (2, 30))
    close(mine(ids).data, logits_of(other, ids))


@pytest.mark.parametrize("options", [{"max_shard_size": "20KB"}, {}])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_they_save_we_load(tmp_path, options, dtype):
    other = theirs(TINY, tie_word_embeddings=bool(options)).to(getattr(torch, dtype))
    other.save_pretrained(tmp_path, **options)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == bool(options)
    ids = np.random.default_rng(4).integers(0, 300, (2, 30))
    close(GPT.from_pretrained(tmp_path).eval()(ids).data, logits_of(other.float(), ids))


@pytest.mark.parametrize("name", ["gelu_new", "gelu", "relu", "silu"])
def test_other_activations_and_widths_both_ways(tmp_path, name):
    other = theirs(TINY, activation_function=name, n_inner=24)
    other.save_pretrained(tmp_path / "there")
    mine, ids = GPT.from_pretrained(tmp_path / "there").eval(), np.random.default_rng(4).integers(0, 300, (2, 30))
    close(mine(ids).data, logits_of(other, ids))
    mine.save_pretrained(tmp_path / "back")
    close(mine(ids).data, logits_of(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval(), ids))


def test_they_refuse_what_only_we_compute(tmp_path):
    with pytest.warns(UserWarning, match="transformers cannot read"):
        GPT(dataclasses.replace(TINY, positions="alibi")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model type `tinygpt`"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_beam_search_finds_the_same(tmp_path):
    other = theirs(TINY)
    other.save_pretrained(tmp_path)
    mine, ids = GPT.from_pretrained(tmp_path), np.random.default_rng(5).integers(0, 300, (1, 5))
    for penalty in (1.0, 0.0):
        expected = other.generate(
            torch.as_tensor(ids), num_beams=4, num_return_sequences=4, max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=None,
            length_penalty=penalty, return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        beams = beam_search(mine, ids[0].tolist(), 12, n_beams=4, length_penalty=penalty)
        np.testing.assert_array_equal([b.ids for b in beams], expected.sequences[:, 5:].numpy())
        np.testing.assert_allclose([b.score for b in beams], expected.sequences_scores.numpy(), rtol=1e-4)


def test_likelihoods(tmp_path):
    other = theirs(TINY)
    other.save_pretrained(tmp_path)
    ids = np.random.default_rng(6).integers(0, 300, 40)
    log_p = torch.log_softmax(torch.as_tensor(logits_of(other, ids[None, :-1])), -1)[0, np.arange(39), ids[1:]].numpy()
    np.testing.assert_allclose(token_nats(GPT.from_pretrained(tmp_path), ids.tolist()), -log_p, atol=1e-4)


def test_classification_heads_both_ways(tmp_path):
    tokenizer = BPETokenizer.train("ham spam ham", 260)
    config = GPTConfig(n_layer=2, n_head=2, n_embd=16, n_positions=40, vocab_size=tokenizer.n_vocab)
    mine = GPTClassifier(GPT(config, seed=2), tokenizer, ["ham", "spam", "other"]).eval()
    mine.save_pretrained(tmp_path / "mine")
    other = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "mine").eval()
    ids = np.random.default_rng(7).integers(0, 255, (3, 20))
    close(mine(ids).data, logits_of(other, ids))
    assert other.config.id2label == {0: "ham", 1: "spam", 2: "other"}

    for labels in (["no", "yes"], ["LABEL_0", "LABEL_1"], ["a", "b", "c"]):
        named = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
        other = theirs(config, 8, "GPT2ForSequenceClassification", pad_token_id=tokenizer.eos_id, **named)
        directory = tmp_path / labels[0]
        other.save_pretrained(directory)
        tokenizer.save(directory)
        loaded = GPTClassifier.from_pretrained(directory).eval()
        close(loaded(ids).data, logits_of(other, ids))
        assert loaded.labels == labels


@pytest.mark.parametrize("both", [False, True], ids=["aliases", "both"])
def test_attribute_aliases_are_read_as_they_do(tmp_path, both):
    model = theirs(TINY, 3)
    model.save_pretrained(tmp_path)
    path, aliases = tmp_path / "config.json", transformers.GPT2Config.attribute_map
    fields = json.loads(path.read_text(encoding="utf-8"))
    for alias, name in aliases.items():
        fields[alias] = fields.pop(name)
        if both:
            fields[name] = fields[alias] + 1
    path.write_text(json.dumps(fields), encoding="utf-8")
    other = transformers.GPT2Config.from_pretrained(tmp_path)
    mine = GPT.from_pretrained(tmp_path).eval()
    assert all(getattr(mine.config, name) == getattr(other, name) == getattr(TINY, name) for name in aliases.values())
    close(mine([[1, 2, 3]]).data, logits_of(model, [[1, 2, 3]]))


def test_three_dropouts_survive_the_way_there_and_back(tmp_path):
    p = {"resid_pdrop": 0.1, "embd_pdrop": 0.25, "attn_pdrop": 0.0}
    theirs(TINY, 3, **p).save_pretrained(tmp_path / "there")
    mine = GPT.from_pretrained(tmp_path / "there")
    assert mine.config.dropouts == p and (mine.embd_dropout.p, mine.h[0].attn.p, mine.h[0].attn.resid_dropout.p) == (0.25, 0.0, 0.1)
    assert mine.h[1].mlp.resid_dropout.p == 0.1
    mine.save_pretrained(tmp_path / "back")
    back = transformers.GPT2Config.from_pretrained(tmp_path / "back")
    assert {name: getattr(back, name) for name in p} == p and GPT.from_pretrained(tmp_path / "back").config == mine.config
    theirs(TINY, 3, resid_pdrop=0.2, embd_pdrop=0.2, attn_pdrop=0.2).save_pretrained(tmp_path / "one")
    assert GPT.from_pretrained(tmp_path / "one").config == dataclasses.replace(TINY, dropout=0.2)


# ---- tokenizers --------------------------------------------------------------------------------------------------------------------------


def all_scalars(seed=0):
    """Every Unicode scalar value once, in random order, in texts of 2,000: neighbours of every kind meet."""
    scalars = [chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c <= 0xDFFF]
    random.Random(seed).shuffle(scalars)
    return ["".join(scalars[i : i + 2000]) for i in range(0, len(scalars), 2000)]


def load_theirs(directory, config, tokenizer):
    save_pretrained(GPT(config), directory, tokenizer)
    return transformers.AutoTokenizer.from_pretrained(directory)


def config_for(tokenizer):
    return GPTConfig(n_layer=1, n_head=1, n_embd=4, n_positions=8, vocab_size=tokenizer.n_vocab)


TRICKY = [
    "",
    " ",
    "  a",
    "don't  stop\n\n now",
    "a" * 300,
    "<|endoftext|>",
    "x<|endoftext|> y",
    "\t\r\n",
    "é€😀",
    "e\u0301",
    "\u00a0\u2003 x",
    "1234 5,6",
]


@pytest.mark.parametrize("which", ["own", "gpt2"])
def test_byte_level_tokenizers_give_their_ids(tmp_path, which):
    if which == "gpt2":
        try:
            tokenizer = gpt2_tokenizer()
        except ConnectionError as error:
            pytest.skip(str(error))
    else:
        tokenizer = BPETokenizer.train("the cat sat on the mat, don't the cat? 123 Ünï €5 😀😀 " * 3, 400)
    other = load_theirs(tmp_path, config_for(tokenizer), tokenizer)
    assert len(other) == tokenizer.n_vocab and other.eos_token_id == tokenizer.eos_id
    texts = TRICKY + all_scalars()
    expected = other(texts, split_special_tokens=True, add_special_tokens=False)["input_ids"]
    for text, ids in zip(texts, expected, strict=True):
        assert tokenizer.encode(text) == ids
        assert other.decode(ids, clean_up_tokenization_spaces=False) == tokenizer.decode(ids)
    assert other("a<|endoftext|>b", add_special_tokens=False)["input_ids"] == tokenizer.encode("a<|endoftext|>b", allow_special=True)


def test_character_and_word_tokenizers_give_their_ids(tmp_path):
    characters = CharacterTokenizer.train("abc é€😀\n")
    other = load_theirs(tmp_path / "characters", config_for(characters), characters)
    for text in ("abc", "é€ 😀\n a"):
        assert other(text, add_special_tokens=False)["input_ids"] == characters.encode(text)
    words = WordTokenizer.train("the cat sat, don't! the\nmat")
    other = load_theirs(tmp_path / "words", config_for(words), words)
    for text in ("the cat", "cat , don't mat\nthe dog!"):
        assert other(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] == words.encode(text)


# float16 ------------------------------------------------------------------------------------------------------------------------------

_CLASSES = np.random.default_rng(0).integers(0, 64, 50)
_T = torch.nn.functional
HALF = {  # name -> (ours, theirs, shapes, largest scale: theirs overflows, or is all cancellation, above it)
    "layer_norm": (ag.layer_norm, lambda x, g, b: _T.layer_norm(x, (64,), g, b), [(50, 64), (64,), (64,)], 300),
    "softmax": (ag.softmax, lambda x: _T.softmax(x, -1), [(50, 64)], 10),
    "log_softmax": (ag.log_softmax, lambda x: _T.log_softmax(x, -1), [(50, 64)], 300),
    "logsumexp": (lambda x: ag.logsumexp(x, 1), lambda x: torch.logsumexp(x, 1), [(50, 64)], 10),
    "gelu": (ag.gelu, lambda x: _T.gelu(x, approximate="tanh"), [(50, 64)], 300),
    "tanh": (ag.tanh, torch.tanh, [(50, 64)], 300),
    "sigmoid": (ag.sigmoid, torch.sigmoid, [(50, 64)], 300),
    "sum": (lambda x: x.sum(0), lambda x: x.sum(0), [(5000, 6)], 100),
    "mean": (lambda x: x.mean(0), lambda x: x.mean(0), [(5000, 6)], 300),
    "var": (lambda x: x.var(1), lambda x: x.var(1, correction=0), [(50, 64)], 100),
    "bias": (lambda x, b: x + b, lambda x, b: x + b, [(5000, 6), (6,)], 300),
    "linear": (ag.linear, lambda x, w, b: x @ w + b, [(500, 64), (64, 5), (5,)], 10),
    "attention": (
        lambda q, k, v: ag.scaled_dot_product_attention(q, k, v, causal=True),
        lambda q, k, v: _T.scaled_dot_product_attention(q, k, v, is_causal=True), [(2, 3, 20, 8)] * 3, 3,
    ),
    "cross_entropy": (lambda x: ag.cross_entropy(x, _CLASSES), lambda x: _T.cross_entropy(x, torch.tensor(_CLASSES)), [(50, 64)], 300),
    "embedding": (lambda w: ag.embedding(w, _CLASSES % 7), lambda w: _T.embedding(torch.tensor(_CLASSES % 7), w), [(7, 4)], 300),
}  # fmt: skip


@pytest.mark.parametrize("name", HALF)
@pytest.mark.parametrize("scale", [0.1, 1, 10, 300])
def test_float16_is_theirs(name, scale):
    ours, other, shapes, largest = HALF[name]
    rng = np.random.default_rng(shapes[0][0])
    arrays = [(min(scale, largest) * rng.standard_normal(shape)).astype(np.float16) for shape in shapes]
    mine, tensors = [ag.Tensor(a, requires_grad=True) for a in arrays], [torch.tensor(a, requires_grad=True) for a in arrays]
    y, right = ours(*mine), other(*tensors)
    dy = rng.standard_normal(y.shape).astype(np.float16)
    y.backward(dy)
    right.backward(torch.tensor(dy))
    for found, expected in [(y.data, right), *((t.grad, u.grad) for t, u in zip(mine, tensors, strict=True))]:
        expected = expected.detach().float().numpy()
        np.testing.assert_allclose(found.astype(np.float32), expected, rtol=0, atol=2**-7 * np.abs(expected).max())


WORDS = [
    "the",
    "cat",
    "don't",
    "naïve",
    "Über",
    "12",
    "x_1",
    "\u0928\u092e\u0938\u094d\u0924\u0947",
    "e\u0301",
    "\u05e9\u05b8",
    "😀",
    "...",
    "<s>",
    "[PAD]",
]


# Characters of Python's version of Unicode: the two sides know newer ones or not.
KNOWN = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs")]


def drawn_texts(seed, n):
    """Words of several scripts, white space and single characters, in random order."""
    rng = random.Random(seed)
    gaps = [" ", " ", "  ", "\n", "\t", "\u3000", "", ","]
    pieces = [lambda: rng.choice(WORDS) + rng.choice(gaps), lambda: KNOWN[rng.randrange(rng.choice([500, len(KNOWN)]))]]
    return ["".join(rng.choice(pieces)() for _ in range(rng.randrange(30))) for _ in range(n)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("special", [["<|endoftext|>"], ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], []], ids=["end", "five", "none"])
def test_byte_level_bpe_of_others_gives_their_ids(tmp_path, special, seed):
    """Special tokens come first there, and merges are numbered as their trainer does."""
    tokenizers = pytest.importorskip("tokenizers")
    other = tokenizers.ByteLevelBPETokenizer()
    other.train_from_iterator(drawn_texts(seed, 300), vocab_size=261 + 150 * seed, special_tokens=special, show_progress=False)
    other.save_model(str(tmp_path))
    (tmp_path / "single").mkdir()
    other.save(str(tmp_path / "single" / "tokenizer.json"))
    for directory in (tmp_path, tmp_path / "single"):
        tokenizer = load_tokenizer(directory)
        plain = tokenizers.ByteLevelBPETokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))  # no special token in text
        assert tokenizer.n_vocab == other.get_vocab_size() and set(tokenizer.special) == set(special)
        for text in drawn_texts(100 + seed, 200) + TRICKY:
            assert tokenizer.encode(text) == plain.encode(text).ids
            if directory.name == "single":
                assert tokenizer.encode(text, allow_special=True) == other.encode(text).ids
        again = tmp_path / f"{directory.name} again"
        tokenizer.save(again)
        assert load_tokenizer(again).fingerprint() == tokenizer.fingerprint()


@pytest.mark.parametrize("kind", ["bpe", "words", "characters"])
def test_tokens_added_there_are_read_here_and_written_back(tmp_path, kind):
    texts = drawn_texts(1, 300)
    own = {"bpe": lambda: BPETokenizer.train(texts, 400), "words": lambda: WordTokenizer.train(texts)}
    own = own.get(kind, lambda: CharacterTokenizer.train([*texts, "<pad> new\nway"]))()
    other = load_theirs(tmp_path / "own", config_for(own), own)
    other.add_special_tokens({"pad_token": "<pad>"})
    other.add_tokens(["new\nway", "new"])
    other.save_pretrained(tmp_path / "theirs")
    here = load_tokenizer(tmp_path / "theirs")
    assert here.n_vocab == len(other) == own.n_vocab + 3 and here.eos_id == own.eos_id
    back = load_theirs(tmp_path / "back", config_for(here), here)
    for text in [*texts, "a new\nway<pad>new x<pad>"]:
        expected = other(text, add_special_tokens=False)["input_ids"]
        if "<unk>" not in text:
            assert here.encode(text, allow_special=True) == expected == back(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("seed", range(3))
def test_words_with_marks_give_their_ids(tmp_path, seed):
    texts = drawn_texts(seed, 300)
    words = WordTokenizer.train(texts)
    other = load_theirs(tmp_path, config_for(words), words)
    seen = drawn_texts(50 + seed, 300) + ["\u0926\u0941\u0928\u093f\u092f\u093e x\u00b2 e\u0301cole a\x1cb\x85c"]
    random.Random(seed).shuffle(alphabet := list(KNOWN))
    for text in [*texts, *seen, "".join(alphabet)]:
        assert words.encode(text) == other(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def test_a_model_with_more_rows_than_tokens(tmp_path):
    """Padding to a multiple, and a token added there with its row: both are used for text here, and rows without a token never drawn."""
    tokenizer = BPETokenizer.train(drawn_texts(1, 100), 300)
    load_theirs(tmp_path / "own", config_for(tokenizer), tokenizer)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "own")
    other = transformers.AutoTokenizer.from_pretrained(tmp_path / "own")
    other.add_special_tokens({"pad_token": "<|pad|>"})
    model.resize_token_embeddings(len(other), pad_to_multiple_of=64, mean_resizing=False)
    with torch.no_grad():
        model.transformer.wte.weight[len(other) :] += 5 * model.transformer.wte.weight[65].sign()  # would nearly always be drawn
        model.transformer.wte.weight *= 10
    other.save_pretrained(tmp_path / "padded")
    model.save_pretrained(tmp_path / "padded")
    gpt, ours = load(tmp_path / "padded")
    assert gpt.config.vocab_size == 320 and ours.n_vocab == 301 and ours.special["<|pad|>"] == 300
    close(gpt.eval()([[1, 2, 3]]).data, logits_of(model.eval(), [[1, 2, 3]]))
    assert max(complete(gpt, ours, "the", 50, Sampling(2.0, 0), seed=1).ids) < 301
    assert (
        max(generate(gpt, [[1]], 50, temperature=2.0, top_k=0, n_tokens=301).ids[0])
        < 301
        <= max(generate(gpt, [[1]], 50, temperature=2.0).ids[0])
    )
    assert max(beam_search(gpt, [1], 20, n_tokens=301)[0].ids) < 301
