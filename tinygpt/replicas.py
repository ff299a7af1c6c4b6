"""Data parallelism on a CPU: copies of a model in processes of their own, each of which takes its rows of every batch.

Why processes, where there are threads? Python's threads share one interpreter and meet at its lock after every NumPy call; with small
arrays they mostly wait for each other. Processes meet once per update: they get the weights and their rows, and give back gradients.

    gradient of a batch = sum over its parts of (targets of the part / targets of the batch) * gradient of the part's mean loss

so an update is the same with and without replicas, but for rounding; parts see the dropout masks of the whole batch, too.
Weights and gradients lie in memory that all processes share; rows and losses go through pipes.

Source  synchronous data parallel training: Li et al. 2020, PyTorch Distributed, arXiv:2006.15704, section 2.2.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from autograd import backend, kernel_mode
from autograd.optim import AdamW, lay_out
from autograd.threads import n_threads, use_threads
from tinygpt.config import TrainConfig
from tinygpt.data import count_targets

Batch = tuple[Any, ...]
"""The arguments of a model's `loss`: arrays with one row per item, or None."""

Task = tuple[Batch, float, int]
"""A part of a batch: its rows, how much its mean loss counts, and which row of the batch its first one is."""

_MIN_ROWS = 4
"""Rows that make a process worth it; fewer, and matrices get so thin that the products slow down."""

_MIN_FLOPS, _MAX_WEIGHTS = 500_000_000, 16_000_000
"""An update below the first takes a few milliseconds, less than it takes to meet. Above the second the products take nearly all the
time, threads share them as well, and a copy of all gradients costs memory."""

_MIN_STEPS = 50
"""Starting a process takes about as long as ten updates of a small model."""


