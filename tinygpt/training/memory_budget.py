"""How much memory training will need, by formula, compared with what this process may have before it begins."""

import math
import sys
from functools import partial

from autograd import backend
from autograd.limits import LOGITS_BYTES, file_bytes, memory_limit, resident_bytes
from tinygpt.config import GPTConfig
from tinygpt.errors import InvalidInput, did_you_mean

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
    config: GPTConfig, micro_batch: int, *, optimizer: str = "adamw",
    recompute: bool = False, checkpoints: bool = False, processes: int = 1, program: int | None = None,
) -> Memory:  # fmt: skip
    """The peak of a training step on the CPU's kernels, in bytes.

    What the blocks save for their backward pass: `saved_by_block`. In addition: the last norm, the loss's gradient with respect to its input
    (C) and to the output layer (V C).

    optimizer     by the name that `TrainConfig` gives it: its state is counted as moments
    recompute     blocks keep only their input (C), and one block at a time what it saves
    checkpoints   include the copy that is written in the background: weights and moments
    processes     that share each micro-batch (`tinygpt.parallel.local`): the estimate is for all of them
    program       bytes of the process before model and optimizer are made; by default its memory now
    """
    c, n_tokens, p = config.n_embd, micro_batch * config.n_positions, config.n_parameters()
    block = saved_by_block(config)
    blocks = config.n_layer * c + block if recompute else config.n_layer * block
    # In addition: logits of a chunk of rows at the loss; in a block's backward pass the gradients of both sides of the MLP, or of attention's
    # projection and its parts, of the residual stream and of the sum (C each); and a weight's gradient before it is added to the flat buffer.
    widest = max(_mlp_arrays(config) * config.inner_channels, 2 * _qkv_channels(config))
    logits = min(n_tokens * config.vocab_size * FLOAT_BYTES, LOGITS_BYTES)
    backward = ((widest + 2 * c) * n_tokens + c * max(config.inner_channels, _qkv_channels(config))) * FLOAT_BYTES
    program = resident_bytes() if program is None else program
    matrices = config.n_layer * sum(math.prod(shape) for shape in config.block_shapes().values() if len(shape) == 2)
    state = state_numbers(optimizer, p, matrices)
    activations = (n_tokens * (blocks + 3 * c) + config.vocab_size * c) * FLOAT_BYTES
    # After the backward pass: Adam's gradient with its L2 term, SGD's products; two arrays of all weights.
    update = 2 * p * FLOAT_BYTES if optimizer in ("adam", "sgd") else 0
    return Memory(
        program=program,
        weights=p * FLOAT_BYTES,
        gradients=p * FLOAT_BYTES,
        moments=state * FLOAT_BYTES,
        activations=activations,
        temporary=max(logits, backward, update - activations),
        checkpoint=(p + state) * FLOAT_BYTES if checkpoints else 0,
        # Each has its own gradients and its own program, except for the files of Python and its libraries.
        replicas=(processes - 1) * (max(0, program - file_bytes()) + p * FLOAT_BYTES),
    )


def state_numbers(optimizer: str, n_weights: int, n_in_matrices: int) -> int:
    """Numbers that an optimizer of `TrainConfig` keeps for n_weights, of which n_in_matrices are the blocks' matrices.

    Adam and AdamW keep two means a weight, of the gradient and of its square; SGD the first; Muon the first of matrices, both of the rest.
    Raises ValueError for another name.
    """
    numbers = {"adamw": 2 * n_weights, "muon": 2 * n_weights - n_in_matrices, "adam": 2 * n_weights, "sgd": n_weights}
    if optimizer not in numbers:
        raise InvalidInput(f"optimizer: {optimizer!r}, expected one of {', '.join(numbers)}; {did_you_mean(optimizer, numbers)}")
    return numbers[optimizer]


def saved_by_block(config: GPTConfig) -> int:
    """Numbers per token that a block keeps for its backward pass on the CPU's kernels: 16 C + H + 2 for GPT-2.

    Norms keep their input, normalized or not, and a number per row; linear layers keep what they read: for GPT-2 that is 4 C + 2. Attention
    keeps queries, keys and values (3 C), its output (C) and a statistic of softmax per head (H); the MLP its inner channels before and after
    the activation (4 C each). Queries and keys that are turned exist twice: the values hold on to the first ones, which they share an array with.
    """
    c, d, inner = config.n_embd, config.channels_per_head, config.inner_channels
    queries, queries_and_keys = config.n_head * d, (config.n_head + config.kv_heads) * d
    n_norms = 4 if config.norm_position == "sandwich" else 1 if config.shared_norm else 2
    one_input = config.parallel_residual and config.norm != "layer"  # RMS norm keeps x itself, and both read the same one
    norms = n_norms * (c + 1) - (c if one_input and n_norms == 2 else 0) + (c if config.shared_norm else 2 * c)
    if config.qk_norm != "none":
        norms += config.n_head + config.kv_heads if config.qk_norm == "head" else 2
        norms += queries_and_keys if config.norm == "layer" else 0
    changed = queries_and_keys if config.positions == "rotary" or config.qk_norm != "none" else 0
    attention = _qkv_channels(config) + changed + queries + config.n_head
    activation = (
        inner // 4 + inner if config.activation == "relu" and not config.gated else _mlp_arrays(config) * inner
    )  # relu: a byte each
    return norms + attention + activation


def _mlp_arrays(config: GPTConfig) -> int:
    """Arrays of inner channels: before and after the activation, and with a gate a second one before it."""
    return 3 if config.gated else 2


def _qkv_channels(config: GPTConfig) -> int:
    """Outputs of attention's first projection: queries, keys and values."""
    return (config.n_head + 2 * config.kv_heads) * config.channels_per_head


def check(
    config: GPTConfig, micro_batch: int, *, optimizer: str = "adamw", recompute: bool = False, checkpoints: bool = True, processes: int = 1
) -> str:
    """A sentence on the memory that training will need and the limit; call it before the model is made. Raises ValueError, naming the two
    settings to lower and values that would fit, if it does not fit."""
    if backend.name != "numpy" or backend.kernels == "reference":
        return "not estimated: the formula holds for the CPU's fast kernels"

    with_batch = partial(estimate, config, optimizer=optimizer, recompute=recompute, checkpoints=checkpoints, processes=processes)
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
