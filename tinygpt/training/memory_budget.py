"""How much memory training will need, by formula, compared with what this process may have before it begins."""

import sys
from functools import partial

from autograd import backend
from autograd.limits import LOGITS_BYTES, file_bytes, memory_limit, resident_bytes
from tinygpt.config import GPTConfig
from tinygpt.errors import InvalidInput

FLOAT_BYTES = 4


class Memory(dict[str, int]):
    """Bytes that training needs at its peak, by purpose."""

    @property
    def total(self) -> int:
        return sum(self.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {readable(n)}" for name, n in self.items() if n)
        return f"{readable(self.total)} ({parts})"


def estimate(
    config: GPTConfig, micro_batch: int, *,
    recompute: bool = False, checkpoints: bool = False, processes: int = 1, program: int | None = None,
) -> Memory:  # fmt: skip
    """The peak of a training step on the CPU's kernels, in bytes.

    A block saves for its backward pass, in numbers per token, C channels: the normalized inputs of its two norms (2C) and their outputs
    (2C), query, key and value (3C), attention's output (C) and softmax statistics (H), GELU's input and output (4C each): 16C + H, and 1 / std of
    each norm. In addition: the last norm, the loss's gradient with respect to its input (C) and to the output layer (V C).

    recompute     blocks keep only their input (C), and one block at a time what it saves
    checkpoints   include the copy that is written in the background: weights and moments
    processes     that share each micro-batch (`tinygpt.parallel.local`): the estimate is for all of them
    program       bytes of the process before model and optimizer are made; by default its memory now
    """
    c, n_tokens, p = config.n_embd, micro_batch * config.n_positions, config.n_parameters()
    block = 16 * c + config.n_head + 2
    blocks = config.n_layer * c + block if recompute else config.n_layer * block
    # In addition: logits of a chunk of rows at the loss; in a block's backward pass the gradients of both sides of the MLP (4C each), of the
    # residual stream and of the sum (C each); and a weight's gradient before it is added to the flat buffer.
    logits = min(n_tokens * config.vocab_size * FLOAT_BYTES, LOGITS_BYTES)
    backward = (10 * c * n_tokens + 4 * c * c) * FLOAT_BYTES
    program = resident_bytes() if program is None else program
    return Memory(
        program=program,
        weights=p * FLOAT_BYTES,
        gradients=p * FLOAT_BYTES,
        moments=2 * p * FLOAT_BYTES,
        activations=(n_tokens * (blocks + 3 * c) + config.vocab_size * c) * FLOAT_BYTES,
        temporary=max(logits, backward),
        checkpoint=3 * p * FLOAT_BYTES if checkpoints else 0,
        # Each has its own gradients and its own program, except for the files of Python and its libraries.
        replicas=(processes - 1) * (max(0, program - file_bytes()) + p * FLOAT_BYTES),
    )


def check(config: GPTConfig, micro_batch: int, *, recompute: bool = False, checkpoints: bool = True, processes: int = 1) -> str:
    """A sentence on the memory that training will need and the limit; call it before the model is made. Raises ValueError, naming the two
    settings to lower and values that would fit, if it does not fit."""
    if backend.name != "numpy" or backend.kernels == "reference":
        return "not estimated: the formula holds for the CPU's fast kernels"

    with_batch = partial(estimate, config, recompute=recompute, checkpoints=checkpoints, processes=processes)
    needed = with_batch(micro_batch)
    limit, whose = memory_limit()
    if needed.total <= limit:
        return f"about {needed} of {readable(limit)}, {whose}" if limit < sys.maxsize else f"about {needed}"
    fits = [n for n in range(1, micro_batch) if with_batch(n).total <= limit]
    fix = f"lower --micro-batch{f' (to {fits[-1]})' if fits else ''} or --n-positions (from {config.n_positions})"
    fix += "" if fits else ", or take a smaller model: even a micro-batch of 1 does not fit"
    fix += "" if recompute else ", or add --recompute"
    raise InvalidInput(f"memory: training needs about {needed}, expected at most {readable(limit)}, {whose}; {fix}")


def readable(n_bytes: int) -> str:
    """Bytes in a readable unit: 1.5 GB, 20 MB."""
    for unit, size in (("GB", 1 << 30), ("MB", 1 << 20)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}" if n_bytes < 10 * size else f"{n_bytes / size:.0f} {unit}"
    return f"{n_bytes / 1024:.0f} KB"
