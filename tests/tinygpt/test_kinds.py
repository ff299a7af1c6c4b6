"""An encoder and an encoder-decoder train as a GPT does: optimizers, replicas, resuming, recomputation, 16 bits, estimates, tables."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import autograd as ag
from autograd import backend
from autograd.backend import to_host
from autograd.optim import AdamW
from tests.autograd.checks import numpy_only
from tests.tinygpt.helpers import Notes, check_by_differences, randomize, weights
from tinygpt import TrainConfig, models
from tinygpt.data.tokenizer import CharacterTokenizer
from tinygpt.data.windows import IGNORED
from tinygpt.encoder_config import EncoderConfig
from tinygpt.errors import InvalidInput
from tinygpt.models import Encoder, Seq2Seq
from tinygpt.parallel.local import Replicas, can_copy, workers_for
from tinygpt.runs.checkpoint import Checkpoint
from tinygpt.runs.run import Run
from tinygpt.seq2seq_config import Seq2SeqConfig
from tinygpt.training.arithmetic import training_flops
from tinygpt.training.memory_budget import check, estimate, saved_of_one
from tinygpt.training.optimizers import hidden_matrices, make_optimizer
from tinygpt.training.stacks import n_in_matrices, stacks
from tinygpt.training.step import Shard, accumulate
from tinygpt.training.trainer import Trainer, check_deterministic
from tinygpt.weights.family import meaning

ENCODER = EncoderConfig(n_layer=2, n_head=2, n_embd=16, n_positions=8, vocab_size=23, dropout=0.1)
SEQ2SEQ = Seq2SeqConfig(n_layer=1, n_decoder_layer=2, n_head=2, n_embd=16, n_positions=8, vocab_size=23, dropout=0.1)
T5 = dataclasses.replace(
    SEQ2SEQ, norm="rms", norm_position="pre", positions="relative", bias=False, attention_scale=1.0, gated=True, activation="gelu",
    tie_word_embeddings=False, relative_buckets=8, relative_distance=16,
)  # fmt: skip
MARIAN = dataclasses.replace(SEQ2SEQ, logits_bias=True, activation="silu", start_id=22, pad_id=22)
SHAPES = {
    "bert": ENCODER,
    "roberta": dataclasses.replace(ENCODER, count_padding=False, pad_id=1, n_token_types=0, tie_word_embeddings=False),
    "pre-norm encoder": dataclasses.replace(ENCODER, norm="rms", norm_position="pre", positions="rotary", gated=True, embedding_norm=False),
    "transformer": SEQ2SEQ,
    "marian": MARIAN,
    "t5": T5,
}
each_shape = pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
one_of_each = pytest.mark.parametrize("config", [ENCODER, SEQ2SEQ], ids=["bert", "transformer"])


def make(config, seed=0):
    return (Encoder if isinstance(config, EncoderConfig) else Seq2Seq)(config, seed)


def batch_of(config, rng, rows=4):
    """Arguments of `loss`: padded rows, something to learn in each of them."""
    length, other = rng.integers(3, 9, 2)
    ids, mask = rng.integers(2, 22, (rows, length)), np.arange(length) < rng.integers(1, length + 1, (rows, 1))
    if isinstance(config, EncoderConfig):
        targets = np.where(mask & (rng.random(ids.shape) < 0.5), rng.integers(2, 22, ids.shape), IGNORED)
        targets[:, 0] = 3
        return ids, targets, mask
    targets = rng.integers(2, 22, (rows, other))
    targets[np.arange(other) >= rng.integers(1, other + 1, (rows, 1))] = IGNORED
    return ids, targets, mask


class Items:
    """Texts to learn from; an encoder's masked words are drawn for each micro-batch."""

    def __init__(self, config, n=24):
        self.config, self.n = config, n

    def __len__(self):
        return self.n

    def batch(self, which):
        return self.drawn(which, 0)

    def drawn(self, which, number):
        return batch_of(self.config, np.random.default_rng([number, *which]), len(which))


def trainer(config, **changes):
    settings = TrainConfig(
        **{"steps": 6, "lr": 1e-2, "warmup_steps": 2, "micro_batch": 4, "eval_every": 3, "tokens_per_update": 64, **changes}
    )
    model = make(config, settings.seed).recompute_blocks(settings.recompute)
    items = Items(config)
    return Trainer(model, settings, items, items, workers_for(model, settings))


# Gradients and settings of the loss -----------------------------------------------------------------------------------------------------------


