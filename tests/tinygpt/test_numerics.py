"""Numbers that go wrong: each stop, skip and rollback, and what is said about it."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autograd import backend
from tests.tinygpt.helpers import FunctionRecord, Notes, checkpoint_directory, load_training, new_run
from tests.tinygpt.test_resume import saver, state, trainer
from tinygpt.runs.layout import integrity_errors, status
from tinygpt.training.divergence import MAX_CONSECUTIVE, SpikeDetector, likely_cause
from tinygpt.training.metrics import Evaluation
from tinygpt.training.trainer import check_deterministic

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")


@pytest.fixture(autouse=True)
def nan_is_allowed():
    """These tests make them: NumPy shall compute on, as it does for users."""
    with np.errstate(all="ignore"):
        yield


def poison(t, *steps, value=float("nan")):
    """From now on the micro-batches of these updates (from 1) come with a weight's worth of trouble: one embedding is `value`."""
    gradients = t.gradients
    weight = t.model.wpe.weight.data

    def poisoned():
        if t.batches_drawn // t.accumulation + 1 not in steps:
            return gradients()
        before = float(weight[0, 0])
        weight[0, 0] = value
        try:
            return gradients()
        finally:
            weight[0, 0] = before

    t.gradients = poisoned


def test_the_first_loss_that_is_not_finite_stops_before_the_weights_change_and_says_all_that_is_known(tmp_path):
    run, t = new_run(tmp_path / "run", "x"), trainer(steps=9, eval_every=1)
    checkpoints, save = saver(run, t)
    poison(t, 5)
    with pytest.raises(FloatingPointError) as raised:
        t.run(Notes(), FunctionRecord(save))
    checkpoints.finish()
    message = str(raised.value)
    for part in (
        "step 5: loss nan, gradient norm nan (learning rate ",
        "expected finite numbers; first bad parameter: wte.weight (",
        "likely cause: ",
        "the weights are as they were before this update and the last checkpoint is kept",
        "--resume RUN --override --lr",
        "--on-nan skip",
    ):
        assert part in message
    assert re.search(r"first bad op: Embedding(Into|CUDA)?\.forward: ", message)  # the kernel's name
    last = checkpoint_directory(run, "last")
    assert last.name == "step-00000004" and not integrity_errors(last)
    again = trainer(steps=9, eval_every=1)
    load_training(last, again)
    assert state(again)[:3] == state(t)[:3]  # what is saved is what the trainer has: nothing bad got in
    assert all(np.isfinite(backend.to_host(a)).all() for a in (t.optimizer.weight, t.optimizer.m, t.optimizer.v))


def test_weights_that_are_not_finite_are_named():
    t = trainer(steps=3)
    t.model.ln_f.weight.data[2] = np.inf
    with pytest.raises(FloatingPointError, match=r"likely cause: the weights themselves are not finite \(ln_f.weight \(1 of 16 values\)\)"):
        t.run(Notes())


def test_skipping_leaves_the_weights_and_goes_on_with_the_next_batch():
    t, notes = trainer(steps=6, on_nan="skip"), Notes()
    poison(t, 3)
    result = t.run(notes)
    assert result.step == 6 and result.n_skipped == 1 and t.optimizer.n_steps == 5
    assert sorted(step for step in notes.losses if isinstance(step, int)) == [1, 2, 4, 5, 6]
    assert [note for note in notes.notes if "update skipped, 1 so far" in note and note.startswith("step 3: loss nan")]
    assert np.isfinite(backend.to_host(t.optimizer.weight)).all()


def test_skipping_ends_when_nothing_else_comes():
    t = trainer(steps=100, on_nan="skip")
    poison(t, *range(3, 100))
    with pytest.raises(FloatingPointError, match=rf"{MAX_CONSECUTIVE} updates in a row failed, so --on-nan skip gives up"):
        t.run(Notes())
    assert t.optimizer.n_steps == 2


def test_a_run_that_skipped_its_last_update_still_saves(tmp_path):
    run, t = new_run(tmp_path / "run", "x"), trainer(steps=3, on_nan="skip", eval_every=100)
    checkpoints, save = saver(run, t)
    poison(t, 3)
    t.run(Notes(), FunctionRecord(save))
    checkpoints.finish()
    assert checkpoint_directory(run, "last").name == "step-00000003"


@pytest.mark.parametrize(("eval_every", "named"), [(2, "step-00000002"), (100, "none was written yet")])
def test_the_error_names_the_last_good_checkpoint_and_waits_for_it(tmp_path, eval_every, named):
    run, t = new_run(tmp_path / "run", "x"), trainer(steps=8, eval_every=eval_every)
    writer, _ = saver(run, t)
    poison(t, 4)
    with pytest.raises(FloatingPointError, match=rf"step 4: loss nan.*; the last good checkpoint: .*{named}$"):
        writer.train(t, Notes())
    assert (writer.last is None) == (eval_every == 100)
    assert status(run) == ("diverged after step 2 of 8" if eval_every == 2 else "finished")


