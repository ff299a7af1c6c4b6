"""Ops between ranks, with ranks in threads: what a group computes is what one process computes."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import autograd as ag
from autograd.backend import to_host
from autograd.testing import check_grads
from tests.autograd.checks import assert_close, tensor
from tests.strategies import seeds
from tinygpt.parallel.communicator import OneRank, run_ranks


def part(length, group):
    return slice(length * group.rank // group.size, length * (group.rank + 1) // group.size)


@given(seed=seeds, n=st.integers(1, 4), hidden=st.integers(4, 9), dtype=st.sampled_from(["float32", "float64"]))
@settings(max_examples=15)
def test_columns_then_rows_are_the_two_layers(seed, n, hidden, dtype):
    """Each rank has some hidden units. Values, and gradients of what all ranks hold and of what is divided, are those of one process."""
    rng = np.random.default_rng(seed)
    x, a, b, bias, dy = (rng.standard_normal(shape).astype(dtype) for shape in ((3, 5), (5, hidden), (hidden, 2), 2, (3, 2)))

    def program(group):
        own = part(hidden, group)
        tensors = [tensor(array) for array in (x, a[:, own], b[own], bias)]
        h = ag.tanh(ag.copy_to_group(tensors[0] * tensors[0], group) @ tensors[1])
        y = ag.sum_over_group(h @ tensors[2], group) + tensors[3]
        y.backward(dy)
        return [y.data, *(t.grad for t in tensors)]

    expected, ranks = program(OneRank()), run_ranks(n, program)
    for found in ranks:
        for i in (0, 1, 4):  # y, dx and dbias are everywhere, in the same bits
            assert_close(found[i], to_host(expected[i]))
            assert to_host(found[i]).tobytes() == to_host(ranks[0][i]).tobytes()
    assert_close(np.concatenate([to_host(found[2]) for found in ranks], axis=1), to_host(expected[2]))
    assert_close(np.concatenate([to_host(found[3]) for found in ranks], axis=0), to_host(expected[3]))


@given(
    seed=seeds, n=st.integers(1, 4), n_classes=st.integers(4, 30), chunk=st.sampled_from([1, 3, 1024]), cap=st.sampled_from([0.0, 1.5]),
    z_loss=st.sampled_from([0.0, 0.1]), label_smoothing=st.sampled_from([0.0, 0.1]), dtype=st.sampled_from(["float32", "float64"]),
)  # fmt: skip
@settings(max_examples=25)
def test_a_split_vocabulary_gives_the_loss_of_all_of_it(seed, n, n_classes, chunk, cap, z_loss, label_smoothing, dtype):
    rng = np.random.default_rng(seed)
    x, weight = 3 * rng.standard_normal((2, 4, 6)).astype(dtype), rng.standard_normal((n_classes, 6)).astype(dtype)
    targets = rng.integers(0, n_classes, (2, 4))
    targets[rng.random((2, 4)) < 0.3] = -100
    targets[0, 0] = n_classes - 1
    options = {"softcap": cap, "z_loss": z_loss, "label_smoothing": label_smoothing, "chunk": chunk}
    tx, tw = tensor(x), tensor(weight)
    loss = ag.linear_cross_entropy(tx, tw, targets, **options)
    (loss * 3.0).backward()

    def program(group):
        mine, own = tensor(x), tensor(weight[part(n_classes, group)])
        split = ag.split_linear_cross_entropy(mine, own, targets, group, n_classes=n_classes, **options)
        (split * 3.0).backward()
        return split.data, mine.grad, own.grad

    ranks = run_ranks(n, program)
    for found in ranks:
        assert_close(found[0], to_host(loss.data))
        assert_close(found[1], to_host(tx.grad))
        assert to_host(found[0]).tobytes() == to_host(ranks[0][0]).tobytes()
    assert_close(np.concatenate([to_host(found[2]) for found in ranks]), to_host(tw.grad))


def test_gradients_of_three_ranks():
    """The check moves x on all ranks at once: the direct check of a sum over ranks."""
    rng = np.random.default_rng(0)
    x, weight, targets = rng.standard_normal((4, 3)), rng.standard_normal((7, 3)), np.array([0, 6, -100, 3])
    options = {"n_classes": 7, "z_loss": 0.1, "label_smoothing": 0.1, "softcap": 2.0}

    def program(group):
        own = weight[part(7, group)]
        check_grads(lambda x: ag.split_linear_cross_entropy(x, own, targets, group, **options), x)
        check_grads(lambda x: ag.sum_over_group(ag.copy_to_group(x, group) * (group.rank + 1.0), group), x)
        with pytest.raises(AssertionError, match="check_grads"):  # without the copy: the own part of the gradient alone
            check_grads(lambda x: ag.sum_over_group(x * (group.rank + 1.0), group), x)

    run_ranks(3, program)


class Counting(OneRank):
    """Counts the numbers that are sent."""

    def __init__(self, group):
        self.group, self.rank, self.size, self.sent = group, group.rank, group.size, []

    def all_reduce(self, array):
        self.sent.append(array.size)
        self.group.all_reduce(array)

    def all_gather(self, own, out, lengths):
        self.sent.append(own.size)
        self.group.all_gather(own, out, lengths)


def test_no_logits_are_sent():
    """Four numbers per row forward, C per row backward; without a gradient no more than the first."""

    def program(group):
        counting, x = Counting(group), tensor(np.ones((6, 3)))
        own = tensor(np.ones((500, 3)))
        with ag.no_grad():
            ag.split_linear_cross_entropy(x, own, [0, 1, 2, 3, 4, 999], counting, n_classes=1000)
        ag.split_linear_cross_entropy(x, own, [0, 1, 2, 3, 4, 999], counting, n_classes=1000).backward()
        return counting.sent

    assert run_ranks(2, program) == [[24, 24, 18]] * 2


def test_one_rank_sends_nothing():
    group, x = Counting(OneRank()), tensor(np.ones(3))
    ag.sum_over_group(ag.copy_to_group(x, group), group).backward(np.ones(3))
    assert group.sent == [] and x.grad.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((4, 2), {"n_classes": 7}, "weight of shape (4, 2) on rank 0 of 1, expected (7, 3), rows 0 to 6 of 7; split it by rows"),
        ((7, 3), {"n_classes": 7, "softcap": -1.0}, "softcap -1.0, expected a positive number, or 0 for no bound"),
        ((7, 3), {"n_classes": 7, "chunk": 0}, "chunk 0, expected at least 1; it counts rows"),
        ((7, 3), {"n_classes": 7, "z_loss": -1.0}, "z_loss -1.0, expected a finite number >= 0"),
        ((6, 3), {"n_classes": 6}, "target: 6"),
    ],
)
def test_what_does_not_fit_is_named(shape, options, message):
    with pytest.raises(ValueError, match=f"split_linear_cross_entropy.*{re.escape(message)}"):
        ag.split_linear_cross_entropy(tensor(np.ones((2, 3))), tensor(np.ones(shape)), [0, 6], OneRank(), **options)


def test_more_ranks_than_classes():
    def program(group):
        ag.split_linear_cross_entropy(tensor(np.ones((1, 3))), tensor(np.ones((group.rank, 3))), [0], group, n_classes=1)

    with pytest.raises(ValueError, match=r"weight of shape \(0, 3\) on rank 0 of 2, expected \(1, 3\)"):
        run_ranks(2, program)
