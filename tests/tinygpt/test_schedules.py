"""Learning rate and batch size of a run, exact under resume; what an optimizer costs in arithmetic and memory."""

import dataclasses
import shutil
import tracemalloc

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.autograd.checks import numpy_only
from tests.tinygpt.helpers import Notes, checkpoint_directory, decoders, load_training, new_run, tiny
from tests.tinygpt.test_resume import FLAGS, classifier, pretrain, state, text, train, trainer
from tinygpt import GPT, GPTConfig, TrainConfig
from tinygpt.config import PretrainConfig
from tinygpt.runs.settings import check_changes
from tinygpt.training.arithmetic import cost_note, training_flops
from tinygpt.training.memory_budget import check, estimate
from tinygpt.training.optimizers import make_optimizer
from tinygpt.training.schedule import learning_rate, resumed_note
from tinygpt.training.trainer import check_deterministic

__all__ = ["text"]  # a fixture

WSD = {"schedule": "wsd", "decay_fraction": 0.2}


# Learning rate --------------------------------------------------------------------------------------------------------------------------------


def test_the_rate_of_each_schedule_at_its_ends():
    fixed = {"steps": 100, "warmup_steps": 10, "lr": 1.0}
    rates = {s: [learning_rate(TrainConfig(**fixed, schedule=s), i) for i in (0, 9, 10, 39, 79, 99)] for s in ("cosine", "wsd")}
    assert rates["cosine"][:3] == [0.1, 1.0, 1.0] and rates["cosine"][-1] == 0.1 and 0.1 < rates["cosine"][4] < rates["cosine"][3] < 1
    assert rates["wsd"] == [0.1, 1.0, 1.0, 1.0, 1.0, 0.1] and learning_rate(TrainConfig(**fixed, schedule="wsd"), 80) < 0.8
    assert [learning_rate(TrainConfig(**fixed, schedule="inverse-sqrt"), i) for i in (0, 9, 39)] == [0.1, 1.0, 0.5]
    assert [learning_rate(TrainConfig(**fixed, schedule="constant"), i) for i in (0, 9, 99)] == [0.1, 1.0, 1.0]
    linear = TrainConfig(**fixed, **WSD, decay_shape="linear", final_lr_fraction=0.0)
    assert learning_rate(linear, 89) == pytest.approx(0.5)


def test_the_trainer_sets_the_rate_of_its_schedule():
    t = trainer(steps=10, warmup_steps=2, **WSD)
    found = []
    for _ in range(10):
        t.update()
        found.append(t.optimizer.lr)
    assert found == [learning_rate(t.config, i) for i in range(10)] and len(set(found)) == 4  # half, peak, and two of the decay


@pytest.mark.exact
@pytest.mark.parametrize("n", [40, 48])  # of 60: within the plateau, and its end
def test_a_run_on_its_plateau_resumes_as_if_it_had_been_longer_from_the_start(n, tmp_path):
    whole, part = (trainer(steps=120, eval_every=30, **WSD), trainer(steps=60, stop_at=n, eval_every=30, **WSD))
    losses = train(new_run(tmp_path / "whole"), whole)
    run = new_run(tmp_path / "part")
    first = train(run, part)
    longer = trainer(1, steps=120, eval_every=30, **WSD)
    load_training(checkpoint_directory(run, "last"), longer)
    assert longer.result.step == n and not longer.resumed
    second = train(run, longer)
    assert state(longer) == state(whole) and {**first, **second} == losses


def test_more_steps_need_no_override_and_another_decay_does():
    def settings_of(**changes):
        return PretrainConfig(model=tiny(), train=TrainConfig(**{"steps": 60, "warmup_steps": 3, **WSD, **changes}))

    check_changes(settings_of(), settings_of(steps=120))
    for changes in ({"decay_fraction": 0.3}, {"decay_shape": "linear"}, {"schedule": "constant"}):
        name = next(iter(changes)).replace("_", "-")
        with pytest.raises(ValueError, match=rf"resume: --{name} .* as in the run \(or --override\)"):
            check_changes(settings_of(), settings_of(**changes))
    with pytest.raises(
        ValueError, match=r"--batch-ramp-from 16, expected 0 as in the run; --batch-ramp-tokens 99, expected 0 as in the run; "
    ):
        check_changes(settings_of(), settings_of(batch_ramp_from=16, batch_ramp_tokens=99, tokens_per_update=32))


