"""A worker process of `tinygpt.parallel.local`: it computes gradients for its parent, with a copy of the model whose weights both share.

Tasks, turns and answers are messages through pipes: a line of JSON, and the bytes of arrays.
"""

import contextlib
import json
import math
import os
import queue
import signal
import threading
from collections.abc import Sequence
from typing import IO

import numpy as np

from autograd.optim import bind_to_buffers
from tinygpt import models
from tinygpt.models.base import Model
from tinygpt.parallel.slices import Slices
from tinygpt.storage.checked_json import Json
from tinygpt.training.step import Shard, accumulate

Message = tuple[dict[str, Json], list[np.ndarray]] | None


def write_message(file: IO[bytes], header: dict[str, Json], arrays: Sequence[np.ndarray] = ()) -> None:
    """A line of JSON with the header, dtypes and shapes, followed by the bytes of the arrays."""
    file.write(json.dumps([header, [(str(a.dtype), a.shape) for a in arrays]]).encode() + b"\n")
    for a in arrays:
        file.write(a.tobytes())
    file.flush()


def read_message(file: IO[bytes]) -> tuple[dict[str, Json], list[np.ndarray]]:
    """What `write_message` wrote. Raises EOFError where it ends early."""
    line = file.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    header, kinds = json.loads(line)
    arrays = []
    for kind, shape in kinds:
        data = file.read(n_bytes := np.dtype(kind).itemsize * math.prod(shape))
        if len(data) < n_bytes:
            raise EOFError
        arrays.append(np.frombuffer(data, kind).reshape(shape))
    return header, arrays


def serve() -> None:
    """Computes gradients for the parent process, until that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    messages, answers = queue.SimpleQueue[Message](), os.fdopen(os.dup(1), "wb")
    threading.Thread(target=_receive, args=(os.fdopen(os.dup(0), "rb"), messages), daemon=True).start()
    os.dup2(2, 1)  # output of prints must not mix with the answers
    work: _Copy | None = None
    while True:
        answer: dict[str, Json] = {"loss": 0.0}
        try:
            header, arrays = _next(messages)
            if work is None:
                work = _Copy(messages, answers, **header)
            else:
                answer["loss"] = work.gradients(arrays, **header)
        except EOFError:
            return
        except Exception as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        try:
            write_message(answers, answer)
        except BrokenPipeError:
            return


def _receive(file: IO[bytes], messages: "queue.SimpleQueue[Message]") -> None:
    """All messages of the parent, as they come; None at their end, whatever ends them: else the worker would wait for ever."""
    try:
        with contextlib.suppress(EOFError):
            while True:
                messages.put(read_message(file))
    finally:
        messages.put(None)


def _next(messages: "queue.SimpleQueue[Message]", *, wait: bool = True) -> tuple[dict[str, Json], list[np.ndarray]]:
    """Raises EOFError after the last, and queue.Empty where there is none yet, and nobody waits."""
    message = messages.get(wait)
    if message is None:
        raise EOFError
    return message


class _Copy:
    """A worker's model: its weights are views of the shared memory, and its gradients are added to the sum there.

    messages, answers   from and to the parent; last: no process adds after this one
    """

    def __init__(
        self, messages: "queue.SimpleQueue[Message]", answers: IO[bytes], kind: str, config: dict[str, Json], recompute: list[bool],
        names: list[str], path: str, dtype: str, shape: tuple[int, int], last: bool,
    ) -> None:  # fmt: skip
        cls = getattr(models, kind)
        self.model: Model = cls(cls.config_class(**config), _empty=True)
        for block, on in zip(self.model.h, recompute, strict=True):
            block.recompute = on
        shared = np.asarray(np.memmap(path, dtype, mode="r+", shape=tuple(shape)))
        named = dict(self.model.named_parameters())
        parameters = [named[name] for name in names]
        bind_to_buffers(parameters, *shared)
        self.sums = {id(p): p._gradient_buffer for p in parameters}
        for p in parameters:
            p._gradient_buffer = None
        self.slices = Slices([(name, named[name]) for name in names])
        self.messages, self.answers, self.last = messages, answers, last

    def gradients(
        self, arrays: list[np.ndarray], tasks: list[dict[str, Json]], training: bool, seed: int, draw: int, z_loss: float,
        label_smoothing: float, counts: list[int],
    ) -> float:  # fmt: skip
        self.model.set_z_loss(z_loss).set_label_smoothing(label_smoothing)
        if self.model.training != training:
            self.model.train(training)
        self.model.dropout_stream.seed, self.model.dropout_stream.counter = seed, draw
        self.slices.counts = counts
        left = iter(arrays)
        mine = [Shard(tuple(next(left) if given else None for given in t["given"]), t["share"], t["first_row"]) for t in tasks]
        total, complete, turns = accumulate(self.model, mine[:-1]), set[int](), set[int]()

        def add_complete(*, wait: bool) -> None:
            with contextlib.suppress(queue.Empty):
                while complete - turns:
                    turns.add(_next(self.messages, wait=wait)[0]["slice"])
            for i in complete & turns:
                self._add_to_sum(i)
                complete.remove(i)

        def done(i: int) -> None:
            complete.add(i)
            add_complete(wait=False)

        with self.slices.completing(done):
            total = total + accumulate(self.model, mine[-1:])
        add_complete(wait=True)
        return float(total)

    def _add_to_sum(self, i: int) -> None:
        for p in self.slices.parameters[i]:
            if p.grad is not None:
                self.sums[id(p)] += p.grad
                p.grad = None
        if not self.last:
            write_message(self.answers, {"slice": i})
