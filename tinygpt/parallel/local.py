"""Data parallelism on one machine: several processes hold a copy of the model, and each computes its rows of every batch.

Why processes and not threads? Python's threads contend for the interpreter lock after every NumPy call; with small arrays they mostly
wait. Processes synchronize once per update: each gets the weights and its rows, and returns gradients.

    gradient of a batch = sum over its parts of (targets of the part / targets of the batch) * gradient of the part's mean loss

so an update is the same with and without replicas, up to rounding; each part also gets its rows of the whole batch's dropout masks.
Weights are in shared memory, and so is the gradient: the first process writes its own there, and as soon as those of a block are complete the
next process adds its own to them, while both compute those of the block before. Rows, losses and whose turn it is go through pipes, as JSON and
raw arrays.

Source  synchronous data parallel training: Li et al. 2020, PyTorch Distributed, arXiv:2006.15704, section 2.2.
"""

import builtins
import contextlib
import os
import subprocess
import sys
import weakref
from collections.abc import Sequence
from dataclasses import asdict
from itertools import zip_longest

import numpy as np

from autograd import Array, backend, kernel_mode, nn
from autograd.limits import private_peak_bytes, trim_heap
from autograd.optim import FlatOptimizer
from autograd.threads import n_threads, use_threads
from tinygpt import errors, models
from tinygpt.config import TrainConfig
from tinygpt.data.windows import count_targets
from tinygpt.errors import InvalidInput, ProcessFailed
from tinygpt.models.base import Model
from tinygpt.models.protocols import Batch, Communicator, Trainable
from tinygpt.parallel.communicator import OneRank, check_same, world
from tinygpt.parallel.data import DataParallel, first_with_targets, shards_of, split
from tinygpt.parallel.replica import read_message, write_message
from tinygpt.parallel.shared import on_one_machine, shared_file
from tinygpt.parallel.slices import Slices
from tinygpt.storage.checked_json import Json
from tinygpt.training.step import accumulate

_MIN_TOKENS = 256  # of a micro-batch per process, unless more processes are asked for: with fewer, call overhead dominates
_MIN_STEPS = 50  # starting a process takes about as long as ten updates of a small model
_MIN_FLOPS, _MAX_WEIGHTS = 500_000_000, 16_000_000
"""Below the first, an update takes a few milliseconds, less than synchronizing the processes. Above the second, where products take most of the
time, two processes were measured on two cores: 5 to 10 % faster than two threads. With more cores threads do it."""
_CANNOT_COPY = "replica: a model with frozen weights or custom layers, expected a plain {}; train with --processes 1"