@each_shape
def test_gradients_of_the_training_loss(config):
    """Dropout, label smoothing and z-loss included, along random directions."""
    rng = np.random.default_rng(0)
    if isinstance(config, Seq2SeqConfig):
        config = dataclasses.replace(config, padding_trains=True)  # else that row's gradient is not the slope
    model, batch = randomize(make(config), 0).train().set_z_loss(0.02).set_label_smoothing(0.1), batch_of(config, rng)

    def loss():
        model.dropout_stream.counter = 0
        return model.loss(*batch)

    loss().backward()
    for name, p in model.named_parameters():
        if p.grad is None:
            assert "pooler" in name
            continue
        assert (backend.to_host(p.grad) != 0).any() or "bias" in name, name
        check_by_differences(p, loss, rng)


@each_shape
def test_smoothing_and_z_loss_count_in_training_mode_alone(config):
    model = randomize(make(dataclasses.replace(config, dropout=0.0)), 0)
    batch = batch_of(config, np.random.default_rng(1))
    plain = model.loss(*batch).item()
    model.set_z_loss(0.1).set_label_smoothing(0.2)
    assert model.loss(*batch).item() == plain != model.train().loss(*batch).item()


@each_shape
def test_recomputed_blocks_give_the_same_gradients(config):
    """An encoder's bit for bit."""
    batch, found = batch_of(config, np.random.default_rng(0)), []
    for recompute in (False, True):
        model = make(config).recompute_blocks(recompute).train()
        loss = model.loss(*batch)
        loss.backward()
        found.append([np.float32(loss.item()), *(to_host(p.grad) for p in model.parameters())])
    for kept, recomputed in zip(*found, strict=True):
        if isinstance(config, EncoderConfig):
            assert kept.tobytes() == recomputed.tobytes()
        else:  # what decoder blocks add to the gradient of the source comes in another order
            np.testing.assert_allclose(recomputed, kept, atol=1e-6)


# Optimizers -----------------------------------------------------------------------------------------------------------------------------------


@each_shape
def test_muons_matrices_are_all_but_embeddings_output_layer_and_relative_positions(config):
    model = make(config)
    matrices = hidden_matrices(model)
    others = {name.rpartition(".")[0] for name, p in model.named_parameters() if p.ndim == 2 and name not in matrices}
    assert others <= {"wte", "wpe", "wtt", "head", "lm_head", "encoder.relative", "decoder.relative"}
    assert sum(dict(model.named_parameters())[name].size for name in matrices) == n_in_matrices(config)
    for name, columns in matrices.items():
        assert columns == ((16, 16, 16) if name.endswith("attn.c_attn.weight") else dict(model.named_parameters())[name].shape[1:])
    if isinstance(config, Seq2SeqConfig):  # queries, keys and values of cross-attention are layers of their own
        assert {f"decoder.h.1.cross.c_{part}.weight" for part in ("q", "k", "v", "proj")} <= set(matrices)
    else:
        assert "head.c_fc.weight" in matrices


@one_of_each
@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
def test_matrices_and_embeddings_decay_and_nothing_else(config, optimizer):
    found = make_optimizer(make(config), TrainConfig(optimizer=optimizer))
    for group in found.groups:
        for name, p in group.named:
            assert (group.kind == "plain") == (p.ndim == 1), name


@one_of_each
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_lowers_the_loss(config, optimizer):
    t = trainer(dataclasses.replace(config, dropout=0.0), steps=40, optimizer=optimizer, warmup_steps=5, tokens_per_update=0)
    t.train_items.drawn = lambda which, number: batch_of(config, np.random.default_rng(0))  # one batch to learn by heart
    losses = [float(t.update()[0]) for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0], losses


# Replicas, resuming ---------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES)
def three(request):
    model = make(request.param).set_label_smoothing(0.1).train()
    copies = Replicas(model, AdamW(model), 3)
    yield copies
    copies.close()


@numpy_only
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32), rows=st.integers(3, 7))
def test_replicas_compute_the_gradients_of_one_process(three, seed, rows):
    """With dropout: each computes its rows of the masks, of sources and of targets, whose shapes differ."""
    batches = [batch_of(three.model.config, np.random.default_rng([seed, i]), rows) for i in range(2)]
    optimizer, stream = three.optimizer, three.model.dropout_stream
    draw = stream.counter
    optimizer.zero_grad()
    loss = float(accumulate(three.model, [Shard(batch, share) for batch, share in zip(batches, (0.5, 2.0), strict=True)]))
    gradient, stream.counter = optimizer.gradient.copy(), draw
    optimizer.zero_grad()
    assert three.can_split(batches)
    assert float(three.gradients(batches, [0.5, 2.0])) == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(optimizer.gradient, gradient, atol=3e-6 * max(1, np.abs(gradient).max()))


