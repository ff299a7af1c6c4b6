"""The shape of an encoder-decoder (`Seq2SeqConfig`): the transformer of 2017, Marian and T5."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, Self

from tinygpt.errors import InvalidInput, WrongType, did_you_mean
from tinygpt.fields import Json, check_fields, from_dict
from tinygpt.model_config import GPTConfig, Shapes

_T5 = {
    "vocab_size": 32_128, "norm": "rms", "norm_position": "pre", "positions": "relative", "bias": False, "embedding_scale": 1.0,
    "attention_scale": 1.0, "layer_norm_epsilon": 1e-6, "head_size": 64, "padding_trains": True,
}  # fmt: skip

PRESETS: dict[str, dict[str, Json]] = {
    "transformer-base": {},  # Vaswani et al. 2017, table 3: 65 million weights. The vocabulary: section 5.1, English and German
    "transformer-big": {"n_embd": 1024, "n_head": 16, "n_inner": 4096},  # 213 million
    "opus-mt": {  # Helsinki-NLP/opus-mt-en-de; those of other pairs differ in the vocabulary
        "vocab_size": 58_101, "activation": "silu", "logits_bias": True, "start_id": 58_100, "pad_id": 58_100, "eos_id": 0,
        "banned_ids": (58_100,), "forced_last_id": 0,
    },
    "t5-small": {**_T5, "n_embd": 512, "n_head": 8, "output_scale": 512**-0.5},
    "t5-v1.1-small": {
        **_T5, "n_layer": 8, "n_embd": 512, "n_head": 6, "n_inner": 1024, "activation": "gelu", "gated": True, "tie_word_embeddings": False,
    },
    "laptop": {"n_layer": 2, "n_head": 4, "n_embd": 128, "n_positions": 256, "vocab_size": 512},  # examples/translate.py
    "quick": {"n_layer": 1, "n_head": 2, "n_embd": 32, "n_positions": 64, "vocab_size": 128},  # seconds: for tests and first looks
}  # fmt: skip
"""Named shapes: the fields of `Seq2SeqConfig` that differ from its defaults. Dropout is for the training run to choose."""


@dataclass(frozen=True)
class Seq2SeqConfig:
    """The shape of an encoder-decoder. Fields of the same name as `GPTConfig`'s mean the same. Defaults: the base model of Vaswani et al.
    2017, arXiv:1706.03762, except dropout, 0.1 there."""

    n_layer: int = 6
    """Number of encoder blocks."""
    n_decoder_layer: int | None = None
    """Number of decoder blocks; default: n_layer."""
    n_head: int = 8
    """Attention heads per block; must divide n_embd, unless head_size is given."""
    n_embd: int = 512
    """Channels of both residual streams (C)."""
    n_positions: int = 512
    """The most tokens of a source, and of a target. Relative positions work beyond it."""
    vocab_size: int = 37_000
    """Number of token ids (V), of source and target together."""
    n_inner: int | None = None
    """Inner channels of the MLPs; default: 4 n_embd."""
    dropout: float = 0.0
    """Probability of dropping embeddings, attention weights and residual branches in training."""
    embd_pdrop: float | None = None
    """The same for embeddings alone; default: `dropout`."""
    attn_pdrop: float | None = None
    """The same for attention weights alone; default: `dropout`."""
    norm: Literal["layer", "rms"] = "layer"
    """Layer norm, or RMS norm with a weight per channel."""
    norm_position: Literal["post", "pre"] = "post"
    """Where a branch f is normalized: post n(x + f(x)), pre x + f(n(x)), with a last norm behind each stack."""
    layer_norm_epsilon: float = 1e-5
    """Added to the variance in layer norm, to the mean square in RMS norm."""
    positions: Literal["sinusoidal", "learned", "relative"] = "sinusoidal"
    """How the order of tokens gets in: added to the embeddings, or (relative) as a learned term of self-attention's scores."""
    relative_buckets: int = 32
    """Relative positions: into how many buckets distances fall, each with a term for every head (Raffel et al. 2020, arXiv:1910.10683)."""
    relative_distance: int = 128
    """Relative positions: from which distance on all fall into the last bucket."""
    activation: Literal["gelu", "gelu_exact", "relu", "silu", "squared_relu"] = "relu"
    """The MLPs' nonlinearity."""
    gated: bool = False
    """Whether the MLPs' inner channels are multiplied by the activation of a second projection."""
    bias: bool = True
    """Whether the blocks' linear layers have biases."""
    head_size: int | None = None
    """Channels of one attention head (D); default: n_embd / n_head."""
    attention_scale: float | None = None
    """Factor of attention's scores; default: 1 / sqrt(head size); T5: 1."""
    embedding_scale: float | None = None
    """Factor of the token embeddings; default: sqrt(n_embd)."""
    output_scale: float = 1.0
    """Factor of the output layer's input; T5: 1 / sqrt(n_embd) where the layer is tied."""
    tie_word_embeddings: bool = True
    """Whether the output layer shares the matrix of the embeddings, which source and target always share."""
    logits_bias: bool = False
    """Whether the output layer has a bias."""
    start_id: int = 0
    """The decoder's first input."""
    pad_id: int = 0
    """Padding; the decoder's input where a target is ignored."""
    padding_trains: bool = False
    """Whether padding's embedding learns from being read, as in T5; in Marian it does not, though the decoder starts with it."""
    eos_id: int = 1
    """Ends a target."""
    banned_ids: tuple[int, ...] = ()
    """Ids that decoding never chooses; Marian: padding."""
    forced_first_id: int | None = None
    """The id that decoding begins with, after start_id: a multilingual model's language."""
    forced_last_id: int | None = None
    """The id at the last position that decoding may fill; Marian: eos_id."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "banned_ids", tuple(ids) if isinstance(ids := self.banned_ids, list) else ids)  # a list, in JSON
        sizes = "n_layer n_decoder_layer n_head n_embd n_positions vocab_size n_inner head_size"
        check_fields(self, {1: sizes, 0: " ".join(_IDS)})
        _check_ids(self)
        _check_scales_and_buckets(self)
        try:
            self.blocks()
        except InvalidInput as error:
            raise InvalidInput(str(error).replace("GPTConfig", "Seq2SeqConfig")) from None

    @classmethod
    def preset(cls, name: str, **changes: Json) -> Self:
        """A named shape, from transformer-base to t5-small; `changes` override its fields."""
        if name not in PRESETS:
            raise InvalidInput(f"Seq2SeqConfig.preset: {name!r}, expected one of {', '.join(PRESETS)}; {did_you_mean(name, PRESETS)}")
        return cls.from_dict({**PRESETS[name], **changes})

    @classmethod
    def from_dict(cls, fields: dict[str, Json]) -> Self:
        """A config from keys and values. Raises ValueError for an unknown key, with the nearest known one."""
        return from_dict(cls, fields)

    def blocks(self, decoder: bool = False) -> GPTConfig:
        """The encoder's blocks as those of a GPT, or the decoder's without what it has in addition: their options, and their cache."""
        shared = "n_head n_embd n_positions vocab_size n_inner dropout embd_pdrop attn_pdrop layer_norm_epsilon norm norm_position"
        shared += " activation gated head_size attention_scale tie_word_embeddings"
        return GPTConfig(
            n_layer=self.n_decoder_layers if decoder else self.n_layer, positions="none" if self.positions == "relative" else self.positions,
            qkv_bias=self.bias, attention_output_bias=self.bias, mlp_bias=self.bias,
            **{name: getattr(self, name) for name in shared.split()},
        )  # fmt: skip

    def filled(self) -> dict[str, Json]:
        """Fields whose defaults depend on others, filled in, and those that a file shows by the tensors that it has."""
        relative = {} if self.positions == "relative" else {"relative_buckets": 0, "relative_distance": 0}
        return relative | {
            "n_decoder_layer": self.n_decoder_layers, "n_inner": self.inner_channels, "head_size": self.channels_per_head,
            "attention_scale": self.attention_scale or self.channels_per_head**-0.5, "embedding_scale": self.scale_of_embeddings,
            "logits_bias": False,
        }  # fmt: skip

    def options(self) -> dict[str, Json]:
        """The fields that make another model than that of 2017 of it, whatever the sizes."""
        sizes = "n_layer n_decoder_layer n_head n_embd n_positions vocab_size n_inner dropout embd_pdrop attn_pdrop start_id pad_id eos_id"
        beyond = [f for f in dataclasses.fields(self) if f.name not in sizes.split() and getattr(self, f.name) != f.default]
        return {f.name: getattr(self, f.name) for f in beyond}

    @property
    def n_decoder_layers(self) -> int:
        """Number of decoder blocks."""
        return self.n_decoder_layer or self.n_layer

    @property
    def channels_per_head(self) -> int:
        """Channels of one attention head (D)."""
        return self.head_size or self.n_embd // self.n_head

    @property
    def inner_channels(self) -> int:
        """Channels inside the MLPs."""
        return self.n_inner or 4 * self.n_embd

    @property
    def scale_of_embeddings(self) -> float:
        """`embedding_scale`, with its default."""
        return math.sqrt(self.n_embd) if self.embedding_scale is None else self.embedding_scale

    @property
    def dropouts(self) -> dict[str, float]:
        """As `GPTConfig.dropouts`."""
        return self.blocks().dropouts

    def outer_shapes(self) -> Shapes:
        """Shape of each parameter outside the blocks, a tied one once."""
        c, block = self.n_embd, self.blocks().block_shapes()
        norm = {name.removeprefix("ln_1."): shape for name, shape in block.items() if name.startswith("ln_1.")}
        found: Shapes = {"wte.weight": (self.vocab_size, c)}
        for stack in ("encoder", "decoder"):
            found |= {f"{stack}.wpe.weight": (self.n_positions, c)} if self.positions == "learned" else {}
            found |= {f"{stack}.relative.weight": (self.relative_buckets, self.n_head)} if self.positions == "relative" else {}
            found |= {f"{stack}.ln_f.{kind}": shape for kind, shape in norm.items()} if self.norm_position == "pre" else {}
        found |= {} if self.tie_word_embeddings else {"lm_head.weight": (self.vocab_size, c)}
        return found | ({"lm_head.bias": (self.vocab_size,)} if self.logits_bias else {})

    def block_shapes(self, decoder: bool = False) -> Shapes:
        """Shape of each parameter of an encoder's block, or of a decoder's, by its name in the block."""
        c, inner = self.n_embd, self.n_head * self.channels_per_head
        block = self.blocks().block_shapes()
        cross = {name.replace("ln_1.", "ln_cross."): shape for name, shape in block.items() if name.startswith("ln_1.")}
        for name, shape in {"c_q": (c, inner), "c_k": (c, inner), "c_v": (c, inner), "c_proj": (inner, c)}.items():
            cross |= {f"cross.{name}.weight": shape} | ({f"cross.{name}.bias": shape[1:]} if self.bias else {})
        return block | (cross if decoder else {})

    def n_parameters(self) -> int:
        """Number of weights, tied ones once. 60,506,624 for T5's smallest."""
        stacks = ((1, self.outer_shapes()), (self.n_layer, self.block_shapes()), (self.n_decoder_layers, self.block_shapes(decoder=True)))
        return sum(n * sum(map(math.prod, shapes.values())) for n, shapes in stacks)


