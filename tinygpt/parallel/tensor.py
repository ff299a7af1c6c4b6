"""Tensor parallelism: each rank of a group holds some heads of every attention, some hidden units of every MLP, some tokens of the vocabulary.

    model = split(GPT(config, seed=0), group)          # the rank's part; model.loss(ids, targets) and its gradients are those of the full model
    full = join(model, group)                          # an ordinary GPT again

A branch of a block is two matrices with something in between that treats heads, or hidden units, one by one. The first is split by columns,
the second by rows, so a rank computes its heads from beginning to end, and the ranks meet once, in the sum behind the second matrix:

    y = sum over ranks of f(x @ A_r) @ B_r + b         A = [A_1 A_2 ...],  B = [B_1; B_2; ...] below each other

    copy_to_group      in front of each branch         forward nothing, backward a sum
    sum_over_group     behind each branch              forward a sum, backward nothing

Norms, positions and the biases b are on all ranks; as the gradients that reach them are the same there, so they stay the same. All ranks of a
group compute the same rows: it is data parallelism that divides those. Which part of a parameter is whose: split_state.py. For training, with
norms that count each weight once: divided.py.

Source  Shoeybi et al. 2019, Megatron-LM, arXiv:1909.08053, section 3.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

import autograd as ag
from autograd import Array, backend, nn
from tinygpt.config import GPTConfig
from tinygpt.errors import InvalidInput
from tinygpt.models.blocks import ComposedAttention, ComposedBlock, ComposedMLP, GatedMLP
from tinygpt.models.gpt import GPT, Block, Initializer, OutputLayer
from tinygpt.models.protocols import Communicator
from tinygpt.parallel.split_state import bounds, check_divides, gathered, joined, own_shape, part_of

M = TypeVar("M", bound=nn.Module)


class RowLinear(nn.Linear):
    """y = sum over ranks of x_r @ W_r, + b: x_r (..., I / R) are the rank's own inputs. b is added once, after the sum."""

    group: Communicator

    def forward(self, x: ag.Tensor) -> ag.Tensor:
        y = ag.sum_over_group(ag.linear(x, nn.cast_like(self.weight, x)), self.group)
        return y if self.bias is None else y + nn.cast_like(self.bias, y)


class SplitBranch(nn.Module):
    """Mixed into a branch of a block that is made in the rank's own shape: x enters it by `copy_to_group`, and leaves by `sum_over_group`."""

    group: Communicator
    c_proj: nn.Linear

    def enter(self, group: Communicator, init: Initializer) -> None:
        self.group = group
        n_in, n_out = self.c_proj.weight.shape
        self.c_proj = RowLinear(n_in, n_out, self.c_proj.bias is not None, init=init.residual)
        self.c_proj.group = group

    def forward(self, x: ag.Tensor, *args: object, **options: object) -> ag.Tensor:
        y: ag.Tensor = super().forward(ag.copy_to_group(x, self.group), *args, **options)
        return y


class SplitMLP(SplitBranch, ComposedMLP):
    """Some hidden units: columns of c_fc, rows of c_proj."""


class SplitGatedMLP(SplitBranch, GatedMLP):
    """Some hidden units: columns of c_gate and c_fc, rows of c_proj."""


class SplitAttention(SplitBranch, ComposedAttention):
    """Some heads, with their queries, keys and values: columns of c_attn, rows of c_proj."""

    def __init__(
        self,
        config: GPTConfig,
        layer: int,
        rotary: nn.RotaryPositions | None,
        init: Initializer,
        stream: ag.RandomStream,
        group: Communicator,
    ) -> None:
        super().__init__(own_shape(config, group), layer, rotary, init, stream)
        self.enter(group, init)
        first, end = bounds(config.n_head, group.rank, group.size)
        if config.positions == "alibi":
            self.attend = partial(self.attend, alibi=ag.alibi_slopes(config.n_head)[first:end])
        if config.dropouts["attn_pdrop"]:
            self.attend = partial(attend_by_sequence, self.attend, stream, group)
        if config.qk_norm != "none":
            channels = self.lengths if config.qk_norm == "all" else (0, 0, 0)
            self.q_norm = SplitNorm(self.q_norm, group, group.size * channels[0])
            self.k_norm = SplitNorm(self.k_norm, group, group.size * channels[1])


def attend_by_sequence(
    attend: Callable[..., ag.Tensor], stream: ag.RandomStream, group: Communicator,
    q: ag.Tensor, k: ag.Tensor, v: ag.Tensor, mask: Array | None, *, window: int, training: bool,
) -> ag.Tensor:  # fmt: skip
    """Attention with the dropout mask of one process, (B, H, T, S), in which only the own heads of one sequence lie next to each other."""
    if not training:
        return attend(q, k, v, mask, window=window, training=False)
    draw, n, parts = stream.next_draw(), len(q.data), []
    for i, own in enumerate(zip(*(ag.split(each, n, axis=0) for each in (q, k, v)), strict=True)):
        masks = ag.RandomStream(stream.seed, draw)
        masks.first_row = (stream.first_row + i) * group.size + group.rank  # counted in heads of a rank
        parts.append(attend(*own, mask if mask is None or len(mask) == 1 else mask[i : i + 1], window=window, training=True, stream=masks))
    return ag.concatenate(parts, axis=0)