def n_processes(config: TrainConfig, n_weights: int, tokens_per_row: int) -> int:
    """How many processes share each micro-batch; 1: no replicas.

    `config.processes`, at most one per row; if that is 0, one per thread (see `autograd.threads`) where that is faster, else 1.
    n_weights are the trained ones, tokens_per_row approximately the context. Raises ValueError for several processes on a GPU.
    """
    asked, rows = config.processes, config.micro_batch
    if world().size > 1:
        return 1
    if asked > 1 and backend.name != "numpy":
        raise InvalidInput(f"TrainConfig.processes: {asked}, expected 1 on backend {backend.name}; processes share a CPU's cores")
    if asked:
        return min(asked, rows)
    flops = 6 * n_weights * rows * tokens_per_row
    if backend.name != "numpy" or config.steps < _MIN_STEPS or flops < _MIN_FLOPS or (n_weights > _MAX_WEIGHTS and n_threads() > 2):
        return 1
    return max(1, min(n_threads(), rows, rows * tokens_per_row // _MIN_TOKENS))


def can_copy(model: Trainable) -> bool:
    """Whether another process can build the same model from its config: a plain one of `tinygpt.models` whose weights are all trained."""
    if type(model) is not getattr(models, type(model).__name__, None):
        return False
    assert isinstance(model, nn.Module)
    plain = all(type(module).__module__.startswith(("tinygpt.models.", "autograd.nn")) for _, module in model.named_modules())
    return plain and all(p.requires_grad for p in model.parameters())


def _kind(model: Trainable) -> str:
    """What a copy would have to be: the name of the model's class, where copies are made of it, else GPT."""
    return next((c.__name__ for c in type(model).__mro__ if c is getattr(models, c.__name__, None)), "GPT")


def workers_for(model: Trainable, config: TrainConfig) -> "LocalWorkers | DataParallel":
    """Who trains a model: the ranks that `mpiexec` started, else the processes that `n_processes` says, else this process alone, with a note
    that says why, for a model that cannot be copied. Raises ValueError if `config.processes` asks for several and the model cannot be copied,
    the backend is not the CPU's, or there are ranks already, and for fewer rows than ranks."""
    if world().size > 1:
        if config.processes > 1:
            rule = f"expected 0 or 1 with {world().size} ranks of {world().kind}"
            raise InvalidInput(f"TrainConfig.processes: {config.processes}, {rule}; start more ranks instead")
        check_same(world(), {**asdict(config), **vars(model.config)})
        # On one machine new weights need not be sent: then it takes less time, too, if each rank updates its part alone.
        return DataParallel(model, world(), config.micro_batch, shard=config.shard_optimizer or on_one_machine(world()))
    n_weights = sum(p.size for _, p in model.named_parameters() if p.requires_grad)
    n = n_processes(config, n_weights, model.config.n_positions)
    note = "one rank keeps all of the optimizer's state; mpiexec starts more" if config.shard_optimizer else ""
    if n > 1 and not can_copy(model):
        if config.processes > 1:
            raise InvalidInput(_CANNOT_COPY.format(_kind(model)))
        plain = f"only a plain {_kind(model)} whose weights are all trained can be copied to others"
        n, note = 1, f"training in one process instead of {n}: {plain}"
    return LocalWorkers(model, n, may_fail=config.processes == 0, note=note)


class LocalWorkers:
    """n processes of this machine, started by the first update and again by one that comes after `close`. A `GradientWorkers`.

    may_fail   where they cannot be started, this process trains alone and `note` says so; else that is an error
    """

    def __init__(self, model: Trainable, n: int, *, may_fail: bool = False, note: str = "") -> None:
        self.model, self.n, self.may_fail, self.note = model, n, may_fail, note
        self.ranks: Communicator = OneRank()
        self.measuring: Communicator = self.ranks
        self.replicas: Replicas | None = None

    def optimizer_class(self, cls: type[FlatOptimizer]) -> type[FlatOptimizer]:
        return cls

    def gradients(self, optimizer: FlatOptimizer, batches: Sequence[Batch], shares: Sequence[float]) -> Array | None:
        """See `GradientWorkers`; None for one process, and for batches that `Replicas.can_split` refuses."""
        if self.n > 1 and (self.replicas is None or self.replicas.closed):
            assert isinstance(self.model, Model)
            try:
                self.replicas = Replicas(self.model, optimizer, self.n)
            except RuntimeError as error:
                if not self.may_fail:
                    raise
                self.n, self.note = 1, f"training in one process: {error}"
        if self.n == 1 or self.replicas is None or not self.replicas.can_split(batches):
            return None
        return self.replicas.gradients(batches, shares)

    def first_found(self, text: str) -> str:
        return text

    def close(self) -> None:
        if self.replicas is not None:
            self.replicas.close()

    def peak_bytes(self) -> int:
        return 0 if self.replicas is None or self.replicas.closed else sum(map(private_peak_bytes, self.replicas.pids))


class Replicas:
    """n - 1 worker processes with a copy of the model; this process computes the first rows itself.

    The copies share the model's weights; its other settings are copied once, here: after changing one, make new replicas.
    Raises ValueError for a model that cannot be copied, RuntimeError if a process cannot be started.
    """

    def __init__(self, model: Model, optimizer: FlatOptimizer, n: int) -> None:
        if not can_copy(model):
            raise InvalidInput(_CANNOT_COPY.format(_kind(model)))
        self.model, self.optimizer, self.slices = model, optimizer, Slices(optimizer.named)
        self.n_threads = max(1, n_threads() // n)
        with shared_file(2 * optimizer.weight.nbytes) as path:
            shared = np.asarray(np.memmap(path, optimizer.weight.dtype, mode="r+", shape=(2, optimizer.weight.size)))
            optimizer.move_weights(shared[0])
            optimizer.move_gradients(shared[1])
            trim_heap()  # of what held them: in pieces that a step cannot use
            self._processes = [_Process(self.n_threads) for _ in range(1, n)]
            self._end = weakref.finalize(self, _close, self._processes)
            copy = {
                "kind": type(model).__name__,
                "config": asdict(model.config),
                "recompute": [block.recompute for block in model.h],
                "path": str(path),
            }
            copy |= {"names": [name for name, _ in optimizer.named], "dtype": str(shared.dtype), "shape": shared.shape}
            try:
                for process in self._processes:
                    process.send(copy | {"last": process is self._processes[-1]})
                for process in self._processes:
                    process.receive()  # each has the file open now, so its name may be deleted
            except BaseException:
                self.close()
                raise

    def gradients(self, batches: Sequence[Batch], shares: Sequence[float]) -> Array:
        """As `GradientWorkers.gradients`. Raises what a process raised, and RuntimeError if one has ended."""
        n = len(self._processes) + 1
        tasks = shards_of(batches, shares, n)
        stream = self.model.dropout_stream
        try:
            if not self.slices.counts:
                self.slices.learn(self.model, first_with_targets(batches[0])[1])
            for process, mine in zip(self._processes, tasks[1:], strict=True):
                parts = [{"share": s.share, "first_row": s.first_row, "given": [a is not None for a in s.batch]} for s in mine]
                header = {"tasks": parts, "training": self.model.training, "seed": stream.seed, "draw": stream.counter}
                header |= {"z_loss": self.model.z_loss, "label_smoothing": self.model.label_smoothing, "counts": self.slices.counts}
                process.send(header, [a for shard in mine for a in shard.batch if a is not None])
            with use_threads(self.n_threads):
                total = accumulate(self.model, tasks[0][:-1])
                with self.slices.completing(self._processes[0].let_add):
                    total = total + accumulate(self.model, tasks[0][-1:])
            for process, following in zip_longest(self._processes, self._processes[1:]):
                total = total + process.receive(following)
        except BaseException:  # a process may still be computing: its answer would be taken for the next one
            self.close()
            raise
        return total

    def can_split(self, batches: Sequence[Batch]) -> bool:
        """Whether each process would get rows of every batch with targets that count, and would compute them by the same kernels."""
        n = len(self._processes) + 1
        same_mode = not backend.debug and kernel_mode() == backend.kernels
        return same_mode and all(len(batch[0]) >= n and all(count_targets(part) for _, part in split(batch, n)) for batch in batches)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [process.popen.pid for process in self._processes]

    def close(self) -> None:
        """Ends the processes, as does the end of this object or of Python."""
        self._end()

    @property
    def closed(self) -> bool:
        return not self._end.alive


class _Process:
    """A worker process, seen from its parent."""

    def __init__(self, n_threads: int) -> None:
        # Not multiprocessing: it would run the caller's script again in the new process. Not fork: threads do not survive it.
        code = f"import sys; sys.path[:] = {sys.path!r}; from tinygpt.parallel.replica import serve; serve()"
        threads = {"AUTOGRAD_THREADS": str(n_threads), "OPENBLAS_NUM_THREADS": str(n_threads)}
        command, pipe = [sys.executable, "-c", code], subprocess.PIPE
        try:  # a session of its own: Ctrl-C is for the parent, which saves
            self.popen = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=os.environ | threads, start_new_session=True)
        except OSError as error:
            raise ProcessFailed(f"replica: {error}, expected to start another Python; train with --processes 1") from error
        assert self.popen.stdin is not None and self.popen.stdout is not None
        self.stdin, self.stdout = self.popen.stdin, self.popen.stdout

    def send(self, header: dict[str, Json], arrays: Sequence[np.ndarray] = ()) -> None:
        try:
            write_message(self.stdin, header, arrays)
        except OSError as error:
            raise self._ended() from error

    def let_add(self, i: int) -> None:
        """It is this worker's turn to add its gradients of slice i to the sum."""
        self.send({"slice": i})

    def receive(self, following: "_Process | None" = None) -> float:
        """The loss, after all turns that it has passed on to the following one. Raises the error that the worker reports."""
        while True:
            try:
                answer, _ = read_message(self.stdout)
            except EOFError as error:
                raise self._ended() from error
            if following is None or "slice" not in answer:
                break
            following.let_add(answer["slice"])
        if "error" in answer:
            kind = getattr(errors, answer["error"], None) or getattr(builtins, answer["error"], None)
            raise (kind if isinstance(kind, type) and issubclass(kind, Exception) else RuntimeError)(answer["message"])
        return float(answer["loss"])

    def _ended(self) -> ProcessFailed:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(timeout=5)
        fix = "the last checkpoint is kept: resume from it, with --processes 1 if memory was short"
        return ProcessFailed(f"replica: process {self.popen.pid} ended with {self.popen.returncode}, expected it to train on; {fix}")


def _close(processes: list[_Process]) -> None:
    for process in processes:
        with contextlib.suppress(OSError):
            process.stdin.close()  # the worker reads the end of its tasks and ends
        process.stdout.close()
    for process in processes:
        try:
            process.popen.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.popen.kill()
            process.popen.wait()
