"""A worker process of `tinygpt.parallel.local`: it computes gradients for its parent, with a copy of the model whose weights both share.

Tasks and answers are messages through pipes: a line of JSON, and the bytes of arrays.
"""

import json
import math
import os
import signal
import sys
from collections.abc import Sequence
from typing import IO

import numpy as np

from autograd.optim import bind_to_buffers
from tinygpt import models
from tinygpt.models.base import Model
from tinygpt.storage.checked_json import Json
from tinygpt.training.step import Shard, accumulate


def write_message(file: IO[bytes], header: dict[str, Json], arrays: Sequence[np.ndarray] = ()) -> None:
    """A line of JSON with the header, dtypes and shapes, followed by the bytes of the arrays."""
    file.write(json.dumps([header, [(str(a.dtype), a.shape) for a in arrays]]).encode() + b"\n")
    for a in arrays:
        file.write(a.tobytes())
    file.flush()


def read_message(file: IO[bytes]) -> tuple[dict[str, Json], list[np.ndarray]]:
    """What `write_message` wrote. Raises EOFError without a complete line."""
    line = file.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    header, kinds = json.loads(line)
    return header, [np.frombuffer(file.read(np.dtype(kind).itemsize * math.prod(n)), kind).reshape(n) for kind, n in kinds]


def serve() -> None:
    """Computes gradients for the parent process, until that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tasks, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output of prints must not mix with the answers
    work: _Copy | None = None
    while True:
        answer: dict[str, Json] = {"loss": 0.0}
        try:
            header, arrays = read_message(tasks)
            if work is None:
                work = _Copy(**header)
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


class _Copy:
    """A worker's model: its weights and gradients are views of the shared memory."""

    def __init__(
        self, kind: str, config: dict[str, Json], recompute: list[bool], names: list[str], path: str, dtype: str, shape: tuple[int, int],
        row: int,
    ) -> None:  # fmt: skip
        cls = getattr(models, kind)
        self.model: Model = cls(cls.config_class(**config), _empty=True)
        for block, on in zip(self.model.h, recompute, strict=True):
            block.recompute = on
        shared = np.asarray(np.memmap(path, dtype, mode="r+", shape=tuple(shape)))
        named = dict(self.model.named_parameters())
        self.parameters, self.gradient = [named[name] for name in names], shared[row]
        bind_to_buffers(self.parameters, shared[0], self.gradient)

    def gradients(
        self, arrays: list[np.ndarray], tasks: list[dict[str, Json]], training: bool, seed: int, draw: int, z_loss: float,
        label_smoothing: float,
    ) -> float:  # fmt: skip
        self.model.set_z_loss(z_loss).set_label_smoothing(label_smoothing)
        if self.model.training != training:
            self.model.train(training)
        self.model.dropout_stream.seed, self.model.dropout_stream.counter = seed, draw
        self.gradient[...] = 0  # for parameters that are not used
        for p in self.parameters:
            p.grad = None
        left = iter(arrays)
        mine = [Shard(tuple(next(left) if given else None for given in t["given"]), t["share"], t["first_row"]) for t in tasks]
        return float(accumulate(self.model, mine))
