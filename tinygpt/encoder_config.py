"""The shape of an encoder (`EncoderConfig`): BERT's by default, RoBERTa's, and the options that its blocks share with the GPT's."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, Self

from tinygpt.errors import InvalidInput, did_you_mean
from tinygpt.fields import Json, check_fields, from_dict
from tinygpt.model_config import GPTConfig, Shapes

ENCODER_PRESETS: dict[str, dict[str, Json]] = {
    "bert-base": {},
    "bert-large": {"n_layer": 24, "n_head": 16, "n_embd": 1024},
    "roberta-base": {"vocab_size": 50_265, "n_token_types": 1, "pad_id": 1, "count_padding": False, "layer_norm_epsilon": 1e-5},
    "laptop": {"n_layer": 4, "n_head": 4, "n_embd": 128, "n_positions": 128, "vocab_size": 4096},  # that of GPTConfig with BERT's blocks
    "quick": {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 32, "vocab_size": 512},  # seconds: for tests and first looks
}
"""Named shapes: the fields that differ from BERT-base. Values are those of the published config files, tests count the weights."""

_OPTIONS = "activation count_padding norm norm_position embedding_norm positions gated"


@dataclass(frozen=True)
class EncoderConfig:
    """The shape of an encoder. Fields that a GPT has, too, have the names of `GPTConfig`; defaults are those of BERT-base, except dropout.

    Source  Devlin et al. 2018, arXiv:1810.04805, section 3.
    """

    n_layer: int = 12
    """Number of transformer blocks."""
    n_head: int = 12
    """Attention heads per block; must divide n_embd."""
    n_embd: int = 768
    """Channels of the residual stream (C)."""
    n_positions: int = 512
    """Context length: the most tokens the model sees at once (T). RoBERTa's file counts pad_id + 1 more, which no token has."""
    vocab_size: int = 30_522
    """Number of token ids (V)."""
    n_token_types: int = 2
    """Kinds of tokens with an embedding each, added to the token's: of the first and of the second text; 0: none."""
    pad_id: int = 0
    """The token that fills up a batch."""
    count_padding: bool = True
    """Whether padding takes up positions, as in BERT; False: real tokens are counted without it, as in RoBERTa."""
    dropout: float = 0.0
    """Probability of dropping embeddings, attention weights and residual branches in training; BERT: 0.1."""
    embd_pdrop: float | None = None
    """The same for embeddings alone; default: `dropout`."""
    attn_pdrop: float | None = None
    """The same for attention weights alone; default: `dropout`."""
    tie_word_embeddings: bool = True
    """Whether the output layer shares the token embedding's matrix."""
    layer_norm_epsilon: float = 1e-12
    """Added to the variance in layer norm, to the mean square in RMS norm."""
    initializer_range: float = 0.02
    """Standard deviation of the initial weights."""
    activation: Literal["gelu", "gelu_exact", "relu", "silu", "squared_relu"] = "gelu_exact"
    """The nonlinearity of the MLPs and of the masked-word head; gelu is the approximation with tanh."""
    n_inner: int | None = None
    """Inner channels of the MLP; default: 4 n_embd."""
    head: bool = True
    """Whether there is a head for masked words; a classifier has none."""
    pooler: bool = False
    """Whether there is a layer over the first token's channels, which stands for the text: for classifiers; predicting words needs none."""

    # Options beyond BERT, as in GPTConfig.
    norm: Literal["layer", "rms", "rms_unweighted"] = "layer"
    """Layer norm, RMS norm with a weight per channel, or RMS norm without."""
    norm_position: Literal["pre", "post", "output", "sandwich"] = "post"
    """Where a branch f is normalized: pre x + f(n(x)), post n(x + f(x)), output x + n(f(x)), sandwich x + n(f(n(x)))."""
    embedding_norm: bool = True
    """Whether the embeddings are normalized before the first block."""
    positions: Literal["learned", "sinusoidal", "rotary", "none"] = "learned"
    """How the order of tokens gets in: added to the embeddings (learned, sinusoidal), or in attention (rotary)."""
    gated: bool = False
    """Whether the MLP's inner channels are multiplied by the activation of a second projection."""

    def __post_init__(self) -> None:
        check_fields(self, {1: "n_layer n_head n_embd n_positions vocab_size n_inner", 0: "n_token_types pad_id"})
        if self.pad_id >= self.vocab_size:
            raise InvalidInput(f"EncoderConfig.pad_id: {self.pad_id}, expected less than vocab_size = {self.vocab_size}; BERT has 0")
        try:
            self.blocks()
        except InvalidInput as error:
            raise InvalidInput(str(error).replace("GPTConfig", "EncoderConfig")) from None

    @classmethod
    def preset(cls, name: str, **changes: Json) -> Self:
        """A named shape of `ENCODER_PRESETS`; `changes` override its fields."""
        if name not in ENCODER_PRESETS:
            known = ", ".join(ENCODER_PRESETS)
            raise InvalidInput(f"EncoderConfig.preset: {name!r}, expected one of {known}; {did_you_mean(name, ENCODER_PRESETS)}")
        return cls.from_dict({**ENCODER_PRESETS[name], **changes})

    @classmethod
    def from_dict(cls, fields: dict[str, Json]) -> Self:
        """A config from keys and values. Raises ValueError for an unknown key, with the nearest known one."""
        return from_dict(cls, fields)

    def blocks(self) -> GPTConfig:
        """The same shape as a GPT's: its blocks, between the same embeddings and without an output layer of its own, are the encoder's."""
        shared = "n_layer n_head n_embd n_positions vocab_size dropout embd_pdrop attn_pdrop layer_norm_epsilon initializer_range norm"
        shared += " norm_position embedding_norm positions activation gated n_inner"
        return GPTConfig(**{name: getattr(self, name) for name in shared.split()})

    def filled(self) -> dict[str, Json]:
        """Fields whose defaults depend on others, filled in, and those that a file shows by the tensors that it has."""
        return {"n_inner": self.n_inner or 4 * self.n_embd, "head": True, "pooler": False}

    def options(self) -> dict[str, Json]:
        """The fields that make another model than BERT of it, whatever the sizes."""
        beyond = [f for f in dataclasses.fields(self) if f.name in _OPTIONS.split() and getattr(self, f.name) != f.default]
        return {f.name: getattr(self, f.name) for f in beyond} | ({} if self.n_token_types else {"n_token_types": 0})

    def outer_shapes(self) -> Shapes:
        """Shape of each parameter outside the blocks; a tied one once."""
        c, v, n_types = self.n_embd, self.vocab_size, self.n_token_types
        norm = {"layer": ("weight", "bias"), "rms": ("weight",), "rms_unweighted": ()}[self.norm]
        head: Shapes = {
            **{"head.c_fc.weight": (c, c), "head.c_fc.bias": (c,), "head.bias": (v,)},
            **{f"head.ln.{kind}": (c,) for kind in norm},
            **({} if self.tie_word_embeddings else {"head.weight": (v, c)}),
        }
        return {
            **self.blocks().outer_shapes(),
            **({"wtt.weight": (n_types, c)} if n_types else {}),
            **(head if self.head else {}),
            **({"pooler.weight": (c, c), "pooler.bias": (c,)} if self.pooler else {}),
        }

    def n_parameters(self) -> int:
        """Number of weights, tied ones once. 109,514,298 for BERT-base without its pooler."""
        outer, block = (sum(map(math.prod, shapes.values())) for shapes in (self.outer_shapes(), self.blocks().block_shapes()))
        return outer + self.n_layer * block