def n_processes(config: TrainConfig, n_weights: int, tokens_per_row: int) -> int:
    """How many processes share each micro-batch; 1: no replicas.

    `config.processes`, but never more than rows; where that is 0, one per thread (see `autograd.threads`) if it is faster, else 1.
    n_weights        that are trained
    tokens_per_row   about: the context
    Raises ValueError for several where a device does the work.
    """
    asked, rows = config.processes, config.micro_batch
    if asked > 1 and backend.name != "numpy":
        raise ValueError(f"TrainConfig.processes: {asked}, expected 1 on backend {backend.name}; processes share a CPU's cores")
    if asked:
        return min(asked, rows)
    flops = 6 * n_weights * rows * tokens_per_row
    if backend.name != "numpy" or n_weights > _MAX_WEIGHTS or config.steps < _MIN_STEPS or flops < _MIN_FLOPS:
        return 1
    return max(1, min(n_threads(), rows // _MIN_ROWS))


def accumulate(model: Any, tasks: Sequence[Task]) -> Any:
    """Adds the gradients of all tasks to those of the parameters. Returns the sum of the losses, each times its share."""
    total = 0.0
    for batch, share, first_row in tasks:
        model.dropout_stream.first_row = first_row
        loss = model.loss(*batch)
        if share != 1:
            loss = loss * share
        loss.backward()
        total = total + loss.data
    return total


def split(batch: Batch, n: int) -> list[tuple[int, Batch]]:
    """(first row, rows) of n parts of a batch, as equal as can be."""
    bounds = [len(batch[0]) * i // n for i in range(n + 1)]
    return [(start, tuple(None if array is None else array[start:stop] for array in batch)) for start, stop in pairwise(bounds)]


class Replicas:
    """n - 1 processes with a copy of a model each, beside the model itself, which takes the first rows.

    What is trained follows the model's weights; anything else is copied once, here: change it, and make new replicas.
    Raises RuntimeError where a process cannot be started or cannot take the model.
    """

    def __init__(self, model: Any, optimizer: AdamW, n: int) -> None:
        self.model, self.optimizer = model, optimizer
        self.n_threads = max(1, n_threads() // n)
        with _room(n * optimizer.weight.nbytes) as folder:
            path = Path(folder) / "shared"
            # Row 0: the weights. Row i: the gradients of process i.
            self.shared = np.asarray(np.memmap(path, optimizer.weight.dtype, mode="r+", shape=(n, optimizer.weight.size)))
            copy = pickle.dumps((model, [name for name, _ in optimizer.named]))
            optimizer.move_weights(self.shared[0])
            self._processes = [_Process(self.n_threads) for _ in range(1, n)]
            self._end = weakref.finalize(self, _close, self._processes)
            try:
                for i, process in enumerate(self._processes, start=1):
                    process.send((str(path), str(self.shared.dtype), self.shared.shape, i, copy))
                for process in self._processes:
                    process.receive()  # from here on each holds the file open, so that its name may go
            except BaseException:
                self.close()
                raise

    def gradients(self, batches: Sequence[Batch], shares: Sequence[float]) -> Any:
        """Adds to the parameters' gradients those of the sum of share times mean loss over the batches. Returns that sum.

        Raises whatever a process raised, and RuntimeError if one has ended.
        """
        n = len(self._processes) + 1
        tasks: list[list[Task]] = [[] for _ in range(n)]
        for batch, share in zip(batches, shares, strict=True):
            n_targets = count_targets(batch)
            for mine, (first_row, part) in zip(tasks, split(batch, n), strict=True):
                mine.append((part, share * count_targets(part) / n_targets, first_row))
        stream = self.model.dropout_stream
        try:
            for process, mine in zip(self._processes, tasks[1:], strict=True):
                process.send((mine, self.model.training, stream.seed, stream.draw))
            with use_threads(self.n_threads):
                total = accumulate(self.model, tasks[0])
            for process, gradient in zip(self._processes, self.shared[1:], strict=True):
                total = total + process.receive()
                self.optimizer.gradient += gradient
        except BaseException:  # a process may still be at work: what it answers would be taken for the answer to the next task
            self.close()
            raise
        return total

    def can_take(self, batches: Sequence[Batch]) -> bool:
        """Whether each process would get rows of every batch, with something to learn in them, and would compute as this one does."""
        n = len(self._processes) + 1
        same_mode = not backend.debug and kernel_mode() == backend.kernels
        return same_mode and all(len(batch[0]) >= n and all(count_targets(part) for _, part in split(batch, n)) for batch in batches)

    @property
    def pids(self) -> list[int]:
        """Process numbers of the copies."""
        return [process.popen.pid for process in self._processes]

    def close(self) -> None:
        """Ends the processes. Also done when this object or Python goes."""
        self._end()

    @property
    def closed(self) -> bool:
        return not self._end.alive


class _Process:
    """One replica, seen from outside."""

    def __init__(self, n_threads: int) -> None:
        # Not multiprocessing: it would run the caller's script again in the new process. Not fork: threads do not survive it.
        code = f"import sys; sys.path[:] = {sys.path!r}; from tinygpt.replicas import serve; serve()"
        threads = {"AUTOGRAD_THREADS": str(n_threads), "OPENBLAS_NUM_THREADS": str(n_threads)}
        try:
            self.popen = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | threads,
                start_new_session=True,  # Ctrl-C is for the process that saves, not for this one
            )
        except OSError as error:
            raise RuntimeError(f"replica: {error}, expected to start another Python; train with --processes 1") from error

    def send(self, message: Any) -> None:
        assert self.popen.stdin is not None
        try:
            pickle.dump(message, self.popen.stdin)
            self.popen.stdin.flush()
        except OSError as error:
            raise self._ended() from error

    def receive(self) -> Any:
        assert self.popen.stdout is not None
        try:
            answer = pickle.load(self.popen.stdout)
        except (EOFError, pickle.UnpicklingError) as error:
            raise self._ended() from error
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _ended(self) -> RuntimeError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(timeout=5)
        return RuntimeError(
            f"replica: process {self.popen.pid} ended with {self.popen.returncode}, expected it to train on; "
            "the last checkpoint is kept: go on from it, with --processes 1 if memory was short"
        )


def _close(processes: list[_Process]) -> None:
    for process in processes:
        assert process.popen.stdin is not None and process.popen.stdout is not None
        with contextlib.suppress(OSError):
            process.popen.stdin.close()  # the other side reads the end of its tasks, and goes
        process.popen.stdout.close()
    for process in processes:
        try:
            process.popen.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.popen.kill()
            process.popen.wait()


def _room(n_bytes: int) -> "tempfile.TemporaryDirectory[str]":
    """A temporary folder with a file "shared" of so many bytes: in a place whose files live in memory alone, if there is room.

    Raises RuntimeError without room anywhere; to write into a mapped file without it would end the process.
    """
    errors = []
    for place in ("/dev/shm", tempfile.gettempdir()):
        folder = None
        try:
            folder = tempfile.TemporaryDirectory(prefix="tinygpt-", dir=place, ignore_cleanup_errors=True)
            with (Path(folder.name) / "shared").open("wb") as file:
                file.truncate(n_bytes)
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, n_bytes)
            return folder
        except OSError as error:
            errors.append(str(error))
            if folder is not None:
                folder.cleanup()
    raise RuntimeError(
        f"replica: no room for {n_bytes:,} bytes of shared memory ({'; '.join(errors)}), expected it; train with --processes 1"
    )


# In the other process -----------------------------------------------------------------------------------------------------


def serve() -> None:
    """Computes gradients for the process that started this one, until that goes away."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tasks, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed here must not come between the answers
    work: _Copy | None = None
    while True:
        try:
            message = pickle.load(tasks)
        except EOFError:
            return
        answer: Any = None
        try:
            if work is None:
                work = _Copy(*message)
            else:
                answer = work.gradients(*message)
        except Exception as error:
            answer = _picklable(error)
        try:
            pickle.dump(answer, answers)
            answers.flush()
        except BrokenPipeError:
            return


class _Copy:
    """The model in this process: its weights are read from the shared memory, and its gradients are written there."""

    def __init__(self, path: str, dtype: str, shape: tuple[int, int], row: int, copy: bytes) -> None:
        self.model, names = pickle.loads(copy)
        shared = np.asarray(np.memmap(path, dtype, mode="r+", shape=shape))
        named = dict(self.model.named_parameters())
        self.parameters = [named[name] for name in names]
        self.gradient = shared[row]
        lay_out(self.parameters, shared[0], self.gradient)

    def gradients(self, tasks: Sequence[Task], training: bool, seed: int, draw: int) -> float:
        if self.model.training != training:
            self.model.train(training)
        self.model.dropout_stream.seed, self.model.dropout_stream.draw = seed, draw
        self.gradient[...] = 0  # stays so where a parameter is not used
        for p in self.parameters:
            p.grad = None
        return float(accumulate(self.model, tasks))


def _picklable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"replica: {type(error).__name__}: {error}")
    return error
