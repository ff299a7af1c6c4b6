"""Laws and errors of the two losses."""

import math
import sys
import tracemalloc
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import autograd as ag
from autograd.backend import to_host
from autograd.ops.loss import LinearCrossEntropy
from tests.autograd.checks import assert_close, numpy_only, takes_fast_path, tensor
from tests.strategies import seeds

pytestmark = pytest.mark.usefixtures("each_kernel_mode")

N = st.integers(1, 33)
NEEDS = [(True, False), (False, True), (True, True)]
SMOOTHING = st.sampled_from([0.0, 0.1, 0.5])
Z_LOSS = st.sampled_from([0.0, 1e-4, 0.2])


def drawn(seed, n, n_classes, share_ignored=0.4):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, n_classes, n)
    targets[1:][rng.random(n - 1) < share_ignored] = -100
    return 3 * rng.standard_normal((n, n_classes)), targets


@given(seed=seeds, n=N, n_classes=N, label_smoothing=SMOOTHING)
def test_gradient_rows_sum_to_zero_and_ignored_ones_are_zero(seed, n, n_classes, label_smoothing):
    array, targets = drawn(seed, n, n_classes)
    logits = tensor(array)
    ag.cross_entropy(logits, targets, label_smoothing=label_smoothing).backward()
    dz = to_host(logits.grad)
    assert_close(dz.sum(axis=1), np.zeros(n))
    assert (dz[targets == -100] == 0).all()
    if n_classes > 1:
        assert (dz[targets != -100] != 0).all()


@given(seed=seeds, n=N, n_classes=N, label_smoothing=SMOOTHING, z_loss=Z_LOSS)
def test_ignored_rows_count_for_nothing(seed, n, n_classes, label_smoothing, z_loss):
    array, targets = drawn(seed, n, n_classes)
    counted, options = targets != -100, {"label_smoothing": label_smoothing, "z_loss": z_loss}
    loss = ag.cross_entropy(tensor(array), targets, **options)
    assert_close(loss.data, to_host(ag.cross_entropy(tensor(array[counted]), targets[counted], **options).data))


@given(seed=seeds, n=N, n_classes=N, label_smoothing=SMOOTHING)
def test_z_loss_is_the_mean_square_of_the_log_of_the_sum_of_exp(seed, n, n_classes, label_smoothing):
    array, targets = drawn(seed, n, n_classes)
    counted, results = targets != -100, []
    for fused in (True, False):
        z = tensor(array)
        if fused:
            loss = ag.cross_entropy(z, targets, label_smoothing=label_smoothing, z_loss=0.2)
        else:
            lse = ag.logsumexp(z[np.flatnonzero(counted)], axis=-1)
            loss = ag.cross_entropy(z, targets, label_smoothing=label_smoothing) + 0.2 * (lse * lse).mean()
        loss.backward()
        results.append([to_host(loss.data), to_host(z.grad)])
    for found, expected in zip(*results, strict=True):
        assert_close(found, expected)


def test_z_loss_pulls_the_sum_of_exp_to_one():
    logits = np.log([[1.0, 2.0, 5.0]]) - math.log(8)  # lse is 0: nothing to pull
    for shift, direction in ((0.0, 0), (2.0, 1), (-2.0, -1)):
        z = tensor(logits + shift)
        ag.cross_entropy(z, [2], z_loss=0.1).backward()
        assert_close(np.array(to_host(z.grad).sum()), 2 * 0.1 * shift)  # a shift of all scores leaves the cross-entropy as it is
        assert np.sign(np.round(to_host(z.grad).sum(), 12)) == direction


@pytest.mark.exact
@pytest.mark.parametrize("options", [{}, {"softcap": 2.0}, {"label_smoothing": 0.1}])
def test_without_z_loss_the_bits_are_those_of_before(options):
    """The formulas as they were: ln of the total minus the target's score, and shares of exp over the total."""
    rng = np.random.default_rng(0)
    x, weight, targets = rng.standard_normal((9, 4)).astype("f4"), rng.standard_normal((6, 4)).astype("f4"), rng.integers(0, 6, 9)
    found = []
    for more in ({}, {"z_loss": 0.0}, {"z_loss": 0}):
        tensors = tensor(x), tensor(weight)
        loss = ag.linear_cross_entropy(*tensors, targets, **options, **more)
        loss.backward()
        found.append([to_host(a).tobytes() for a in (loss.data, *(t.grad for t in tensors))])
    assert found[0] == found[1] == found[2]
    if not options:
        shifted = x @ weight.T
        shifted = shifted - shifted.max(axis=1, keepdims=True)
        losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(9), targets]
        assert np.float32(losses.sum() / 9).tobytes() == found[0][0]


