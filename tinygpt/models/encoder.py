"""The encoder: a stack of transformer blocks in which every token sees all others, trained to say which words were masked.

Blocks are the GPT's (`blocks.py`) without the causal mask. With the default config this is BERT: norms after the sums, a norm on the
embeddings, learned positions, token types.

Source  Devlin et al. 2018, BERT, arXiv:1810.04805, section 3; Liu et al. 2019, RoBERTa, arXiv:1907.11692, differs in its positions.
"""

from functools import partial

import numpy as np
from numpy.typing import ArrayLike

import autograd as ag
from autograd import backend, nn
from tinygpt.encoder_config import EncoderConfig
from tinygpt.errors import InvalidInput
from tinygpt.models.base import Model
from tinygpt.models.blocks import ComposedBlock, composed_blocks, fixed_positions, last_norm, norm
from tinygpt.models.gpt import Initializer


class EncoderInitializer(Initializer):
    """BERT's initial weights: as GPT-2's, but where sums are normalized the projections back into them are no smaller than the rest."""

    def residual(self, shape: tuple[int, ...]) -> ag.Array:
        return self.normal(shape) if self.config.norm_position == "post" else super().residual(shape)


class MaskedWordHead(nn.Module):
    """A score for each token of the vocabulary, from what a position knows of its surroundings.

    logits = n(f(x W_fc + b_fc)) W^T + b,  f the activation, n a norm, W (V, C) often the token embedding's own

    Source  Devlin et al. 2018; the layer before the output is in their code (run_pretraining.py, get_masked_lm_output), not in the paper.
    """

    def __init__(self, config: EncoderConfig, init: Initializer, embedding: ag.Parameter) -> None:
        self.activation = nn.activation(config.activation)
        self.c_fc = nn.Linear(config.n_embd, config.n_embd, init=init.normal)
        self.ln = norm(config.blocks(), config.n_embd)
        self.weight = embedding if config.tie_word_embeddings else ag.Parameter(init.normal(embedding.shape))
        self.bias = ag.Parameter(backend.to_device(np.zeros(config.vocab_size, dtype=np.float32)))

    def forward(self, x: ag.Tensor) -> ag.Tensor:
        x = self.before(x)
        return x @ nn.cast_like(self.weight, x).T + nn.cast_like(self.bias, x)  # (..., V)

    def before(self, x: ag.Tensor) -> ag.Tensor:
        """What W is multiplied with, (..., C)."""
        return self.ln(self.activation(self.c_fc(x)))

    def loss(self, x: ag.Tensor, targets: np.ndarray, *, z_loss: float, label_smoothing: float) -> ag.Tensor:
        """Cross-entropy of the logits, which never exist at once: output layer and loss are one op."""
        x = self.before(x)
        weight, bias = nn.cast_like(self.weight, x), nn.cast_like(self.bias, x)
        return ag.linear_cross_entropy(x, weight, targets, bias, z_loss=z_loss, label_smoothing=label_smoothing)