@numpy_only
def test_what_cannot_be_copied():
    class Mine(Encoder):
        pass

    with_pooler = Encoder(dataclasses.replace(ENCODER, pooler=True))  # frozen: masked words do not need it
    assert can_copy(make(ENCODER)) and can_copy(make(T5)) and not can_copy(Mine(ENCODER)) and not can_copy(with_pooler)
    with pytest.raises(
        InvalidInput, match=r"replica: a model with frozen weights or custom layers, expected a plain Encoder; .*--processes 1"
    ):
        workers_for(Mine(ENCODER), TrainConfig(processes=2))


@each_shape
@pytest.mark.exact
def test_a_resumed_run_continues_bit_for_bit(config, tmp_path):
    def run(name, **changes):
        t, run = trainer(config, label_smoothing=0.1, optimizer="muon", **changes), Run.create(name, str(tmp_path / name))
        run.tokenizer = CharacterTokenizer.train("abcdefghijkl")
        run.train(t, Notes())
        return t

    straight = run("straight")
    run("part", stop_at=4)
    resumed = trainer(config, label_smoothing=0.1, optimizer="muon")
    Checkpoint.open(tmp_path / "part", "last").restore(resumed)
    assert resumed.result.step == 4
    resumed.run(Notes())
    assert resumed.result.tokens_seen == straight.result.tokens_seen
    assert resumed.optimizer.weight.tobytes() == straight.optimizer.weight.tobytes()
    assert resumed.model.dropout_stream.counter == straight.model.dropout_stream.counter > 0
    for name, arrays in resumed.optimizer.state_arrays().items():
        for key, array in arrays.items():
            assert to_host(array).tobytes() == to_host(straight.optimizer.state_arrays()[name][key]).tobytes(), (name, key)
    again = Checkpoint.open(tmp_path / "straight", "last").model()
    assert type(again) is type(straight.model) and meaning(again.config) == meaning(config)
    assert {name: a.tobytes() for name, a in weights(again).items()} == {name: a.tobytes() for name, a in weights(straight.model).items()}


@one_of_each
def test_a_step_is_the_same_when_it_is_computed_twice(config):
    assert "are equal bit for bit" in check_deterministic(trainer(config))


# 16 bits --------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(backend.name != "cupy", reason="16 bits need a GPU")
@each_shape
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_gradient_in_16_bits_has_the_direction_of_float32s(config, dtype):
    gradients, losses = {}, {}
    for name in ("float32", dtype):
        t = trainer(dataclasses.replace(config, dropout=0.0), dtype=name)
        t.optimizer.zero_grad()
        loss = t.model.train().loss(*batch_of(config, np.random.default_rng(3)))
        loss.backward()
        losses[name], gradients[name] = loss.item(), to_host(t.optimizer.gradient)
        assert t.optimizer.weight.dtype == loss.dtype == np.float32
    assert losses[dtype] == pytest.approx(losses["float32"], rel=0.01)
    a, b = gradients.values()
    assert a @ b > 0.99 * np.linalg.norm(a) * np.linalg.norm(b)
    before = to_host(t.optimizer.weight).copy()
    for _ in range(4):  # float16's first scale may be too large: those updates are skipped
        assert np.isfinite(float(t.update()[0]))
    assert (to_host(t.optimizer.weight) != before).any()
    ids, targets, mask = batch_of(config, np.random.default_rng(3))
    with ag.no_grad():
        logits = t.model.eval()(ids, mask) if isinstance(config, EncoderConfig) else t.model(ids, np.abs(targets) % 23, mask)
    assert logits.dtype.name == dtype


# Estimates and tables -------------------------------------------------------------------------------------------------------------------------


def traced(config, lengths):
    """(steps of a traced loss, rows): an encoder with every position masked, or source and target of the given lengths."""
    rng, rows = np.random.default_rng(0), 3
    ids = rng.integers(2, 22, (rows, lengths[0]))
    targets = rng.integers(2, 22, (rows, lengths[1]))
    return make(config).train().trace(ids, targets, np.ones(ids.shape, bool)).steps, rows