@given(
    seed=seeds, n=N, n_classes=N, label_smoothing=SMOOTHING, z_loss=Z_LOSS, chunk=st.sampled_from([1, 5, 32, 1024]),
    cap=st.sampled_from([0, 0.5, 30.0]), biased=st.booleans(),
)  # fmt: skip
def test_linear_cross_entropy_is_cross_entropy_of_the_product(seed, n, n_classes, label_smoothing, z_loss, chunk, cap, biased):
    """With a bias, of the sum; with a softcap, of the capped product."""
    _, targets = drawn(seed, n, n_classes)
    rng = np.random.default_rng(seed)
    x, weight, bias = rng.standard_normal((n, 5)), rng.standard_normal((n_classes, 5)), rng.standard_normal(n_classes)
    results, options = [], {"label_smoothing": label_smoothing, "z_loss": z_loss}
    for fused in (False, True):
        tx, tw, tb = tensor(x), tensor(weight), tensor(bias)
        if fused:
            loss = ag.linear_cross_entropy(tx, tw, targets, tb if biased else None, chunk=chunk, softcap=cap, **options)
        else:
            logits = tx @ tw.T + tb if biased else tx @ tw.T
            loss = ag.cross_entropy(ag.soft_cap(logits, cap) if cap else logits, targets, **options)
        (2 * loss).backward()
        results.append([to_host(a) for a in (loss.data, tx.grad, tw.grad, *([tb.grad] if biased else []))])
    for plain, fused in zip(*results, strict=True):
        assert_close(fused, plain)
    assert (results[1][1][targets == -100] == 0).all()


@numpy_only
@pytest.mark.parametrize(
    "options", [{"softcap": 30.0}, {"z_loss": 1e-4}, {"label_smoothing": 0.1}, {"softcap": 30.0, "z_loss": 1e-4, "label_smoothing": 0.1}]
)
def test_the_fast_path_takes_all_options(options):
    from autograd.kernels.cpu.loss import LinearCrossEntropyBlocked

    x, weight = tensor(np.ones((3, 2), np.float32)), tensor(np.ones((4, 2), np.float32))
    with ag.use_kernels("fast"), takes_fast_path(LinearCrossEntropyBlocked):
        ag.linear_cross_entropy(x, weight, [0, 1, 2], **options)


@pytest.mark.parametrize("needs", NEEDS[:2])
def test_linear_cross_entropy_with_a_frozen_input(needs):
    array, targets = drawn(0, 9, 6)
    x, weight = tensor(array[:, :4], needs[0]), tensor(array[:6, :4], needs[1])
    ag.linear_cross_entropy(x, weight, targets, chunk=4).backward()
    assert (x.grad is not None, weight.grad is not None) == needs


@numpy_only
@given(
    seed=seeds, n=N, n_classes=st.integers(2, 20), rows=st.integers(0, 5), columns=st.integers(1, 7),
    needs=st.sampled_from([(*two, one) for two in NEEDS for one in (True, False)]), smoothing=SMOOTHING,
)  # fmt: skip
def test_pieces_of_logits_add_up_to_the_whole(seed, n, n_classes, rows, columns, needs, smoothing):
    """With pieces of a few rows and blocks of a few columns, as real sizes have them."""
    from autograd.kernels.cpu import loss as cpu_loss

    array, targets = drawn(seed, n, n_classes + 3)
    targets %= n_classes
    rng = np.random.default_rng(seed)
    x, w = array[:, :3], rng.standard_normal((n_classes, 3))
    results = []
    for mode in ("reference", "fast"):
        with ag.use_kernels(mode), patch.multiple(cpu_loss, _LOGITS_BYTES=rows * n_classes * 8, _VOCABULARY_BLOCK=columns):
            tx, tw, tb = tensor(x, needs[0]), tensor(w, needs[1]), tensor(w[:, 0], needs[2])
            loss = ag.linear_cross_entropy(tx, tw, targets, tb, label_smoothing=smoothing)
            loss.backward()
            results.append([loss.data, tx.grad, tw.grad, tb.grad])
    for found, expected in zip(*results, strict=True):
        assert (found is None) == (expected is None)
        if expected is not None:
            assert_close(found, to_host(expected))


