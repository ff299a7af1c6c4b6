"""The encoder-decoder: one stack of blocks reads a source, another writes a target, one token at a time, and looks at the source as it does.

    source = model.encode([[5, 6, 7]])                  # every token of the source sees every other one
    hidden = model.decode([[0, 8, 9]], source)          # every token of the target sees those before it, and all of the source

A decoder block is a GPT's block with a third branch between its two: cross-attention, whose queries come from the target, keys and values
from the encoder's output. So what the decoder looks at is as long as the source, instead of one vector that all of it is squeezed into.

The default config is the transformer of Vaswani et al. 2017, arXiv:1706.03762; options make Marian and T5 of it (`tinygpt/weights/`).
Read gpt.py and blocks.py first. Parameter names: wte; encoder.h.N. and decoder.h.N. before those of a GPT's blocks; in the decoder's
ln_cross, cross.c_q, cross.c_k, cross.c_v, cross.c_proj; encoder.relative and decoder.relative; lm_head.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike

import autograd as ag
from autograd import backend, nn
from autograd.backend import xp
from tinygpt.data.windows import IGNORED
from tinygpt.errors import InvalidInput
from tinygpt.models.attached import Attached
from tinygpt.models.base import Model
from tinygpt.models.blocks import Attend, ComposedAttention, ComposedBlock, ComposedMLP, GatedMLP, by_head, composed_blocks, last_norm, norm
from tinygpt.models.gpt import Initializer, OutputLayer
from tinygpt.seq2seq_config import Seq2SeqConfig

if TYPE_CHECKING:
    from tinygpt.models.cache import LayerView, View

KeysValues = tuple[ag.Tensor, ag.Tensor]  # (B, H, S, D) each
_NEVER = -1e30  # the score of a key that may not be attended to: finite, so that AUTOGRAD_DEBUG finds nothing; e^ of it is 0


class Source(NamedTuple):
    """A source as the decoder reads it.

    hidden   (B, S, C) the encoder's output
    mask     (B, 1, 1, S) on the device, True for tokens, False for padding; None: no padding
    cross    each decoder block's keys and values of `hidden`, where they have been computed for several calls of the decoder
    """

    hidden: ag.Tensor
    mask: ag.Array | None
    cross: tuple[KeysValues, ...] | None = None


class CrossAttention(nn.Module):
    """Every position of the target attends to all positions of the source, in several heads."""

    def __init__(self, config: Seq2SeqConfig, init: "GlorotInitializer", stream: ag.RandomStream) -> None:
        c, self.head_size = config.n_embd, config.channels_per_head
        inner = config.n_head * self.head_size
        self.c_q = nn.Linear(c, inner, config.bias, init=init.hidden)
        self.c_k = nn.Linear(c, inner, config.bias, init=init.hidden)
        self.c_v = nn.Linear(c, inner, config.bias, init=init.hidden)
        self.c_proj = nn.Linear(inner, c, config.bias, init=init.hidden)
        p = config.dropouts["attn_pdrop"]
        self.attend: Callable[..., ag.Tensor] = partial(
            ag.scaled_dot_product_attention, scale=config.attention_scale, dropout=p, stream=stream
        )
        self.resid_dropout = nn.Dropout(config.dropout, stream)

    def keys_values(self, hidden: ag.Tensor) -> KeysValues:
        """(B, H, S, D) each, of the encoder's output (B, S, C). They are the same for every position of the target."""
        return self.heads(self.c_k(hidden)), self.heads(self.c_v(hidden))

    def heads(self, x: ag.Tensor) -> ag.Tensor:
        """(B, T, H D) -> (B, H, T, D)."""
        return by_head(x, self.head_size).transpose(0, 2, 1, 3)

    def forward(self, x: ag.Tensor, keys_values: KeysValues, mask: ag.Array | None = None) -> ag.Tensor:
        y = self.attend(self.heads(self.c_q(x)), *keys_values, mask, training=self.training)  # (B, H, T, D)
        y = y.transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1)  # the heads' channels concatenated
        return self.resid_dropout(self.c_proj(y))  # (B, T, C)


