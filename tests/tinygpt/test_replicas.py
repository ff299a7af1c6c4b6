"""Replicas: the same update as one process makes, whoever computes which rows; and processes that never outlive their work."""

import dataclasses
import io
import os
import queue
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from autograd import backend
from autograd.optim import AdamW
from autograd.threads import n_threads
from tests.autograd.checks import numpy_only
from tests.tinygpt.helpers import TOKENS, Notes
from tinygpt import GPT, GPTConfig, TrainConfig
from tinygpt.data.windows import IGNORED, Windows
from tinygpt.finetuning.common import set_trainable
from tinygpt.parallel import local as replicas
from tinygpt.parallel.local import Replicas, n_processes, split, workers_for
from tinygpt.parallel.replica import _receive, read_message, write_message
from tinygpt.training.step import Shard, accumulate
from tinygpt.training.trainer import Trainer

pytestmark = numpy_only

SHAPE = GPTConfig(n_layer=2, n_head=2, n_embd=16, n_positions=8, vocab_size=11, dropout=0.1)


def trainer(model=None, **changes):
    config = TrainConfig(**{"steps": 12, "lr": 1e-2, "warmup_steps": 3, "micro_batch": 6, "eval_every": 100, **changes})
    model = model or GPT(SHAPE)
    return Trainer(model, config, Windows(TOKENS, 8, 3), None, workers_for(model, config))


def alone(model, optimizer, batches, shares):
    """(loss, gradients) of one process, from the dropout masks that come next; they are drawn again by whoever is next."""
    stream = model.dropout_stream
    draw = stream.counter
    optimizer.zero_grad()
    loss = accumulate(model, [Shard(batch, share) for batch, share in zip(batches, shares, strict=True)])
    stream.counter = draw
    gradient = optimizer.gradient.copy()
    optimizer.zero_grad()
    return float(loss), gradient


LLAMA = {"norm": "rms", "positions": "rotary", "rope_scaling": {"rope_type": "linear", "factor": 2.0}, "n_kv_head": 1, "activation": "silu"}
LLAMA |= {"gated": True, "n_inner": 24, "window": 3, "window_pattern": "SL", "logit_softcap": 9.0}


@pytest.fixture(scope="module", params=[{}, LLAMA], ids=["gpt2", "llama"])
def three(request):
    model = GPT(dataclasses.replace(SHAPE, **request.param)).train()
    optimizer = AdamW(model)
    copies = Replicas(model, optimizer, 3)
    yield copies
    copies.close()