@numpy_only
@pytest.mark.exact
def test_pieces_of_logits_do_not_depend_on_what_needs_a_gradient(monkeypatch):
    from autograd.kernels.cpu import loss as cpu_loss

    monkeypatch.setattr(cpu_loss, "_LOGITS_BYTES", 4 * 9 * 70)  # 9 rows
    rng = np.random.default_rng(0)
    arrays, targets = [rng.standard_normal(shape).astype("f4") for shape in ((50, 300), (70, 300))], rng.integers(0, 70, 50)
    found = {}
    for needs in [(True, True), (True, False), (False, True), (False, False)]:
        x, weight = (ag.Tensor(a, requires_grad=need) for a, need in zip(arrays, needs, strict=True))
        with ag.use_kernels("fast"):
            loss = ag.linear_cross_entropy(x, weight, targets)
            if any(needs):
                loss.backward()
        found[needs] = [loss.item(), *(None if t.grad is None else t.grad.tobytes() for t in (x, weight))]
    for needs, values in found.items():
        assert values == [v if need else None for v, need in zip(found[True, True], (True, *needs), strict=True)]


@numpy_only
def test_logits_take_no_more_than_their_budget(monkeypatch):
    from autograd.kernels.cpu import loss as cpu_loss

    n, v = 64, 50_000
    budget = 8 * v * 4  # 8 rows
    monkeypatch.setattr(cpu_loss, "_LOGITS_BYTES", budget)
    x, weight = (ag.Tensor(np.ones(shape, np.float32), requires_grad=True) for shape in ((n, 1), (v, 1)))
    with ag.use_kernels("fast"):
        ag.linear_cross_entropy(x, weight, np.zeros(n, np.int64))  # the first call fills caches
        tracemalloc.start()
        ag.linear_cross_entropy(x, weight, np.zeros(n, np.int64))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert budget < peak < 1.6 * budget


def test_uniform_logits_cost_the_log_of_the_classes():
    assert_close(ag.cross_entropy(tensor(np.zeros((3, 7))), [0, 3, 6]).data, np.log(7.0))
    assert_close(ag.linear_cross_entropy(tensor(np.zeros((3, 2))), tensor(np.ones((7, 2))), [0, 3, 6]).data, np.log(7.0))


def test_shifted_logits_cost_the_same_and_large_ones_do_not_overflow():
    logits, targets = drawn(0, 5, 7)
    assert_close(ag.cross_entropy(tensor(logits + 1000.0), targets).data, to_host(ag.cross_entropy(tensor(logits), targets).data))
    assert ag.cross_entropy(tensor([[1e4, -1e4]]), [1]).item() == 2e4
    assert ag.cross_entropy(tensor([[1e4, -1e4]]), [0]).item() == 0.0


def test_smoothing_is_a_mixture():
    logits, targets = drawn(0, 5, 4, share_ignored=0)
    hard = ag.cross_entropy(tensor(logits), targets).item()
    every = np.mean([ag.cross_entropy(tensor(logits), np.full(5, c)).item() for c in range(4)])
    assert math.isclose(ag.cross_entropy(tensor(logits), targets, label_smoothing=0.3).item(), 0.7 * hard + 0.3 * every, rel_tol=1e-12)


def test_the_smoothed_loss_is_least_where_p_is_w():
    """And there it is the entropy of w."""
    w = np.array([[0.05, 0.85, 0.05, 0.05]])
    z = tensor(np.log(w) + 3)
    loss = ag.cross_entropy(z, [1], label_smoothing=0.2)
    loss.backward()
    assert_close(loss.data, np.array(-(w * np.log(w)).sum()))
    assert_close(z.grad, np.zeros((1, 4)))


def test_leading_axes_are_rows():
    logits, targets = drawn(0, 12, 5)
    flat = ag.cross_entropy(tensor(logits), targets).item()
    assert ag.cross_entropy(tensor(logits.reshape(3, 4, 5)), targets.reshape(3, 4)).item() == flat
    assert ag.cross_entropy(tensor(logits[0]), targets[0]).shape == ()