class DecoderBlock(nn.Module):
    """Self-attention to earlier tokens of the target, cross-attention to the source, MLP: three branches of one residual stream."""

    def __init__(self, config: Seq2SeqConfig, init: "GlorotInitializer", stream: ag.RandomStream) -> None:
        as_gpt = config.blocks()
        self.ln_1 = norm(as_gpt, config.n_embd)
        self.attn = ComposedAttention(as_gpt, 0, None, init, stream)
        self.ln_cross = norm(as_gpt, config.n_embd)
        self.cross = CrossAttention(config, init, stream)
        self.ln_2 = norm(as_gpt, config.n_embd)
        self.mlp = (GatedMLP if config.gated else ComposedMLP)(as_gpt, init, stream)
        self.add = add_then_norm if config.norm_position == "post" else norm_then_add
        self.recompute = False  # as in gpt.py

    def forward(
        self, x: ag.Tensor, keys_values: KeysValues, source_mask: ag.Array | None = None, mask: ag.Array | None = None,
        cache: "LayerView | None" = None,
    ) -> ag.Tensor:  # fmt: skip
        x = self.add(x, partial(self.attn, mask=mask, cache=cache), self.ln_1)
        x = self.add(x, partial(self.cross, keys_values=keys_values, mask=source_mask), self.ln_cross)
        return self.add(x, self.mlp, self.ln_2)  # (B, T, C)

    def recomputed(self, x: ag.Tensor, source: Source, streams: Sequence[ag.RandomStream]) -> ag.Tensor:
        """`forward` without what it keeps for the backward pass. `nn.recompute` takes one tensor: target and source, one behind the other."""
        t = x.shape[1]

        def forward(both: ag.Tensor) -> ag.Tensor:
            return self.forward(both[:, :t], self.cross.keys_values(both[:, t:]), source.mask)

        return nn.recompute(forward, ag.concatenate([x, source.hidden], axis=1), streams)


def add_then_norm(x: ag.Tensor, branch: Attend, norm: nn.Module) -> ag.Tensor:
    """Post-norm: Vaswani et al. 2017, Marian."""
    return norm(x + branch(x))


def norm_then_add(x: ag.Tensor, branch: Attend, norm: nn.Module) -> ag.Tensor:
    """Pre-norm: T5."""
    return x + branch(norm(x))