@numpy_only
@each_shape
def test_a_block_saves_what_the_formula_says(config):
    lengths = (8, 8) if isinstance(config, EncoderConfig) else (7, 5)
    steps, rows = traced(config, lengths)
    parts = stacks(config, rows, lengths)
    for prefix, part in zip(["h."] if len(parts) == 1 else ["encoder.h.", "decoder.h."], parts, strict=True):
        last = part.blocks.n_layer - 1
        saved = sum(step.saved_bytes for step in steps if step.module.startswith(f"{prefix}{last}"))
        relative = sum(step.saved_bytes for step in steps if step.module == prefix.replace("h.", "relative"))  # of all blocks
        saved += relative // part.blocks.n_layer
        shared = 4 * 3 * part.n_source * part.blocks.n_embd  # the encoder's output, which all decoder blocks read
        tables = 4 * 2 * part.length * (part.blocks.channels_per_head + part.blocks.n_embd)
        assert saved - shared - tables <= 4 * saved_of_one(part) <= 1.06 * saved, (prefix, saved, 4 * saved_of_one(part))


@numpy_only
@each_shape
def test_training_is_three_times_the_products_of_a_traced_forward_pass(config):
    lengths = (8, 8) if isinstance(config, EncoderConfig) else (7, 5)
    config = dataclasses.replace(config, dropout=0.0)
    steps, rows = traced(config, lengths)
    products = sum(s.flops for s in steps if any(word in s.op for word in ("Linear", "MatMul", "Attention", "CrossEntropy")))
    if isinstance(config, Seq2SeqConfig):  # a trace counts masked scores of the decoder's self-attention, too
        products -= 2 * rows * 4 * config.n_embd * 5 * (5 - 3)
    assert training_flops(config, rows * lengths[0], lengths, masked=1.0) == pytest.approx(3 * products, rel=0.01)


@numpy_only
@one_of_each
def test_memory_is_checked_before_the_model_is_made(config, monkeypatch):
    wide = dataclasses.replace(config, n_layer=6, n_embd=512, n_positions=512)
    needed = [estimate(wide, rows, program=0) for rows in (8, 16)]
    assert (
        needed[0]["weights"] == 4 * wide.n_parameters()
        and needed[0]["activations"] < needed[1]["activations"] < 2 * needed[0]["activations"]
    )
    assert estimate(wide, 16, program=0, recompute=True).total < 0.6 * needed[1].total
    monkeypatch.setattr("tinygpt.training.memory_budget.resident_bytes", lambda: 0)  # not what earlier tests left in this process
    monkeypatch.setattr("tinygpt.training.memory_budget.memory_limit", lambda: (needed[0].total, "the limit of the test"))
    with pytest.raises(
        InvalidInput, match=r"memory: training needs about .*, the limit of the test; lower --micro-batch \(to \d\) or --n-positions"
    ):
        check(wide, 16)
    if isinstance(config, Seq2SeqConfig):
        assert "about" in check(wide, 16, lengths=(32, 32))
        with pytest.raises(InvalidInput, match=r"lower --micro-batch .* or shorten the texts"):
            check(wide, 64, lengths=(300, 400))
    if isinstance(config, EncoderConfig):  # more masked tokens go through more of the head
        most = estimate(wide, 8, checkpoints=True, program=0).total
        monkeypatch.setattr("tinygpt.training.memory_budget.resident_bytes", lambda: 0)
        monkeypatch.setattr("tinygpt.training.memory_budget.memory_limit", lambda: (most, "the limit of the test"))
        assert "about" in check(wide, 8)
        with pytest.raises(InvalidInput, match="memory: training needs about"):
            check(wide, 8, masked=0.3)


@each_shape
def test_summary_and_trace(config):
    model = make(config)
    rows = model.summary("muon").splitlines()
    assert len(rows) == len(list(model.named_parameters())) + 3 and rows[-2].split()[-1] == f"{config.n_parameters():,}"
    ids = np.full((2, 5), 3)
    trace = model.trace(ids, ids)
    assert trace.steps[-1].op == "LinearCrossEntropy" and trace.flops > 0 and "saved bytes" in repr(trace)
    if isinstance(config, EncoderConfig):
        assert model.trace(ids).steps[-1].shape == (2, 5, 23)
    else:
        with pytest.raises(InvalidInput, match=r"trace: an encoder-decoder without targets, expected them; call model.trace\(source_ids"):
            model.trace(ids)


def test_the_kinds_are_found_by_name():
    assert models.Encoder is Encoder and models.Seq2Seq is Seq2Seq
    with pytest.raises(AttributeError, match="no attribute 'Decoder'"):
        models.Decoder  # noqa: B018