class Encoder(Model):
    """A model of masked words: for each position, a distribution over the tokens that may stand there.

    config   the shape; see EncoderConfig
    seed     decides the initial weights and the dropout masks
    Parameters have names in GPT-2's style: wte, wpe and wtt (tokens, positions, token types), ln_e, h.0.attn.c_attn, ..., head.c_fc, pooler.
    """

    config_class = EncoderConfig
    config: EncoderConfig
    h: list[ComposedBlock]

    def __init__(self, config: EncoderConfig, seed: int = 0, *, _empty: bool = False) -> None:
        super().__init__(config, seed)
        blocks = config.blocks()
        init = EncoderInitializer(blocks, seed, _empty)
        embedding = partial(nn.Embedding, init=init.normal)
        self.wte = embedding(config.vocab_size, config.n_embd)
        self.wpe = embedding(config.n_positions, config.n_embd) if config.positions == "learned" else fixed_positions(blocks)
        self.wtt = embedding(config.n_token_types, config.n_embd) if config.n_token_types else None
        self.ln_e = norm(blocks, config.n_embd) if config.embedding_norm else None
        self.embd_dropout = nn.Dropout(blocks.dropouts["embd_pdrop"], self.dropout_stream)
        self.h = composed_blocks(blocks, init, self.dropout_stream, causal=False)
        self.ln_f = last_norm(blocks)
        self.head = MaskedWordHead(config, init, self.wte.weight) if config.head else None
        self.pooler = nn.Linear(config.n_embd, config.n_embd, init=init.normal) if config.pooler else None
        for p in [] if self.pooler is None else self.pooler.parameters():
            p.requires_grad = False  # masked words do not need it: a classifier trains it

    def hidden(self, ids: ArrayLike, attention_mask: ArrayLike | None = None, token_types: ArrayLike | None = None) -> ag.Tensor:
        """What each position knows after all blocks, (B, T, C): the input of the head.

        ids              (B, T) host integers, T <= n_positions
        attention_mask   (B, T), 1 for tokens and 0 for padding, which may be anywhere; None: no padding. Rows of padding are not meaningful
        token_types      (B, T) integers below n_token_types; None: all 0
        Raises ValueError for other shapes, for ids and types out of range, and for types that the model does not have.
        """
        ids = self._ids("ids", np.asarray(ids))
        real = None
        if attention_mask is not None:
            real = self._ids("attention_mask", backend.as_mask(np.asarray(attention_mask), "Encoder: attention_mask"), ids)
        mask = None if real is None else backend.to_device(real[:, None, None, :])  # (B, 1, 1, S): padding is never attended to
        positions = self.positions(ids, real)
        x = self.embed(ids, positions, None if token_types is None else self._ids("token_types", np.asarray(token_types), ids))
        turned = {"positions": positions} if self.config.positions == "rotary" else {}  # queries and keys, in the blocks
        for block in self.h:
            x = nn.recompute(partial(block, mask=mask, **turned), x, [self.dropout_stream]) if block.recompute else block(x, mask, **turned)
        return self.ln_f(x)

    def _ids(self, name: str, array: np.ndarray, ids: np.ndarray | None = None) -> np.ndarray:
        """The array, whose shape is (B, T) with at most n_positions, or that of ids. Raises ValueError for another one."""
        if ids is not None and array.shape != ids.shape:
            raise InvalidInput(f"Encoder: {name} of shape {array.shape}, expected {ids.shape}, that of ids; one entry per token")
        if array.ndim != 2:
            raise InvalidInput(f"Encoder: {name} of shape {array.shape}, expected (batch, positions); wrap one sequence as [{name}]")
        if array.shape[1] > self.config.n_positions:
            rule = f"at most n_positions = {self.config.n_positions}"
            raise InvalidInput(f"Encoder: {array.shape[1]} positions, expected {rule}; shorten the text, or choose to cut long ones")
        return array

    def positions(self, ids: np.ndarray, real: np.ndarray | None) -> np.ndarray:
        """Numbers of the positions, (T,), or where padding does not count (B, T): real tokens are then those of the mask, or all but pad_id."""
        if self.config.count_padding:
            return np.arange(ids.shape[1])
        real = ids != self.config.pad_id if real is None else real
        counted: np.ndarray = np.maximum(np.cumsum(real, axis=1) - 1, 0)
        return counted

    def embed(self, ids: np.ndarray, positions: np.ndarray, token_types: np.ndarray | None = None) -> ag.Tensor:
        """The input of the first block, (B, T, C): tokens ids (B, T) of types (B, T) at `positions` (T,) or (B, T)."""
        x = self.wte(ids)
        if self.wpe is not None:  # positions that are added here, and do not act in attention
            x = x + self.wpe(positions)
        if self.wtt is not None:
            x = x + self.wtt(np.zeros_like(ids) if token_types is None else token_types)
        elif token_types is not None:
            raise InvalidInput("Encoder: token_types for a model with n_token_types 0, expected None; leave them out")
        if self.ln_e is not None:
            x = self.ln_e(x)
        if self.dtype != np.float32:
            x = ag.cast(x, self.dtype)  # all that follows takes its dtype from here
        return self.embd_dropout(x)

    def forward(self, ids: ArrayLike, attention_mask: ArrayLike | None = None, token_types: ArrayLike | None = None) -> ag.Tensor:
        """Logits (B, T, V) for ids (B, T); see `hidden` for the arguments."""
        with nn.weights_in(self, self.dtype):
            return self._head()(self.hidden(ids, attention_mask, token_types))

    def _head(self) -> MaskedWordHead:
        if self.head is None:
            raise InvalidInput("Encoder: a model without a head for masked words, expected EncoderConfig(head=True); load another file")
        return self.head

    def pooled(self, ids: ArrayLike, attention_mask: ArrayLike | None = None, token_types: ArrayLike | None = None) -> ag.Tensor:
        """A vector for each text, (B, C): `pool` of its first real token. Raises ValueError for a model without pooler."""
        with nn.weights_in(self, self.dtype):
            h = self.hidden(ids, attention_mask, token_types)
            first = np.zeros(h.shape[0], int) if attention_mask is None else np.asarray(attention_mask).argmax(axis=1)
            return self.pool(h[np.arange(h.shape[0]), first])

    def pool(self, h: ag.Tensor) -> ag.Tensor:
        """tanh(h W + b) of the pooler, (..., C) -> (..., C). Raises ValueError for a model without one."""
        if self.pooler is None:
            raise InvalidInput("Encoder: a model without pooler, expected EncoderConfig(pooler=True); a classifier has one")
        return ag.tanh(self.pooler(h))

    def loss(
        self, ids: ArrayLike, targets: ArrayLike, attention_mask: ArrayLike | None = None, token_types: ArrayLike | None = None, *,
        ignore_index: int = -100,
    ) -> ag.Tensor:  # fmt: skip
        """Mean cross-entropy in nats of `targets` (B, T), the tokens that were masked, as a scalar; ignore_index: positions to leave out.

        Only positions with a target go through the head, about one in seven. Raises ValueError if there is none.
        In training mode it includes z-loss and label smoothing, where they have been given a weight; in evaluation mode it never does.
        """
        targets = self._ids("targets", np.asarray(targets), np.asarray(ids))
        rows, columns = np.nonzero(targets != ignore_index)
        if not rows.size:
            rule = f"at least one that is not {ignore_index}"
            raise InvalidInput(f"Encoder.loss: none of {targets.size} targets counts, expected {rule}; mask a token of every batch")
        with nn.weights_in(self, self.dtype):
            h = self.hidden(ids, attention_mask, token_types)[rows, columns]  # (N, C)
            z_loss, smoothing = (self.z_loss, self.label_smoothing) if self.training else (0.0, 0.0)
            return self._head().loss(h, targets[rows, columns], z_loss=z_loss, label_smoothing=smoothing)