class SinesThenCosines(nn.Module):
    """`nn.sinusoidal_positions` with all sines in front of all cosines, as in the authors' code and in Marian; the paper's formula has them
    in turns. Which channel is which makes no difference to a model that is trained with it."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        self.n_channels = config.n_embd
        self.table = self.of_length(0)

    def of_length(self, n: int) -> ag.Tensor:
        """The first n rows, (n, C)."""
        table = nn.sinusoidal_positions(n, self.n_channels)
        return ag.Tensor(xp.concatenate([table[:, 0::2], table[:, 1::2]], axis=1))

    def forward(self, positions: np.ndarray) -> ag.Tensor:
        needed, known = int(positions.max()) + 1, self.table.shape[0]
        if needed > known:  # not all of n_positions before a text is that long
            self.table = self.of_length(max(needed, 2 * known))
        return ag.embedding(self.table, positions)


class RelativePositions(nn.Module):
    """T5's positions: a learned number for every head and distance from query to key is added to the score. All blocks of a stack share it.

    weight (buckets, H). Near distances have a bucket each, far ones share them, see `relative_buckets`.
    Source  Raffel et al. 2020, arXiv:1910.10683, section 2.1.
    """

    def __init__(self, config: Seq2SeqConfig, causal: bool, init: "GlorotInitializer", stream: ag.RandomStream) -> None:
        self.weight = ag.Parameter(init.relative((config.relative_buckets, config.n_head)))
        self.causal, self.n_buckets, self.distance = causal, config.relative_buckets, config.relative_distance
        self.scale = config.attention_scale or config.channels_per_head**-0.5
        self.p, self.stream = config.dropouts["attn_pdrop"], stream

    def bias(self, n_queries: int, n_keys: int) -> ag.Tensor:
        """(H, T, S), float32, for the last T of S positions as queries."""
        ahead = np.arange(n_keys) - np.arange(n_keys - n_queries, n_keys)[:, None]  # (T, S): key's position minus query's
        buckets = relative_buckets(ahead, self.causal, self.n_buckets, self.distance)
        return ag.embedding(self.weight, buckets).transpose(2, 0, 1)

    def attend(
        self, q: ag.Tensor, k: ag.Tensor, v: ag.Tensor, mask: ag.Array | None = None, *, window: int = 0, training: bool = True
    ) -> ag.Tensor:
        """softmax(q @ k^T scale + bias) @ v, as `ag.scaled_dot_product_attention`: from single ops, so that the bias has a gradient.

        q (B, H, T, D), k and v (B, H, S, D), mask as there -> (B, H, T, D). Every query must be allowed a key.
        """
        t, s = q.shape[-2], k.shape[-2]
        scores = q @ k.transpose(0, 1, 3, 2)
        if scores.dtype.itemsize == 2:  # softmax in float32, as the fused op has it
            scores = ag.cast(scores, "float32")
        scores = scores * self.scale + self.bias(t, s)  # (B, H, T, S)
        if self.causal and t > 1:
            past = xp.arange(s) <= xp.arange(s - t, s)[:, None]
            mask = past if mask is None else mask & past
        if mask is not None:
            scores = ag.where(mask, scores, _NEVER)
        p = ag.dropout(ag.cast(ag.softmax(scores), v.dtype), self.p, training, self.stream)
        return p @ v


def relative_buckets(ahead: np.ndarray, causal: bool, n_buckets: int, distance: int) -> np.ndarray:
    """The bucket of each distance `ahead`, the key's position minus the query's; same shape.

    With `causal` all n_buckets are for keys behind the query, else half of them for those ahead, which come second. Half of a direction's
    buckets hold one distance each, the other half distances in ratio: up to `distance`, from which on all are in the last one.
    """
    n = n_buckets if causal else n_buckets // 2
    far = np.maximum(-ahead, 0) if causal else np.abs(ahead)
    exact = n // 2
    ratio = np.log(np.maximum(far, exact).astype(np.float32) / np.float32(exact)) / np.float32(math.log(distance / exact))  # float32, as T5
    shared = np.minimum(exact + (ratio * np.float32(n - exact)).astype(np.int64), n - 1)
    behind: np.ndarray = np.where(far < exact, far, shared)
    return behind if causal else behind + np.where(ahead > 0, n, 0)


BlockKind = TypeVar("BlockKind", ComposedBlock, DecoderBlock)


class GlorotInitializer(Initializer):
    """Initial weights as in the authors' code: matrices with variance 2 / (inputs + outputs), embeddings with variance 1 after their scale.

    Drawn on the host, so that every backend starts from the same ones. Biases 0, norms 1 and 0.
    Source  Glorot and Bengio 2010, Understanding the difficulty of training deep feedforward neural networks, equation 16.
    """

    def __init__(self, config: Seq2SeqConfig, seed: int, empty: bool = False) -> None:
        super().__init__(config.blocks(), seed, empty)
        self.sizes = config

    def hidden(self, shape: tuple[int, ...]) -> ag.Array:
        return self.of_deviation(shape, math.sqrt(2 / sum(shape)))

    residual = hidden

    def embedding(self, shape: tuple[int, ...]) -> ag.Array:
        return self.of_deviation(shape, 1 / self.sizes.scale_of_embeddings)

    def output(self, shape: tuple[int, ...]) -> ag.Array:
        return self.of_deviation(shape, 1 / (math.sqrt(self.sizes.n_embd) * self.sizes.output_scale))

    def relative(self, shape: tuple[int, ...]) -> ag.Array:
        return self.of_deviation(shape, 1 / math.sqrt(self.sizes.n_embd))

    def of_deviation(self, shape: tuple[int, ...], deviation: float) -> ag.Array:
        return self.normal(shape, deviation / self.config.initializer_range)

    def scale_queries(self, blocks: Sequence[ComposedBlock | DecoderBlock]) -> None:
        """Where scores have another factor than 1 / sqrt(D), as T5's, the queries' weights make up for it at the start."""
        d, scale = self.sizes.channels_per_head, self.sizes.attention_scale
        if scale is None or self.empty:
            return
        for block in blocks:
            block.attn.c_attn.weight.data[:, : self.sizes.n_head * d] *= d**-0.5 / scale  # queries are its first columns
            if isinstance(block, DecoderBlock):
                block.cross.c_q.weight.data[...] *= d**-0.5 / scale


class Stack(nn.Module, Generic[BlockKind]):
    """What encoder and decoder have in common: positions, blocks, a last norm. causal: whether they are the decoder's."""

    def __init__(
        self, config: Seq2SeqConfig, blocks: Sequence[BlockKind], causal: bool, init: GlorotInitializer, stream: ag.RandomStream
    ) -> None:
        self.wpe: nn.Module | None = None
        if config.positions == "learned":
            self.wpe = nn.Embedding(config.n_positions, config.n_embd, init=init.embedding)
        elif config.positions == "sinusoidal":
            self.wpe = SinesThenCosines(config)
        self.relative: RelativePositions | None = None
        if config.positions == "relative":
            self.relative = RelativePositions(config, causal, init, stream)
            for block in blocks:
                block.attn.attend = partial(self.relative.attend)
        init.scale_queries(blocks)
        self.embd_dropout = nn.Dropout(config.dropouts["embd_pdrop"], stream)
        self.h: Sequence[BlockKind] = blocks
        self.ln_f = last_norm(config.blocks())

    def forward(
        self, x: ag.Tensor, positions: np.ndarray, dtype: np.dtype, through: Callable[[int, BlockKind, ag.Tensor], ag.Tensor]
    ) -> ag.Tensor:
        """The normalized residual stream after all blocks, (B, T, C), from embeddings x of tokens at `positions` (T,) or (B, T).

        through   (number of a block, the block, its input) -> its output
        """
        if self.wpe is not None:
            x = x + self.wpe(positions)
        if dtype != np.float32:
            x = ag.cast(x, dtype)  # all that follows takes its dtype from here
        x = self.embd_dropout(x)
        for i, block in enumerate(self.h):
            x = through(i, block, x)
        return self.ln_f(x)