@pytest.mark.parametrize(
    ("step", "changes", "noted"),
    [(48, {"steps": 120}, False), (49, {"steps": 120}, True), (60, {"steps": 61}, True), (40, {"steps": 45}, True), (36, {"steps": 45}, False),
     (55, {}, False), (49, {"decay_shape": "linear"}, True), (40, {"decay_fraction": 0.5}, True), (0, {"steps": 120}, False)],
)  # fmt: skip
def test_a_resumed_run_says_when_its_decay_had_begun_already(step, changes, noted):
    before = TrainConfig(steps=60, warmup_steps=3, **WSD)
    note = resumed_note(dataclasses.replace(before, **changes), dataclasses.asdict(before), step)
    assert bool(note) == noted
    if changes == {"steps": 120} and noted:
        assert note == (
            "resumed within the decay of schedule wsd: update 49 had learning rate 0.00074, where a run of --steps 120 from the start has 0.001; "
            "for the same weights as such a run, resume from a checkpoint of update 48 or earlier (saved with --stop-at)"
        )


def test_other_schedules_and_other_versions_are_resumed_without_a_note():
    wsd, cosine = (dataclasses.asdict(TrainConfig(steps=60, warmup_steps=3, schedule=s)) for s in ("wsd", "cosine"))
    longer = TrainConfig(steps=120, warmup_steps=3, schedule="wsd")
    assert resumed_note(longer, wsd, 60) and not resumed_note(longer, cosine, 60)
    assert not resumed_note(TrainConfig(steps=120, warmup_steps=3), wsd, 60)
    for before in (None, {}, {"schedule": "wsd"}, wsd | {"steps": "many"}, wsd | {"decay_fraction": 7.0}):
        assert not resumed_note(longer, before, 60)


def test_the_note_comes_at_the_start_of_training_once(tmp_path):
    run = new_run(tmp_path / "run")
    train(run, trainer(steps=10, warmup_steps=2, **WSD))
    longer, notes = trainer(steps=12, warmup_steps=2, **WSD), Notes()
    load_training(checkpoint_directory(run, "last"), longer)
    longer.run(notes)
    assert [note for note in notes.notes if note.startswith("resumed within the decay of schedule wsd: update 10 ")] == notes.notes[:1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule": "wds"}, r"TrainConfig.schedule: 'wds', expected cosine, wsd, inverse-sqrt or constant; did you mean 'wsd'"),
        ({"schedule": "wsd", "decay_fraction": 0.0}, r"decay_fraction: 0.0, expected more than 0, at most 1; .* --schedule constant"),
        ({"schedule": "wsd", "decay_fraction": 1.5}, r"decay_fraction: 1.5, expected more than 0, at most 1"),
        ({"batch_ramp_from": 64}, r"batch_ramp_from: 64 with batch_ramp_tokens 0, expected both or neither; set --batch-ramp-tokens"),
        ({"batch_ramp_tokens": 64}, r"batch_ramp_tokens: 64 with batch_ramp_from 0, expected both or neither; set --batch-ramp-from"),
        (
            {"batch_ramp_from": 64, "batch_ramp_tokens": 9, "tokens_per_update": 64},
            r"batch_ramp_from: 64, expected fewer than tokens_per_update, 64, to which they grow; set --tokens-per-update",
        ),
        ({"batch_ramp_from": -1}, r"batch_ramp_from: -1, expected at least 0"),
    ],
)
def test_settings_that_make_no_sense_are_named_with_the_fix(fields, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**fields)


