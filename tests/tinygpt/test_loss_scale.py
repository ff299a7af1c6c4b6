"""float16: the rule by which the loss scale moves, gradients that neither vanish nor change, overflows that cost one update, exact resume."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import autograd as ag
from autograd import nn
from autograd.backend import to_device, to_host
from autograd.optim import SGD, AdamW
from tests.autograd.checks import numpy_only
from tests.autograd.test_cupy_backend import on_device
from tests.tinygpt.helpers import FunctionRecord, Notes, checkpoint_directory, load_training, new_run
from tests.tinygpt.test_cupy_training import LLAMA, OTHER, PARALLEL, SHAPE, trainer
from tests.tinygpt.test_resume import saver, state
from tinygpt import GPT
from tinygpt.errors import InvalidInput
from tinygpt.parallel.local import LocalWorkers
from tinygpt.training.loss_scale import LARGEST, DynamicLossScale
from tinygpt.training.step import train_step


@pytest.fixture(autouse=True)
def overflow_is_allowed():
    """As on a device, which says nothing when a cast to float16 overflows."""
    with np.errstate(all="ignore"):
        yield


# The rule ------------------------------------------------------------------------------------------------------------------------------


@given(n=st.integers(1, 4), norms=st.lists(st.sampled_from([1.0, 0.0, math.inf, math.nan]), max_size=40))
def test_the_scale_halves_on_overflow_and_doubles_after_n_good_updates(n, norms):
    scale, since = DynamicLossScale(growth_interval=n), 0
    for norm in norms:
        before, good = scale.scale, math.isfinite(norm)
        since = since + 1 if good else 0
        assert scale.update(norm) is good
        assert scale.scale == (max(before / 2, 1) if not good else min(2 * before, LARGEST) if since == n else before)
        since %= n
    assert scale.n_overflows == sum(not math.isfinite(norm) for norm in norms)
    again = DynamicLossScale()
    again.load_state_dict(json.loads(json.dumps(scale.state_dict())))
    assert again.state_dict() == scale.state_dict()


def test_several_micro_batches_do_not_make_gradients_smaller():
    scale = DynamicLossScale(2.0**10)
    for n in range(1, 40):
        assert 1 <= scale.of_update(n) / n / 2.0**10 < 2 and math.frexp(scale.of_update(n))[0] == 0.5


def test_values_that_are_none():
    for scale in (0, -2.0, 3.0, 0.5, 2.0**41, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"DynamicLossScale.scale: .*, expected a power of two from 1 to 1099511627776; 65536"):
            DynamicLossScale(scale)
    with pytest.raises(ValueError, match=r"DynamicLossScale.growth_interval: 0, expected at least 1; 2000"):
        DynamicLossScale(growth_interval=0)
    saved = DynamicLossScale().state_dict()
    for key, value, message in (
        ("scale", 3.0, "x: scale is 3.0, expected a power of two"),
        ("scale", "much", "x: scale is 'much', expected a finite number"),
        ("n_good", -1, "x: n_good is -1, expected an integer"),
    ):
        with pytest.raises(ValueError, match=message):
            DynamicLossScale().load_state_dict(saved | {key: value}, "x")


# The gradients -------------------------------------------------------------------------------------------------------------------------


def test_scaled_and_divided_again_float32_gradients_are_the_same_bits():
    """S is a power of two, also with what several micro-batches add; the share of each comes on top of it."""
    ids = np.random.default_rng(0).integers(0, 17, (3, 17))
    batches = [(ids[:1, :-1], ids[:1, 1:]), (ids[1:, :-1], ids[1:, 1:])]
    found = []
    for loss_scale in (None, DynamicLossScale(2.0**16), DynamicLossScale(2.0**10)):
        model = GPT(SHAPE, seed=0)
        optimizer = AdamW(model, lr=1e-2)
        loss, norm = train_step(model, optimizer, batches, max_norm=0.5, loss_scale=loss_scale)
        found.append((float(loss), float(norm), *(to_host(a).tobytes() for a in (optimizer.gradient, optimizer.weight))))
    assert found[0] == found[1] == found[2]


@numpy_only
def test_processes_get_the_scale_with_the_shares():
    ids = np.random.default_rng(0).integers(0, 17, (4, 17))
    found = []
    for loss_scale in (None, DynamicLossScale(2.0**16)):
        model = GPT(SHAPE, seed=0)
        optimizer, workers = AdamW(model, lr=1e-2), LocalWorkers(model, 2)
        loss, _ = train_step(model, optimizer, [(ids[:, :-1], ids[:, 1:])], workers=workers, loss_scale=loss_scale)
        found.append((float(loss), optimizer.weight.tobytes()))
        workers.close()
    assert found[0] == found[1]


class Toy(nn.Module):
    """loss = 2^-30 sum of x w: computed in float16, its gradient is a number that float16 lacks."""

    def __init__(self):
        self.weight = ag.Parameter(to_device(np.array([1.0, -0.5, 2.0], np.float32)))
        self.dropout_stream = ag.RandomStream(0)

    def loss(self, x, targets):
        w = ag.cast(self.weight, np.float16)
        y = ag.cast(ag.Tensor(to_device(x.astype(np.float16))) * w, np.float32)
        return (y * 2.0**-30).sum()


def test_what_float16_would_lose_arrives_and_representable_values_are_exact():
    x, targets = np.array([1.0, 3.0, -0.25]), np.array([[0]])
    found = {}
    for s in (1.0, 2.0**16):
        model = Toy()
        optimizer = SGD(model, lr=2.0**30, momentum=0.0, weight_decay=0.0)
        train_step(model, optimizer, [(x, targets)], loss_scale=DynamicLossScale(s))
        found[s] = to_host(optimizer.gradient).tolist(), to_host(optimizer.weight).tolist()
    assert found[1.0] == ([0.0, 0.0, 0.0], [1.0, -0.5, 2.0])
    assert found[2.0**16] == ((x * 2.0**-30).tolist(), [0.0, -3.5, 2.25])


# Training ------------------------------------------------------------------------------------------------------------------------------


@on_device
@pytest.mark.parametrize("options", [{}, LLAMA, OTHER, PARALLEL], ids=["gpt2", "llama", "other", "parallel"])
def test_float16_learns_as_float32_does(options):
    runs = [trainer(dataclasses.replace(SHAPE, **options), lr=3e-3, dtype=dtype) for dtype in ("float32", "float16")]
    runs[1].loss_scale = DynamicLossScale(2.0**12)  # none of these overflows there: the curves are of the same updates
    curves = np.array([[float(t.update()[0]) for _ in range(25)] for t in runs])
    assert curves[0, -1] < curves[0, 0] - 0.3
    np.testing.assert_allclose(curves[1], curves[0], rtol=2e-3)
    model, optimizer, ids = runs[1].model, runs[1].optimizer, np.arange(8)[None]
    assert runs[0].loss_scale is None and runs[1].loss_scale.n_overflows == 0
    assert {a.dtype.name for a in (optimizer.weight, optimizer.gradient, optimizer.m, optimizer.v)} == {"float32"}
    assert model(ids).dtype == np.float16 and model.generate(ids, 5, seed=0).shape == (1, 13)


@on_device
def test_without_a_scale_gradients_of_activations_vanish():
    """What all of this is for: the share of the gradients on the way that are 0 in float16."""
    shares, t = [], trainer(dataclasses.replace(SHAPE, dropout=0.0), dtype="float16")
    for s in (1.0, 2.0**16):
        with ag.record() as records:
            loss = t.model.loss(*t.train_items.batch(np.arange(4))) * s
            loss.backward()
        sizes = [np.abs(to_host(dx)) for r in records for dx in r.dxs if dx is not None and dx.dtype == np.float16]
        shares.append(np.mean(np.concatenate([a.reshape(-1) for a in sizes]) == 0))
    assert shares[1] < 0.7 * shares[0], shares


def overflow_at(t, *steps):
    """At these updates one gradient is infinite."""
    gradients, scale = t.gradients, t.loss_scale

    def overflowing():
        if t.result.step + 1 not in steps:
            return gradients()
        loss = gradients()
        t.optimizer.gradient[3] = np.inf
        return loss

    t.gradients = overflowing
    return scale


@on_device
def test_an_overflow_skips_the_update_and_halves_the_scale():
    t, notes, record = trainer(steps=6, log_every=1, dtype="float16"), Notes(), FunctionRecord()
    scale = overflow_at(t, 1, 4)
    before = to_host(t.optimizer.weight).copy()
    first = t.gradients

    def watched():
        if t.result.step == 1:  # the first update was skipped: nothing may have moved
            assert to_host(t.optimizer.weight).tobytes() == before.tobytes() and t.optimizer.n_steps == 0
        return first()

    t.gradients = watched
    result = t.run(notes, record)
    assert result.step == 6 and result.n_skipped == 0 and t.optimizer.n_steps == 4
    assert scale.state_dict() == {"scale": 2.0**14, "growth_interval": 2000, "n_good": 2, "n_overflows": 2}
    first_note = "step 1: gradients overflow float16 at loss scale 65536, update skipped, 1 so far; the scale is now 32768"
    assert notes.notes[0] == first_note and notes.notes[1].startswith("first loss ") and math.isfinite(result.first_loss_nats)
    logged = {line["step"]: (line["loss_scale"], line["n_overflows"]) for line in record.lines if "loss_scale" in line}
    assert logged == {2: (2.0**15, 1), 3: (2.0**15, 1), 5: (2.0**14, 2), 6: (2.0**14, 2)}
    plain = FunctionRecord()
    trainer(steps=2).run(Notes(), plain)
    assert not any("loss_scale" in line for line in plain.lines)


@on_device
def test_a_scale_far_too_high_comes_down_by_itself():
    t = trainer(steps=20, dtype="float16")
    t.loss_scale = DynamicLossScale(2.0**24)
    result = t.run(Notes())
    assert 0 < t.loss_scale.n_overflows < 15 and t.loss_scale.scale == 2.0**24 / 2**t.loss_scale.n_overflows
    assert result.step == 20 and t.optimizer.n_steps == 20 - t.loss_scale.n_overflows


@on_device
def test_what_no_scale_helps_is_a_failure_with_its_diagnosis():
    t, notes = trainer(steps=50, dtype="float16"), Notes()
    overflow_at(t, *range(3, 50))
    with pytest.raises(
        FloatingPointError, match=r"step 19: loss \d.*, gradient norm inf .*likely cause: the range of float16: try bfloat16 or float32"
    ):
        t.run(notes)
    assert t.loss_scale.scale == 1 and t.loss_scale.n_overflows == 16
    t = trainer(steps=5, dtype="float16")
    t.model.ln_f.weight.data[2] = np.inf  # then the loss is not finite either
    with pytest.raises(FloatingPointError, match=r"step 1: loss nan.*the weights themselves are not finite"):
        t.run(Notes())
    assert t.loss_scale.n_overflows == 0


@on_device
@pytest.mark.exact
@pytest.mark.parametrize("stop_at", [2, 5])
def test_resumed_in_the_middle_is_uninterrupted(tmp_path, stop_at):
    def make(**changes):
        t = trainer(steps=9, eval_every=3, log_every=1, dtype="float16", **changes)
        t.loss_scale.growth_interval = 2
        overflow_at(t, 4)
        return t

    complete, part = make(), make(stop_at=stop_at)
    for t, folder in ((complete, "complete"), (part, "parts")):
        saver(new_run(tmp_path / folder), t)[0].train(t, Notes())
    rest = make(seed=1)
    load_training(checkpoint_directory(tmp_path / "parts", "last"), rest)
    assert rest.result.step == stop_at and rest.loss_scale.state_dict() == part.loss_scale.state_dict()
    saver(tmp_path / "parts", rest)[0].train(rest, Notes())
    assert state(rest) == state(complete) and rest.loss_scale.state_dict() == complete.loss_scale.state_dict()
    assert complete.loss_scale.scale > 2.0**16 and complete.loss_scale.n_overflows >= 1  # it has moved in both directions


@on_device
def test_a_run_that_was_in_float32_gets_a_scale_of_its_own(tmp_path):
    t = trainer(steps=2)
    saver(new_run(tmp_path / "run"), t)[0].train(t, Notes())
    again = trainer(steps=4, dtype="float16")
    load_training(checkpoint_directory(tmp_path / "run", "last"), again)
    assert again.loss_scale.state_dict() == DynamicLossScale().state_dict()


@numpy_only
def test_float16_is_refused_before_training():
    reason = r"dtype: float16, expected float32 on the numpy backend, because NumPy has no float16 arithmetic"
    with pytest.raises(InvalidInput, match=reason):  # what scripts print in one line
        trainer(dtype="float16")