def test_ignore_index_may_be_a_class():
    logits, _ = drawn(0, 3, 5)
    assert_close(ag.cross_entropy(tensor(logits), [0, 2, 0], ignore_index=0).data, to_host(ag.cross_entropy(tensor(logits[1:2]), [2]).data))


def test_no_grad_forms_no_gradient(monkeypatch):
    x, weight = tensor(np.ones((4, 3))), tensor(np.ones((5, 3)))
    monkeypatch.setattr(sys.modules[LinearCrossEntropy.__module__], "_minus_target", None)  # where the definition begins with it
    with ag.no_grad():
        loss = ag.linear_cross_entropy(x, weight, [0, 1, 2, 3])
    assert not loss.requires_grad and loss.is_leaf


def both(message, call_plain, call_fused):
    return [(message, call_plain), (message.replace("cross_entropy", "linear_cross_entropy"), call_fused)]


Z, X, W = np.ones((2, 3)), np.ones((2, 4)), np.ones((3, 4))


def losses(targets, **options):
    return (
        lambda: ag.cross_entropy(tensor(Z), targets, **options),
        lambda: ag.linear_cross_entropy(tensor(X), tensor(W), targets, **options),
    )


@pytest.mark.parametrize(
    ("message", "call"),
    [
        *both(r"cross_entropy target: 3 at position \(1,\), expected 0 <= id < 3 or -100 \(ignored\)", *losses([0, 3])),
        *both(r"cross_entropy target: -1 at position \(0,\), expected 0 <= id < 3 or -100 \(ignored\)", *losses([-1, 0])),
        *both(r"cross_entropy: targets of shape \(3,\), expected \(2,\); one target per row", *losses([0, 1, 2])),
        *both(r"cross_entropy: targets of shape \(2, 1\), expected \(2,\)", *losses([[0], [1]])),
        *both(r"cross_entropy: none of 2 targets counts, expected at least one that is not -1 \(ignored\); is everything masked",
              *losses([-1, -1], ignore_index=-1)),
        *both(r"cross_entropy: label_smoothing 1.0, expected 0 <= label_smoothing < 1; 0 switches it off", *losses([0, 1], label_smoothing=1.0)),
        *both(r"cross_entropy: label_smoothing -0.1", *losses([0, 1], label_smoothing=-0.1)),
        *both(r"cross_entropy: z_loss -1, expected a finite number >= 0; 0 switches it off, PaLM took 1e-4", *losses([0, 1], z_loss=-1)),
        *both(r"cross_entropy: z_loss inf, expected a finite number", *losses([0, 1], z_loss=math.inf)),
        (r"cross_entropy: none of 0 targets counts", lambda: ag.cross_entropy(tensor(Z[:0]), [])),
        (r"cross_entropy: logits of shape \(\), expected \(..., V\); one score per class", lambda: ag.cross_entropy(tensor(1.0), 0)),
        (r"linear_cross_entropy: x \(2, 4\) with weight \(4, 3\), expected \(..., C\) with \(V, C\); transpose it",
         lambda: ag.linear_cross_entropy(tensor(X), tensor(W.T), [0, 1])),
        (r"linear_cross_entropy: bias \(4,\) with weight \(3, 4\), expected \(3,\); one per class",
         lambda: ag.linear_cross_entropy(tensor(X), tensor(W), [0, 1], tensor(np.ones(4)))),
        (r"linear_cross_entropy: softcap -1, expected a positive number, or 0 for no bound",
         lambda: ag.linear_cross_entropy(tensor(X), tensor(W), [0, 1], softcap=-1)),
        (r"linear_cross_entropy: chunk 0, expected at least 1; it counts rows",
         lambda: ag.linear_cross_entropy(tensor(X), tensor(W), [0, 1], chunk=0)),
    ],
)  # fmt: skip
def test_errors(message, call):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("message", "call"),
    [
        *both(r"cross_entropy target: float64 values, expected integers; convert with .astype\(int\)", *losses([0.0, 1.0])),
        *both(r"cross_entropy: targets as a Tensor, expected host integers; pass the NumPy array itself", *losses(ag.Tensor([0, 1]))),
    ],
)
def test_targets_that_are_no_integers(message, call):
    with pytest.raises(TypeError, match=message):
        call()