# Batch ramp -----------------------------------------------------------------------------------------------------------------------------------


def test_gpt3s_batch_grows_from_32_thousand_to_3_million_tokens():
    """Brown et al. 2020, appendix B: from 32 K tokens linearly over the first 4 to 12 billion; 3.2 M for the largest model."""
    config = TrainConfig(micro_batch=16, tokens_per_update=100 * 2**15, batch_ramp_from=2**15, batch_ramp_tokens=12 * 10**9)
    at = {
        seen: config.accumulation(2048, seen) for seen in (0, 121_000_000, 122_000_000, 6 * 10**9, 12 * 10**9 - 1, 12 * 10**9, 300 * 10**9)
    }
    assert list(at.values()) == [1, 1, 2, 50, 99, 100, 100] and config.accumulation(2048) == 100


@given(
    micro=st.integers(1, 9),
    start=st.integers(1, 20),
    more=st.integers(1, 60),
    over=st.integers(1, 10**13),
    seen=st.lists(st.integers(0, 2 * 10**13)),
)
def test_a_ramp_grows_in_whole_micro_batches_along_a_line(micro, start, more, over, seen):
    c = TrainConfig(
        micro_batch=micro, batch_ramp_from=start * micro * 4, tokens_per_update=(start + more) * micro * 4, batch_ramp_tokens=over
    )
    sizes = [c.accumulation(4, n) for n in sorted(seen)]
    assert sizes == sorted(sizes)
    assert c.accumulation(4, 0) == start and c.accumulation(4, over) == start + more == c.accumulation(4)
    for n, size in zip(sorted(seen), sizes, strict=True):
        line = start + more * min(1, n / over)
        assert size <= line * (1 + 1e-12) and line < size + 1 + 1e-9 * line


def test_a_first_batch_that_is_no_multiple_is_named():
    config = TrainConfig(micro_batch=4, tokens_per_update=128, batch_ramp_from=40, batch_ramp_tokens=9)
    with pytest.raises(ValueError, match=r"batch_ramp_from: 40, expected a multiple of micro_batch x context = 4 x 8 = 32; try 32 or 64"):
        config.accumulation(8)


RAMP = {"batch_ramp_from": 16, "tokens_per_update": 64, "batch_ramp_tokens": 320, "steps": 16}  # in tokens; a micro-batch has 16
SIZES = [1] * 7 + [2] * 4 + [3] * 2 + [4] * 3  # micro-batches of each update, by hand from the line 16 + 48 seen / 320


def poison(t, drawn):
    """The gradient of the update that begins with micro-batch number `drawn` is not a number."""
    gradients = t.gradients

    def poisoned():
        bad, loss = t.batches_drawn == drawn, gradients()
        return loss * np.nan if bad else loss

    t.gradients = poisoned
    return t


def test_the_ramp_follows_the_tokens_seen():
    t, drawn = trainer(**RAMP), []
    for _ in range(16):
        before, seen = t.batches_drawn, t.result.tokens_seen
        wanted = t.accumulation
        t.update()
        drawn.append(t.batches_drawn - before)
        assert drawn[-1] == wanted and t.result.tokens_seen - seen == 16 * wanted
    assert drawn == SIZES


@pytest.mark.exact
def test_a_computed_step_leaves_the_ramp_where_it_was():
    one, two = trainer(**RAMP), trainer(**RAMP)
    for t in (one, two):
        for _ in range(9):
            t.update()
    check_deterministic(one)
    assert one.position() == two.position()
    for t in (one, two):
        t.update()
    assert state(one) == state(two)