def test_rolling_back_takes_the_last_checkpoint_and_other_batches(tmp_path):
    run, t, notes = new_run(tmp_path / "run", "x"), trainer(steps=8, on_nan="rollback", eval_every=2), Notes()
    poison(t, 4)  # counted in batches drawn: they come once
    result = saver(run, t)[0].train(t, notes)
    assert result.step == 8 and result.n_rollbacks == 1
    assert t.batches_drawn == (8 + 2) * t.accumulation  # updates 3 and 4 were made again, from other batches
    assert [note for note in notes.notes if "rolled back to" in note and "step-00000002 (step 2), continuing with other batches" in note]
    again = trainer(steps=8)
    load_training(checkpoint_directory(run, "last"), again)
    assert again.batches_drawn == t.batches_drawn and again.result.n_rollbacks == 1


def test_rolling_back_without_a_way_to_is_a_stop():
    t = trainer(steps=8, on_nan="rollback")
    poison(t, 2)
    with pytest.raises(FloatingPointError, match="step 2: loss nan"):
        t.run(Notes())


def test_a_diagnosis_leaves_no_trace():
    """Position in the data, random stream and counters are the same after it as before."""
    t = trainer(steps=8)
    poison(t, 1)
    before = t.position()
    t.gradients()
    after = t.position()
    assert after != before
    t.diagnosis(math.nan, math.nan, before)
    assert after == t.position() and not backend.debug


def test_a_validation_loss_that_is_not_finite_saves_nothing():
    t, saved = trainer(steps=4, eval_every=2), []
    t.evaluate = lambda: Evaluation(math.nan)
    with pytest.raises(FloatingPointError, match=r"validation: loss nan at step 2, expected a finite number; nothing was saved, the last"):
        t.run(Notes(), FunctionRecord(saved.append))
    assert not saved


NORMS = [1.0] * 10


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({"norms": [*NORMS, 20.0, 400.0, 8000.0]}, "training diverged: the gradient norm rose from 1 to 8e+03; the learning rate 1.0e-03"),
        ({"max_norm": 0.0}, "clipping is off"),
        ({"dtype": "float16"}, "the range of float16: try bfloat16 or float32"),
        ({"norms": []}, "the first update failed"),
        ({"bad_op": "Exp.forward: 3 of 4"}, "an overflow in Exp.forward, most often from a learning rate that is too high"),
    ],
)
def test_the_likely_cause_follows_from_what_is_known(known, said):
    facts = {"bad_weight": "", "bad_op": "", "lr": 1e-3, "norms": NORMS, "max_norm": 1.0, "dtype": "float32"}
    assert said in likely_cause(**{**facts, **known})


@given(level=st.floats(0.1, 10), seed=st.integers(0, 99), at=st.integers(60, 150))
def test_a_spike_is_noticed_once_and_noise_is_not(level, seed, at):
    losses = level * (1 + 0.05 * np.random.default_rng(seed).standard_normal(200))
    losses[at : at + 3] *= 3
    detector = SpikeDetector()
    noticed = [i for i, loss in enumerate(losses.tolist()) if detector.update(loss)]
    assert noticed == [at]


def test_a_spike_is_told():
    t, notes = trainer(steps=80), Notes()
    gradients = t.gradients
    t.gradients = lambda: gradients() * (5 if t.result.step == 69 else 1)
    t.run(notes)
    assert [note for note in notes.notes if note.startswith("step 70: loss ") and "is a spike, " in note]


def test_metrics_hold_the_norm_and_the_ratio_of_the_update():
    t, run = trainer(steps=3, weight_decay=0.0), FunctionRecord()
    weights = []
    step = t.optimizer.step

    def recorded(*args, **kwargs):
        weights.append(backend.to_host(t.optimizer.weight).copy())
        return step(*args, **kwargs)

    t.optimizer.step = recorded
    t.run(Notes(), run)
    weights.append(backend.to_host(t.optimizer.weight).copy())
    logged = [line for line in run.lines if "loss_nats" in line]
    for i, line in enumerate(logged):
        moved = np.linalg.norm((weights[i + 1] - weights[i]).astype(np.float64)) / np.linalg.norm(weights[i + 1].astype(np.float64))
        assert line["update_ratio"] == pytest.approx(moved, rel=1e-3)
        assert line["gradient_norm"] > 0


@pytest.mark.exact
def test_the_deterministic_check_compares_bits_and_leaves_the_trainer_as_it_was():
    one, two = trainer(steps=4), trainer(steps=4)
    assert (
        check_deterministic(one)
        == f"step 1 computed twice: the loss and all {one.optimizer.gradient.size:,} gradients are equal bit for bit"
    )
    for t in (one, two):
        t.run(Notes())
    assert state(one) == state(two)
    stream = one.model.dropout_stream
    gradients = one.gradients

    def unsteady():
        loss = gradients()
        one.optimizer.gradient[5] += np.float32(1e-6 * (1 + stream.counter % 7) if len(calls) else 0)
        calls.append(1)
        return loss

    calls = []
    one.gradients = unsteady
    with pytest.raises(
        ArithmeticError, match=r"two runs of one step differ, first in the gradient of wte.weight \(losses .*expected equal bits"
    ):
        check_deterministic(one)


@pytest.mark.exact
def test_the_same_seed_gives_the_same_bits_from_run_to_run():
    runs = [trainer(steps=5), trainer(steps=5)]
    for t in runs:
        t.run(Notes())
    assert state(runs[0]) == state(runs[1])
    ids = np.zeros((1, 1), int)
    assert np.array_equal(runs[0].model.generate(ids, 10, seed=1), runs[1].model.generate(ids, 10, seed=1))
