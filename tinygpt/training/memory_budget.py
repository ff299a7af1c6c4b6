"""How much memory training will need, by formula, compared with what this process may have before it begins."""

import sys
from functools import partial

from autograd import backend
from autograd.limits import LOGITS_BYTES, file_bytes, memory_limit, resident_bytes
from tinygpt.encoder_config import EncoderConfig
from tinygpt.errors import InvalidInput, did_you_mean
from tinygpt.model_config import GPTConfig
from tinygpt.training.stacks import Stack, TrainedConfig, n_in_matrices, n_predictions, stacks

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
    config: TrainedConfig, micro_batch: int, *, optimizer: str = "adamw",
    recompute: bool = False, checkpoints: bool = False, processes: int = 1, accumulates: bool = False, program: int | None = None,
    lengths: tuple[int, int] | None = None, masked: float = 0.15,
) -> Memory:  # fmt: skip
    """The peak of a training step on the CPU's kernels, in bytes.

    What the blocks save for their backward pass: `saved_by_block`. In addition: the last norm, the loss's gradient with respect to its input
    (C) and to the output layer (V C).

    config        the shape of a GPT, an encoder or an encoder-decoder
    optimizer     by the name that `TrainConfig` gives it: its state is counted as moments
    recompute     blocks keep only their input (C), and one block at a time what it saves
    checkpoints   include the copy that is written in the background: weights and moments
    processes     that share each micro-batch (`tinygpt.parallel.local`): the estimate is for all of them
    accumulates   an update has several micro-batches: then each process has gradients of its own, else those of one block at a time
    program       bytes of the process before model and optimizer are made; by default its memory now
    lengths       of an encoder-decoder: the most tokens of a source and of a target; default: n_positions for both
    masked        of an encoder: the share of positions that have a target
    """
    c, p = config.n_embd, config.n_parameters()
    parts = stacks(config, micro_batch, lengths)
    # In addition: logits of a chunk of rows at the loss; in a block's backward pass what `backward_of` says.
    predicted = n_predictions(config, parts, masked)
    logits = min(predicted * config.vocab_size * FLOAT_BYTES, processes * LOGITS_BYTES)
    backward = max(map(backward_of, parts)) * FLOAT_BYTES
    head_gradient = config.vocab_size * c * FLOAT_BYTES
    program = resident_bytes() if program is None else program
    state = state_numbers(optimizer, p, n_in_matrices(config))
    blocks = sum(saved_by_stack(part, recompute=recompute) for part in parts) + max(map(saved_of_one, parts)) * recompute
    head = 5 * c * predicted if isinstance(config, EncoderConfig) else 0
    outside = 3 * c * sum(part.n_tokens for part in parts) + head
    activations = (blocks + outside) * FLOAT_BYTES + head_gradient
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
        # Each has its own program, except for the files of Python and its libraries, and the output layer's gradient before and after it is
        # multiplied by the process's share of the loss.
        replicas=(processes - 1) * (max(0, program - file_bytes()) + 2 * head_gradient + accumulates * p * FLOAT_BYTES),
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


def saved_by_stack(stack: Stack, *, recompute: bool) -> int:
    """Numbers that the blocks of a stack keep for a backward pass: all that they save, or, recomputed, what they read."""
    read = stack.blocks.n_embd * (stack.n_tokens + stack.n_source)
    return stack.blocks.n_layer * (read if recompute else saved_of_one(stack))


def saved_of_one(stack: Stack) -> int:
    """Numbers that one block keeps: `saved_by_block` for each token. A decoder's also a norm, its output, queries, output and statistics of
    cross-attention for each token of the target, keys and values for each of the source. Relative positions keep all weights of attention,
    with dropout before and after it."""
    config = stack.blocks
    c, inner = config.n_embd, config.n_head * config.channels_per_head
    cross = stack.n_tokens * (2 * c + 1 + 2 * inner + config.n_head) + 2 * inner * stack.n_source if stack.n_source else 0
    weights = config.n_head * stack.length * (2 if config.dropouts["attn_pdrop"] else 1) if stack.relative else 0
    return stack.n_tokens * (saved_by_block(config) + weights) + cross


def backward_of(stack: Stack) -> int:
    """Numbers that exist for a while in the backward pass of a block: the gradients of both sides of the MLP, or of attention's projection and
    its parts, of the residual stream and of the sum (C each), with relative positions those of the scores; and a weight's gradient before it
    is added to the flat buffer. From a decoder the gradient of the source's tokens comes in addition."""
    config = stack.blocks
    c, inner, qkv = config.n_embd, config.inner_channels, _qkv_channels(config)
    widest = max(_mlp_arrays(config) * inner, 2 * qkv + (3 * config.n_head * stack.length if stack.relative else 0))
    return (widest + 2 * c) * stack.n_tokens + c * max(inner, qkv) + 3 * c * stack.n_source


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
    config: TrainedConfig, micro_batch: int, *, optimizer: str = "adamw", recompute: bool = False, checkpoints: bool = True,
    processes: int = 1, accumulates: bool = False, lengths: tuple[int, int] | None = None, masked: float = 0.15,
) -> str:  # fmt: skip
    """A sentence on the memory that training will need and the limit; call it before the model is made. Raises ValueError, naming the two
    settings to lower and values that would fit, if it does not fit."""
    if backend.name != "numpy" or backend.kernels == "reference":
        return "not estimated: the formula holds for the CPU's fast kernels"

    with_batch = partial(
        estimate, config, optimizer=optimizer, recompute=recompute, checkpoints=checkpoints, processes=processes, accumulates=accumulates,
        lengths=lengths, masked=masked,
    )  # fmt: skip
    needed = with_batch(micro_batch)
    limit, whose = memory_limit()
    if needed.total <= limit:
        return f"about {needed} of {readable(limit)}, {whose}" if limit < sys.maxsize else f"about {needed}"
    fits = [n for n in range(1, micro_batch) if with_batch(n).total <= limit]
    shorter = "shorten the texts" if lengths else f"--n-positions (from {config.n_positions})"
    fix = f"lower --micro-batch{f' (to {fits[-1]})' if fits else ''} or {shorter}"
    fix += "" if fits else ", or take a smaller model: even a micro-batch of 1 does not fit"
    fix += "" if recompute else ", or add --recompute"
    fix = f"{fix}, or train in one process with --processes 1" if with_batch(micro_batch, processes=1).total <= limit else fix
    raise InvalidInput(f"memory: training needs about {needed}, expected at most {readable(limit)}, {whose}; {fix}")


def readable(n_bytes: int) -> str:
    """Bytes in a readable unit: 1.5 GB, 20 MB."""
    for unit, size in (("GB", 1 << 30), ("MB", 1 << 20)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}" if n_bytes < 10 * size else f"{n_bytes / size:.0f} {unit}"
    return f"{n_bytes / 1024:.0f} KB"