@pytest.mark.exact
@pytest.mark.parametrize(("on_nan", "n"), [("stop", 5), ("stop", 12), ("skip", 8), ("skip", 9), ("rollback", 6), ("rollback", 10)])
def test_a_run_in_its_ramp_resumes_bit_for_bit(on_nan, n, tmp_path):
    """Also where the ninth update, whose first micro-batch is number 9, is skipped or rolled back."""

    def make(seed=0, **changes):
        return poison(trainer(seed, **RAMP, eval_every=6, on_nan=on_nan, **changes), -1 if on_nan == "stop" else 9)

    with np.errstate(all="ignore"):
        whole, part, rest = make(), make(stop_at=n), make(1)
        losses = train(new_run(tmp_path / "whole"), whole)
        run = new_run(tmp_path / "part")
        first = train(run, part)
        load_training(checkpoint_directory(run, "last"), rest)
        assert rest.result.step == n
        second = train(run, rest)
    result = whole.result
    assert (result.n_skipped, result.n_rollbacks) == {"stop": (0, 0), "skip": (1, 0), "rollback": (0, 1)}[on_nan]
    assert result.tokens_seen == 16 * sum(SIZES)  # after a roll-back updates 7 and 8 are made again, as large as before, from other batches
    assert whole.batches_drawn == sum(SIZES) + (sum(SIZES[6:9]) if on_nan == "rollback" else 0)
    assert state(rest) == state(whole) and rest.batches_drawn == whole.batches_drawn and {**first, **second} == losses


def test_texts_that_are_sorted_by_length_cannot_have_a_ramp():
    with pytest.raises(
        ValueError, match=r"batch_ramp_from: 32, expected 0 for items of different lengths: each update's are sorted by length"
    ):
        classifier(batch_ramp_from=32, tokens_per_update=64, batch_ramp_tokens=99)


# The script -----------------------------------------------------------------------------------------------------------------------------------


@numpy_only
def test_the_script_extends_a_run_on_its_plateau_and_in_its_ramp(tmp_path, text):
    flags = [*FLAGS, "--corpus", text, "--schedule", "wsd", "--optimizer", "muon", "--batch-ramp-from", 32, "--batch-ramp-tokens", 400]
    pretrain(tmp_path, *flags, "--steps", 16, "--run", "whole")
    short = pretrain(tmp_path, *flags, "--steps", 10, "--stop-at", 6, "--run", "part")
    line = "updates    10, each micro-batch 2 x accumulation 1 to 2 x context 16 = 32 to 64 tokens, growing over the first 400"
    assert line in short.stdout and "optimizer  Muon: " in short.stdout and "after the batch ramp" in short.stdout
    shutil.copytree(tmp_path / "part", tmp_path / "longer")
    pretrain(tmp_path, "--resume", "longer", "--steps", 16)
    whole, longer = (checkpoint_directory(tmp_path / name, "last") for name in ("whole", "longer"))
    for name in ("model.safetensors", "training.safetensors"):
        assert (whole / name).read_bytes() == (longer / name).read_bytes()


# Arithmetic and memory ------------------------------------------------------------------------------------------------------------------------


@numpy_only
@settings(max_examples=20)
@given(config=decoders(n_positions=12))
def test_training_is_three_times_the_products_of_a_traced_forward_pass(config):
    model, ids = GPT(config), np.zeros((2, 12), dtype=np.int64)
    flops = {True: 0, False: 0}  # of attention, which counts masked scores in a trace, and of the other products
    for step in model.trace(ids, ids).steps:
        if any(word in step.op for word in ("Linear", "MatMul", "Attention", "CrossEntropy")):
            flops["Attention" in step.op] += step.flops
    seen = [min(t, config.window_of(layer) or t) for layer in range(config.n_layer) for t in range(1, 13)]
    assert flops[True] == 4 * config.n_layer * config.n_head * config.channels_per_head * 12 * 24
    assert training_flops(config, 24) == pytest.approx(3 * (flops[False] + flops[True] * np.mean(seen) / 12), rel=0.05)