class BiasedOutputLayer(OutputLayer):
    """Scores with a bias (V,) for each token: Marian."""

    def __init__(self, weight: ag.Parameter, scale: float = 1.0) -> None:
        super().__init__(weight, scale=scale)
        self.bias = ag.Parameter(xp.zeros(weight.shape[0], dtype=weight.dtype))

    def forward(self, x: ag.Tensor) -> ag.Tensor:
        return super().forward(x) + nn.cast_like(self.bias, x)  # (..., V)


class Seq2Seq(Model):
    """An encoder-decoder: for each position of a target, a distribution over its next token, given the source and what is before it.

    config   the shape; see Seq2SeqConfig
    seed     decides the initial weights and the dropout masks
    """

    config_class = Seq2SeqConfig
    config: Seq2SeqConfig

    def __init__(self, config: Seq2SeqConfig, seed: int = 0, *, _empty: bool = False) -> None:
        super().__init__(config, seed)
        init = GlorotInitializer(config, seed, _empty)
        self.wte = nn.Embedding(config.vocab_size, config.n_embd, init=init.embedding)
        stream = self.dropout_stream
        self.encoder = Stack(config, composed_blocks(config.blocks(), init, stream, causal=False), False, init, stream)
        self.decoder = Stack(config, [DecoderBlock(config, init, stream) for _ in range(config.n_decoder_layers)], True, init, stream)
        weight = self.wte.weight if config.tie_word_embeddings else ag.Parameter(init.output((config.vocab_size, config.n_embd)))
        self.lm_head = (BiasedOutputLayer if config.logits_bias else OutputLayer)(weight, scale=config.output_scale)

    @property
    def h(self) -> list[ComposedBlock | DecoderBlock]:  # type: ignore[override]  # other models hold their blocks there
        """All blocks, the encoder's first."""
        return [*self.encoder.h, *self.decoder.h]

    def encode(self, source_ids: ArrayLike, attention_mask: ArrayLike | None = None) -> Source:
        """The encoder's pass over sources. Once for each of them, however many tokens the decoder then writes.

        source_ids       (B, S) host integers, S <= n_positions unless positions are relative
        attention_mask   (B, S), 1 for tokens and 0 for padding (either side), or None
        Raises ValueError for other shapes, ids out of range, and a row of padding alone.
        """
        ids = self._checked("source_ids", source_ids)
        positions, mask = np.arange(ids.shape[1]), None
        if attention_mask is not None:
            real = backend.as_mask(np.asarray(attention_mask), "Seq2Seq: attention_mask")
            if real.shape != ids.shape or not real.any(axis=1).all():
                rule = f"expected {ids.shape}, that of source_ids, with a token in every row; leave empty sources out"
                raise InvalidInput(f"Seq2Seq: attention_mask of shape {real.shape} with {np.count_nonzero(real)} tokens, {rule}")
            positions = np.maximum(np.cumsum(real, axis=1) - 1, 0)  # (B, S): padding on the left does not count
            mask = backend.to_device(real[:, None, None, :])  # (B, 1, 1, S): padding is never attended to

        def through(i: int, block: ComposedBlock, x: ag.Tensor) -> ag.Tensor:
            return nn.recompute(partial(block, mask=mask), x, [self.dropout_stream]) if block.recompute else block(x, mask)

        return Source(self.encoder(self._embed(ids), positions, self.dtype, through), mask)

    def with_keys(self, source: Source) -> Source:
        """The source with the keys and values of every decoder block, which then need not be computed at each call of `decode`."""
        return source._replace(cross=tuple(block.cross.keys_values(source.hidden) for block in self.decoder.h))

    def decode(self, target_ids: ArrayLike, source: Source, cache: "View | None" = None) -> ag.Tensor:
        """The decoder's pass over targets: the input of the output layer, (B, T, C), one row for each next token.

        target_ids   (B, T) host integers: a target as far as it is known, from start_id on; padding on the right, where no real token looks
        source       of `encode`, (B, S, C)
        cache        keys and values of the target's earlier tokens, which target_ids then continue; see `tinygpt.models.cache`
        Raises ValueError for other shapes, ids out of range, and more than n_positions tokens unless positions are relative.
        """
        ids = self._checked("target_ids", target_ids)
        if len(ids) != len(source.hidden.data):
            raise InvalidInput(f"Seq2Seq: {len(ids)} targets with {len(source.hidden.data)} sources, expected one for each; pair them up")

        def through(i: int, block: DecoderBlock, x: ag.Tensor) -> ag.Tensor:
            if block.recompute and cache is None and source.cross is None:
                return block.recomputed(x, source, [self.dropout_stream])
            keys_values = block.cross.keys_values(source.hidden) if source.cross is None else source.cross[i]
            return block(x, keys_values, source.mask, *((None, None) if cache is None else (cache.mask, cache.layer(i))))

        positions = np.arange(ids.shape[1]) if cache is None else cache.positions
        return self.decoder(self._embed(ids), positions, self.dtype, through)

    def _checked(self, what: str, given: ArrayLike) -> np.ndarray:
        ids = np.asarray(given)
        if ids.ndim != 2 or ids.size == 0:
            raise InvalidInput(f"Seq2Seq: {what} of shape {ids.shape}, expected (batch, positions), none of them 0; wrap one text as [ids]")
        if ids.shape[1] > self.config.n_positions and self.config.positions != "relative":
            rule = f"expected at most n_positions = {self.config.n_positions}; shorten the text"
            raise InvalidInput(f"Seq2Seq: {what} of {ids.shape[1]} positions, {rule}")
        return ids

    def _embed(self, ids: np.ndarray) -> ag.Tensor:
        x, scale = self.wte(ids), self.config.scale_of_embeddings
        padding = ids == self.config.pad_id
        if padding.any() and not self.config.padding_trains:
            x = ag.where(backend.to_device(padding[..., None]), ag.Tensor(x.data), x)  # the same numbers, without a way back
        return x if scale == 1 else x * scale

    def forward(self, source_ids: ArrayLike, target_ids: ArrayLike, attention_mask: ArrayLike | None = None) -> ag.Tensor:
        """Logits (B, T, V): position t's are for the token after target_ids (B, T) up to t. target_ids begin with start_id; see `encode` and
        `decode` for the arguments."""
        with nn.weights_in(self, self.dtype):
            return self.lm_head(self.decode(target_ids, self.encode(source_ids, attention_mask)))

    def loss(self, source_ids: ArrayLike, targets: ArrayLike, attention_mask: ArrayLike | None = None) -> ag.Tensor:
        """Mean cross-entropy of `targets` (B, T), in nats per token, as a scalar; targets equal to -100 (IGNORED) do not count.

        The decoder reads the targets shifted right by one, from start_id on, and so predicts each from those before it: all at once.
        In training mode it includes label smoothing and z-loss, where they have been set; in evaluation mode it never does.
        """
        with nn.weights_in(self, self.dtype):
            hidden = self.decode(shifted_right(targets, self.config.start_id, self.config.pad_id), self.encode(source_ids, attention_mask))
            head, (smoothing, z_loss) = self.lm_head, (self.label_smoothing, self.z_loss) if self.training else (0.0, 0.0)
            bias = nn.cast_like(head.bias, hidden) if isinstance(head, BiasedOutputLayer) else None
            return ag.linear_cross_entropy(
                head.scaled(hidden), nn.cast_like(head.weight, hidden), targets, bias, ignore_index=IGNORED,
                label_smoothing=smoothing, z_loss=z_loss,
            )  # fmt: skip

    if TYPE_CHECKING:

        def translate(self, source_ids: ArrayLike, max_new_tokens: int, **options: object) -> list[list[int]]: ...
    else:
        translate = Attached()  # tinygpt.inference.translate