_IDS = ("start_id", "pad_id", "eos_id", "forced_first_id", "forced_last_id")


def _check_ids(config: Seq2SeqConfig) -> None:
    if not isinstance(config.banned_ids, tuple) or not all(type(id) is int for id in config.banned_ids):
        raise WrongType(f"Seq2SeqConfig.banned_ids: {config.banned_ids!r:.80}, expected integers; write them as (3, 5)")
    for name, id in [*((name, getattr(config, name)) for name in _IDS), *(("banned_ids", id) for id in config.banned_ids)]:
        if id is not None and not 0 <= id < config.vocab_size:
            raise InvalidInput(f"Seq2SeqConfig.{name}: {id}, expected 0 to {config.vocab_size - 1}, an id of the vocabulary")


def _check_scales_and_buckets(config: Seq2SeqConfig) -> None:
    for name in ("embedding_scale", "output_scale"):
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise InvalidInput(f"Seq2SeqConfig.{name}: {value}, expected > 0; leave it out for the default")
    if config.relative_buckets < 4 or config.relative_buckets % 4 or config.relative_distance <= config.relative_buckets // 2:
        found = f"relative_buckets {config.relative_buckets}, relative_distance {config.relative_distance}"
        rule = "a multiple of 4 (half for each direction, half of those exact), and a distance beyond the exact ones"
        raise InvalidInput(f"Seq2SeqConfig: {found}, expected {rule}; T5 has 32 and 128")
