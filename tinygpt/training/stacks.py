"""What a micro-batch goes through in models of each kind, from their shapes alone: for estimates of memory and arithmetic."""

import math
from typing import NamedTuple

from tinygpt.encoder_config import EncoderConfig
from tinygpt.model_config import GPTConfig
from tinygpt.seq2seq_config import Seq2SeqConfig

TrainedConfig = GPTConfig | EncoderConfig | Seq2SeqConfig


class Stack(NamedTuple):
    """Blocks on top of each other, and the tokens of a micro-batch that go through them.

    blocks     their shape: `n_layer` of them
    n_rows     sequences
    length     tokens of each
    causal     whether a token sees earlier ones only
    source     of a decoder: tokens of each source, which cross-attention reads; else 0
    relative   whether scores exist as arrays, to which relative positions are added
    """

    blocks: GPTConfig
    n_rows: int
    length: int
    causal: bool = True
    source: int = 0
    relative: bool = False

    @property
    def n_tokens(self) -> int:
        return self.n_rows * self.length

    @property
    def n_source(self) -> int:
        return self.n_rows * self.source

    def matrices(self) -> int:
        """Numbers in the matrices of one block, cross-attention's included."""
        inside = sum(math.prod(shape) for shape in self.blocks.block_shapes().values() if len(shape) == 2)
        return inside + (4 * self.blocks.n_embd * self.blocks.n_head * self.blocks.channels_per_head if self.source else 0)


def stacks(config: TrainedConfig, n_rows: int, lengths: tuple[int, int] | None = None) -> list[Stack]:
    """Those of a model, in the order in which they compute. lengths: of an encoder-decoder's sources and targets, if not n_positions."""
    n = config.n_positions
    if isinstance(config, GPTConfig):
        return [Stack(config, n_rows, n)]
    if isinstance(config, EncoderConfig):
        return [Stack(config.blocks(), n_rows, n, causal=False)]
    (source, target), relative = lengths or (n, n), config.positions == "relative"
    return [
        Stack(config.blocks(), n_rows, source, causal=False, relative=relative),
        Stack(config.blocks(decoder=True), n_rows, target, source=source, relative=relative),
    ]


def n_predictions(config: TrainedConfig, parts: list[Stack], masked: float) -> int:
    """Positions that go through the output layer: all of the last stack, but of an encoder the masked ones alone."""
    return math.ceil(parts[-1].n_tokens * (masked if isinstance(config, EncoderConfig) else 1))


def n_in_matrices(config: TrainedConfig) -> int:
    """Numbers in the matrices that `tinygpt.training.optimizers.hidden_matrices` finds in a model of this shape."""
    head = config.n_embd**2 if isinstance(config, EncoderConfig) and config.head else 0
    return head + sum(part.blocks.n_layer * part.matrices() for part in stacks(config, 1))