def shifted_right(targets: ArrayLike, start_id: int, pad_id: int) -> np.ndarray:
    """The decoder's inputs (B, T) for targets (B, T): each is the target before it, the first start_id; ignored ones are padding."""
    targets = np.asarray(targets)
    if targets.ndim != 2:
        raise InvalidInput(f"Seq2Seq: targets of shape {targets.shape}, expected (batch, positions); wrap one text as [targets]")
    inputs = np.concatenate([np.full_like(targets[:, :1], start_id), targets[:, :-1]], axis=1)
    return np.where(inputs == IGNORED, pad_id, inputs)


def translate_plain(model: Seq2Seq, source_ids: Sequence[int], max_new_tokens: int) -> list[int]:
    """One source translated, one token at a time: the decoder reads what it has written so far, and its likeliest next token is appended.

    Ends with eos_id, or after max_new_tokens. `model.translate` gives the same tokens, faster and with more options
    (`tinygpt/inference/translate.py`).
    """
    target = [model.config.start_id]
    with nn.evaluating(model), ag.no_grad():
        source = model.encode([source_ids])  # once
        for _ in range(max_new_tokens):
            hidden = model.decode([target], source)  # (1, T, C)
            logits = backend.to_host(model.lm_head(hidden).data)[0, -1]  # (V,): the last position predicts what is new
            target.append(int(logits.argmax()))
            if target[-1] == model.config.eos_id:
                break
    return target[1:]
