"""Memory that ranks of one machine share: where there is no room for it, they do without. Its laws under MPI: test_ranks.py."""

import os
import sys

import numpy as np
import pytest

from autograd.optim import AdamW
from tests.tinygpt.helpers import tiny
from tests.tinygpt.mpi_helpers import ranks_of_cpus
from tinygpt import GPT
from tinygpt.parallel.communicator import OneRank, run_ranks
from tinygpt.parallel.shared import Buffers, open_window, shared_file

pytestmark = ranks_of_cpus

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/shm is Linux's")


class Here(OneRank):
    """Two ranks of one machine, of which this is one; what `share` finds is given."""

    size = here = 2

    def __init__(self, room):
        self.room, self.closed = room, []

    def share(self, size, dtype):
        return open_window(OneRank(), size, dtype, lambda what: None) if self.room else None

    def close(self, window):
        self.closed.append(window)


@linux
def test_rows_are_one_memory_and_leave_no_file():
    before = set(os.listdir("/dev/shm"))  # noqa: PTH208

    def program(ranks):
        window = open_window(ranks, 5, np.dtype("float32"), lambda what: ranks.agree(0))
        window.own[...] = ranks.rank + 1
        window.all_reduce(slice(1, 4))
        return window.rows.tolist(), window.others_bytes

    found = run_ranks(3, program)
    assert found == [([[1, 6, 6, 6, 1], [2, 6, 6, 6, 2], [3, 6, 6, 6, 3]], 20 * 2 // 3)] * 3
    assert not {name for name in set(os.listdir("/dev/shm")) - before if name.startswith("tinygpt-")}  # noqa: PTH208


@linux
def test_no_room_for_a_window(monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tinygpt.parallel.shared.os.posix_fallocate", full)
    assert run_ranks(2, lambda ranks: open_window(ranks, 5, np.dtype("float32"), print)) == [None, None]
    with (
        pytest.raises(RuntimeError, match=r"replica: no room for 10 bytes of shared memory .*No space left.*train with --processes 1"),
        shared_file(10),
    ):
        pass


@linux
def test_an_optimizers_buffers_are_moved_once():
    """The gradients; the weights where ranks exchange them; those of another optimizer instead, when there is a new one."""
    ranks, model = Here(room=True), GPT(tiny(), seed=0)
    buffers, optimizer = Buffers(ranks), AdamW(model)
    before = optimizer.weight.copy()
    assert buffers.move(optimizer, weights=False) == "" and not np.shares_memory(optimizer.weight, optimizer.gradient)
    gradient = optimizer.gradient
    assert buffers.others_bytes == 0  # of a window of one rank
    model.loss(np.zeros((1, 4), int), np.ones((1, 4), int)).backward()
    assert buffers.move(optimizer, weights=False) == "" and optimizer.gradient is gradient and optimizer.gradient_norm() > 0
    optimizer.step()
    again = AdamW(model)
    assert buffers.move(again, weights=True) == "" and len(ranks.closed) == 1 and len(buffers._windows) == 2
    np.testing.assert_array_equal(again.weight, optimizer.weight)
    assert abs(again.weight - before).max() > 0 and model.parameters()[0].data.base is not None


def test_no_room_for_an_optimizers_buffers():
    optimizer = AdamW(GPT(tiny(), seed=0))
    gradient = optimizer.gradient
    said = Buffers(Here(room=False)).move(optimizer, weights=True)
    assert said.startswith(f"no room for {2 * gradient.nbytes:,} bytes in /dev/shm: ranks send their gradients")
    assert optimizer.gradient is gradient
    assert Buffers(OneRank()).move(optimizer, weights=True) == ""