@st.composite
def batches(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    found = []
    for _ in range(draw(st.integers(1, 3))):
        rows, length = draw(st.integers(3, 9)), draw(st.integers(1, 8))
        ids, targets = rng.integers(0, 11, (2, rows, length))
        targets[rng.random(targets.shape) < 0.3] = IGNORED
        targets[:, -1] = 1  # something to learn in every row
        found.append((ids, targets))
    return found


@settings(max_examples=25, deadline=None)
@given(batches=batches())
def test_loss_and_gradients_are_those_of_one_process(three, batches):
    shares = [0.25 * (i + 1) for i in range(len(batches))]
    loss, gradient = alone(three.model, three.optimizer, batches, shares)
    assert three.can_split(batches)
    assert float(three.gradients(batches, shares)) == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(three.optimizer.gradient, gradient, atol=1e-6 * max(1, np.abs(gradient).max()))
    three.optimizer.step()  # other weights for the next example: the copies follow them


@settings(deadline=None)
@given(rows=st.integers(1, 40), n=st.integers(1, 8))
def test_parts_are_the_batch_and_as_equal_as_can_be(rows, n):
    batch = (np.arange(rows), np.arange(rows) + 100, None)
    parts = split(batch, n)
    assert len(parts) == n and all(len(ids) in (rows // n, -(-rows // n)) for _, (ids, _, _) in parts)
    assert [int(i) for _, (ids, _, _) in parts for i in ids] == list(range(rows))
    assert all(first == (ids[0] if len(ids) else first) and nothing is None for first, (ids, _, nothing) in parts)


def test_what_three_cannot_share_is_left_to_one(three):
    ids = np.ones((3, 4), int)
    nothing_to_learn = np.array([[1, 1, 1, 1], [IGNORED] * 4, [1, 1, 1, 1]])
    assert three.can_split([(ids, ids)])
    assert not three.can_split([(ids, ids), (ids[:2], ids[:2])])
    assert not three.can_split([(ids, nothing_to_learn)])
    backend.debug, before = True, backend.debug
    try:
        assert not three.can_split([(ids, ids)])
    finally:
        backend.debug = before


@pytest.mark.exact
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_is_the_same_with_one_process_and_with_two(optimizer):
    runs = [trainer(processes=n, tokens_per_update=96, optimizer=optimizer) for n in (1, 2, 2)]
    assert [t.processes for t in runs] == [1, 2, 2]
    losses = [[float(t.update()[0]) for _ in range(12)] for t in runs]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    assert runs[1].model.dropout_stream.counter == runs[0].model.dropout_stream.counter > 0
    assert runs[1].result.tokens_seen == runs[0].result.tokens_seen
    assert losses[1] == losses[2] and runs[1].optimizer.weight.tobytes() == runs[2].optimizer.weight.tobytes()
    for t in runs:
        t.close()


def test_several_processes_without_workers_are_refused():
    with pytest.raises(ValueError, match=r"TrainConfig.processes: 2 without workers, expected Trainer\(..., workers=workers_for"):
        Trainer(GPT(SHAPE), TrainConfig(processes=2), Windows(TOKENS, 8), None)


def test_processes_start_with_the_work_and_end_with_it():
    t = trainer(processes=2)
    assert t.workers.replicas is None
    t.run(Notes())
    assert t.workers.replicas.closed and not any(is_running(pid) for pid in t.workers.replicas.pids)


def test_recomputed_blocks_and_padding(three):
    model = GPT(SHAPE).train()
    model.h[1].recompute = True
    two = Replicas(model, AdamW(model), 2)
    rng = np.random.default_rng(0)
    mask = np.arange(6) < rng.integers(1, 7, (5, 1))
    batch = (rng.integers(0, 11, (5, 6)), np.where(mask, 3, IGNORED), mask)
    loss, gradient = alone(model, two.optimizer, [batch], [1.0])
    assert float(two.gradients([batch], [1.0])) == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(two.optimizer.gradient, gradient, atol=1e-6)
    two.close()


@settings(deadline=None)
@given(arrays=st.lists(npst.arrays(st.sampled_from([np.int64, np.float32, np.bool_]), npst.array_shapes(min_side=0)), max_size=4))
def test_messages_arrive_as_they_were_sent(arrays):
    file = io.BytesIO()
    header = {"share": 1 / 3, "names": ["a"]}
    write_message(file, header, arrays)
    write_message(file, {}, ())
    file.seek(0)
    found_header, found = read_message(file)
    assert found_header == header and len(found) == len(arrays)
    assert all(a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype == np.float32) for a, b in zip(arrays, found, strict=True))
    assert read_message(file) == ({}, [])
    with pytest.raises(EOFError):
        read_message(file)


def test_a_message_that_ends_within_its_arrays():
    file = io.BytesIO()
    write_message(file, {}, [np.ones(9)])
    messages = queue.SimpleQueue()
    _receive(io.BytesIO(file.getvalue()[:-1]), messages)
    assert messages.get(False) is None  # the end, not a wait for ever


def test_errors_of_a_replica_arrive_and_end_the_others():
    t = trainer(processes=2)
    t.update()
    bad = np.ones((4, 8), int)
    bad[3, 5] = 99  # in the other process's half
    with pytest.raises(ValueError, match=r"99 at position \(1, 5\), expected 0 <= id < 11"):
        t.workers.replicas.gradients([(bad, bad)], [1.0])
    assert t.workers.replicas.closed
    t.update()  # starts them again
    assert not t.workers.replicas.closed
    t.close()


def test_a_replica_that_is_killed():
    t = trainer(processes=2)
    t.update()
    (pid,) = t.workers.replicas.pids
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=rf"replica: process {pid} ended with -9, expected it to train on; .*--processes 1 if memory"):
        t.update()
    assert t.workers.replicas.closed


ORPHAN = """
import numpy as np, os, signal
from tests.tinygpt.test_replicas import trainer
t = trainer(processes=3)
t.update()
print(*t.workers.replicas.pids, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_replicas_go_when_their_parent_is_killed():
    found = subprocess.run([sys.executable, "-c", ORPHAN], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(Path.cwd())})
    pids = [int(pid) for pid in found.stdout.split()]
    assert len(pids) == 2 and found.returncode == -signal.SIGKILL, found.stderr
    deadline = time.monotonic() + 20
    while any(is_running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_running(pid) for pid in pids)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Mine(GPT):
    pass


@pytest.fixture
def always_two(monkeypatch):
    monkeypatch.setattr(replicas, "_MIN_FLOPS", 0)
    monkeypatch.setattr(replicas, "_MIN_TOKENS", 1)
    monkeypatch.setattr(replicas, "n_threads", lambda: 2)


@pytest.mark.usefixtures("always_two")
def test_a_model_that_cannot_be_copied():
    adapted, frozen = GPT(SHAPE), GPT(SHAPE)
    set_trainable(adapted, "lora")
    frozen.wpe.weight.requires_grad = False
    for model in (Mine(SHAPE), adapted, frozen):
        assert not replicas.can_copy(model)
        t, notes = trainer(model, steps=100, stop_at=1), Notes()
        assert t.processes == 1
        t.run(notes)
        assert [
            n for n in notes.notes if n.startswith("training in one process instead of 2: only a plain GPT whose weights are all trained")
        ]
        with pytest.raises(
            ValueError, match=r"replica: a model with frozen weights or custom layers, expected a plain GPT; .*--processes 1"
        ):
            trainer(model, processes=2).update()
    assert trainer(GPT(SHAPE), steps=100).processes == 2


@pytest.mark.usefixtures("always_two")
def test_where_no_process_can_be_started_one_trains_alone_unless_several_were_asked_for(monkeypatch):
    monkeypatch.setattr(replicas.sys, "executable", "/no/such/python")
    t, notes = trainer(steps=100, stop_at=2), Notes()
    assert t.processes == 2
    t.run(notes)
    assert t.processes == 1
    assert len([note for note in notes.notes if note.startswith("training in one process: replica: ")]) == 1
    with pytest.raises(RuntimeError, match=r"replica: .*/no/such/python.*, expected to start another Python; train with --processes 1"):
        trainer(processes=2).update()


def test_without_room_in_shared_memory_an_ordinary_file_serves_and_without_room_at_all_an_error(monkeypatch):
    def full(file, start, n):
        full.calls += 1
        if full.calls in full.at:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(replicas.os, "posix_fallocate", full, raising=False)
    full.calls, full.at = 0, {1}
    t = trainer(processes=2)
    t.update()
    assert full.calls == 2 and t.optimizer.weight.base is not None
    t.close()
    full.calls, full.at = 0, {1, 2}
    with pytest.raises(RuntimeError, match=r"replica: no room for [\d,]+ bytes .*No space left on device.*expected it; .*--processes 1"):
        trainer(processes=2).update()


def test_the_choice_of_a_number(monkeypatch):
    monkeypatch.setattr(replicas, "n_threads", lambda: 4)

    def n(n_weights=800_000, **changes):
        return n_processes(TrainConfig(**{"micro_batch": 12, "steps": 2000, **changes}), n_weights, 64)

    assert n() == 3  # four rows of 64 tokens each
    assert n(micro_batch=64) == 4 and n(micro_batch=4) == 1
    assert n(124_000_000) == 1  # threads share large products as well
    monkeypatch.setattr(replicas, "n_threads", lambda: 2)
    assert n(124_000_000) == 2 and n(124_000_000, micro_batch=1) == 1
    monkeypatch.setattr(replicas, "n_threads", lambda: 4)
    assert n(5_000) == 1  # over before it is shared out
    assert n(steps=5) == 1
    assert n(steps=5, processes=2) == 2 and n(processes=16) == 12
    monkeypatch.setattr(backend, "name", "cupy")
    assert n() == n(processes=1) == 1
    with pytest.raises(ValueError, match=r"TrainConfig.processes: 2, expected 1 on backend cupy; processes share a CPU's cores"):
        n(processes=2)


def test_each_process_has_its_share_of_the_threads(monkeypatch):
    monkeypatch.setattr(replicas, "n_threads", lambda: 5)
    copies = Replicas(model := GPT(SHAPE), AdamW(model), 2)
    assert copies.n_threads == 2
    copies.close()
    assert n_threads() >= 1