class SplitNorm(nn.Module):
    """A norm of the own queries or keys, with the parameters of another.

    n_channels   0: each head is normalized by itself; the weight of all heads is on all ranks, and its gradients are added up.
                 Else the channels of all ranks, which are normalized together: the ranks add up their sums, and each has its part of the weight
    """

    def __init__(self, of: nn.Module, group: Communicator, n_channels: int) -> None:
        assert isinstance(of, (nn.LayerNorm, nn.RMSNorm))
        self.group, self.n_channels, self.eps, self.of_differences = group, n_channels, of.eps, isinstance(of, nn.LayerNorm)
        self.weight, self.bias, self.offset = of.weight, getattr(of, "bias", None), getattr(of, "offset", 0.0)

    def forward(self, x: ag.Tensor) -> ag.Tensor:
        weight, bias = (None if p is None else nn.cast_like(p, x) for p in (self.weight, self.bias))
        if not self.n_channels:
            weight, bias = (None if p is None else ag.copy_to_group(p, self.group) for p in (weight, bias))
            if weight is not None and bias is not None:
                return ag.layer_norm(x, weight, bias, self.eps)
            return ag.rms_norm(x, weight, self.eps, self.offset)
        n = ag.cast(x, "float32") if x.dtype.itemsize == 2 else x
        if self.of_differences:
            n = n - self.mean(n)
        n = n / ag.sqrt(self.mean(n * n) + self.eps)
        n = n if weight is None else n * (weight + self.offset)
        return ag.cast(n if bias is None else n + bias, x.dtype)

    def mean(self, x: ag.Tensor) -> ag.Tensor:
        """(..., C / R) -> (..., 1), over the channels of all ranks; each uses it for its own channels, so it enters them by `copy_to_group`."""
        total = ag.sum_over_group(x.sum(axis=-1, keepdims=True), self.group)
        return ag.copy_to_group(total, self.group) * (1 / self.n_channels)


class SplitEmbedding(nn.Embedding):
    """Some rows of the table, from row `first` on; a rank gives 0 for tokens of others, and the sum over ranks has them all."""

    def __init__(self, config: GPTConfig, group: Communicator, init: Initializer) -> None:
        self.n_ids, self.group = config.vocab_size, group
        self.first, end = bounds(config.vocab_size, group.rank, group.size)
        super().__init__(end - self.first, config.n_embd, init=init.normal)

    def forward(self, ids: ArrayLike) -> ag.Tensor:
        backend.checked_indices(ids, self.n_ids, what="embedding id")
        own = np.asarray(ids) - self.first
        here = (own >= 0) & (own < self.weight.shape[0])
        rows = ag.embedding(self.weight, np.where(here, own, 0))
        return ag.sum_over_group(rows * backend.to_device(here[..., None].astype(rows.dtype)), self.group)


class SplitOutputLayer(OutputLayer):
    """The scores of the own tokens are computed here, and gathered: for evaluation. The loss of training does without."""

    def __init__(self, weight: ag.Parameter, config: GPTConfig, group: Communicator) -> None:
        super().__init__(weight, config.logit_softcap, 1 / config.width_ratio)
        self.n_ids, self.group = config.vocab_size, group

    def forward(self, x: ag.Tensor) -> ag.Tensor:
        if ag.is_recording():
            raise InvalidInput(
                "tensor parallelism: logits for a backward pass, expected them under no_grad; take model.loss, which needs none"
            )
        own = backend.xp.moveaxis(super().forward(x).data, -1, 0)
        return ag.Tensor(backend.xp.moveaxis(gathered(own, self.n_ids, self.group), 0, -1))


def split(model: GPT, group: Communicator) -> GPT:
    """Leaves the rank's part of a model that all ranks have made alike, under the same names; returns it.

    The model may be a stage of a pipeline: parts that another rank holds stay as they are. Its loss, `model.loss`, and the gradients are those of
    the full model, as are the masks of dropout. `model.config` remains that of the full model.
    Raises ValueError where heads or hidden units do not divide.
    """
    config, stream = model.config, model.dropout_stream
    check_divides(config, group.size)
    own = own_shape(config, group)
    init = Initializer(own, 0, empty=True)
    for layer, block in enumerate(model.h):
        if isinstance(block, (Block, ComposedBlock)):
            attn = SplitAttention(config, layer, getattr(block.attn, "rotary", None), init, stream, group)
            mlp = (SplitGatedMLP if config.gated else SplitMLP)(own, init, stream)
            mlp.enter(group, init)
            for name, part in (("attn", attn), ("mlp", mlp)):
                take(part, getattr(block, name), name, config, group)
                setattr(block, name, part)
    tied = config.tie_word_embeddings
    if isinstance(model.wte, nn.Embedding):
        model.wte = take(SplitEmbedding(config, group, init), model.wte, "wte", config, group)
    if isinstance(model.lm_head, OutputLayer):
        weight = model.wte.weight if tied else ag.Parameter(part_of("lm_head.weight", model.lm_head.weight.data, config, group))
        model.lm_head = SplitOutputLayer(weight, config, group)
    model.cross_entropy = partial(ag.split_linear_cross_entropy, group=group, n_classes=config.vocab_size)
    return model


def take(part: M, of: nn.Module, name: str, config: GPTConfig, group: Communicator) -> M:
    """The module, with the rank's part of the weights of another, which is called `name` in the model; training or not as that is."""
    full = dict(of.named_parameters())
    for key, p in part.named_parameters():
        p.data = part_of(f"{name}.{key}", full[key].data, config, group)
    part.train(of.training)
    return part


def join(model: GPT, group: Communicator) -> GPT:
    """An ordinary model with the weights of all ranks of the group, on each of them; all call it. `model` stays as it is."""
    full = GPT(model.config, _empty=True)
    arrays = {name: joined(name, p.data, model.config, group) for name, p in model.named_parameters()}
    for name, p in full.named_parameters():
        p.data = arrays[name]
    full.dtype, full.z_loss, full.label_smoothing, full.dropout_stream = (
        model.dtype,
        model.z_loss,
        model.label_smoothing,
        model.dropout_stream,
    )
    full.train(model.training)
    return full