def test_the_cost_of_the_optimizer_is_said_next_to_the_models():
    config = GPTConfig.preset("laptop")
    model = GPT(config)
    muon, adamw = (make_optimizer(model, TrainConfig(optimizer=name)) for name in ("muon", "adamw"))
    per_block = 3 * 6 * 128**3 + 6 * 128**3 + 2 * (4 * 128**2 * 512 + 2 * 128**3)  # q, k, v; the projection; the MLP's two
    assert muon.cost() == 5 * 4 * per_block  # five polynomials, four blocks
    flops = training_flops(config, 1024)
    assert 1e9 * 8.4 < flops < 1e9 * 8.6
    share = f"{muon.cost() / flops:.0%}"
    assert cost_note(muon, flops) == f"Muon: 2.5 GFLOP per update, {share} of the model's 8.5 GFLOP" and 0.25 < muon.cost() / flops < 0.35
    assert cost_note(muon, flops, 8 * flops).endswith(f"{share} of the model's 8.5 GFLOP, after the batch ramp 4% of 68 GFLOP")
    dear = (
        "more than the model itself: Muon suits updates of many times n_embd tokens; raise --tokens-per-update, or take --optimizer adamw"
    )
    assert cost_note(muon, flops // 8).endswith(f"238% of the model's 1.1 GFLOP; {dear}")
    assert dear not in cost_note(muon, flops // 8, flops)
    assert cost_note(adamw, flops) == "AdamW: a few passes over the weights per update; the model's arithmetic is 8.5 GFLOP"
    assert cost_note(adamw, flops, 2 * flops).endswith("8.5 GFLOP, after the batch ramp 17 GFLOP")


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "muon"])
@settings(max_examples=10)
@given(config=decoders())
def test_the_state_that_is_estimated_is_the_optimizers(optimizer, config):
    assume(optimizer != "sgd" or not config.width_base)  # the width rule has no rates for SGD
    model = GPT(config)
    arrays = make_optimizer(model, TrainConfig(optimizer=optimizer)).state_arrays()
    n_bytes = sum(array.nbytes for named in arrays.values() for array in named.values())
    found = estimate(config, 1, optimizer=optimizer, checkpoints=True, program=0)
    assert found["moments"] == n_bytes and found["checkpoint"] == n_bytes + found["weights"]
    total = 2 * found["weights"] + n_bytes
    assert f"with gradients and the state of {optimizer} {total / 2**20:,.1f} MiB" in model.summary(optimizer)


@numpy_only
@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "muon"])
def test_the_estimate_holds_where_the_update_takes_the_most(optimizer):
    """With few tokens: SGD's and Adam's temporary arrays are then larger than the activations, which are gone by then."""
    config, ids = GPTConfig(n_layer=3, n_head=4, n_embd=256, n_positions=16, vocab_size=2000), np.zeros((1, 16), dtype=int)
    model = GPT(config)
    tracemalloc.start()
    try:
        o = make_optimizer(model, TrainConfig(optimizer=optimizer))  # from here on it holds the weights
        tracemalloc.reset_peak()
        model.loss(ids, ids).backward()
        o.step(1.0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert estimate(config, 1, optimizer=optimizer, program=0).total == pytest.approx(peak, rel=0.1)


@numpy_only
def test_the_check_counts_the_optimizers_state():
    both = [check(GPTConfig(), 1, optimizer=name) for name in ("sgd", "adamw")]
    assert "moments 475 MB" in both[0] and "moments 949 MB" in both[1]


def test_the_summary_counts_the_state_of_trained_weights_only():
    model = GPT(tiny())
    for _, p in model.h[0].named_parameters():
        p.requires_grad = False
    trained = sum(p.size for p in model.parameters() if p.requires_grad)
    for optimizer, state_size in (("adamw", 2), ("sgd", 1), ("muon", 2)):  # none of the blocks' matrices is trained
        assert f"{4 * (model.n_parameters() + (1 + state_size) * trained) / 2**20:,.1f} MiB" in model.summary(optimizer)
    with pytest.raises(ValueError, match=r"optimizer: 'moun', expected one of adamw, muon, adam, sgd; did you mean 'muon'"):
        model.summary("moun")
