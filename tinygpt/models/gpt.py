"""The GPT: token and position embeddings, a stack of pre-norm transformer blocks, a final norm and an output layer.

Source  Radford et al. 2019, Language models are unsupervised multitask learners (GPT-2), section 2.3; attribute names are those
of GPT-2's published tensors (wte, wpe, h.0.attn.c_attn, ...), so `named_parameters` gives the names in the file.
"""

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

import autograd as ag
from autograd import backend, nn
from tinygpt.config import GPTConfig
from tinygpt.errors import InvalidInput

if TYPE_CHECKING:
    from tinygpt.models.cache import CacheView, LayerCache


class CausalSelfAttention(nn.Module):
    """Every position looks back at all earlier ones, with several heads side by side."""

    def __init__(self, config: GPTConfig, init: "Initializer", stream: ag.RandomStream) -> None:
        c = config.n_embd
        self.n_head = config.n_head
        self.p = config.dropouts["attn_pdrop"]
        self.stream = stream
        self.c_attn = nn.Linear(c, 3 * c, config.qkv_bias, init=init.normal)
        self.c_proj = nn.Linear(c, c, init=init.residual)
        self.resid_dropout = nn.Dropout(config.dropout, stream)

    def forward(self, x: ag.Tensor, mask: Any = None, cache: "LayerCache | None" = None) -> ag.Tensor:
        b, t, c = x.shape
        q, k, v = self.heads(x)
        if cache is not None:
            k, v = cache.update(k, v)  # (B, H, S, D): those of earlier calls in front
        y = ag.scaled_dot_product_attention(
            q, k, v, mask, causal=True, dropout=self.p, training=self.training, stream=self.stream
        )  # (B, H, T, D)
        y = y.transpose(0, 2, 1, 3).reshape(b, t, c)  # heads side by side again
        return self.resid_dropout(self.c_proj(y))

    def heads(self, x: ag.Tensor) -> tuple[ag.Tensor, ag.Tensor, ag.Tensor]:
        """Queries, keys and values of x (B, T, C), each (B, H, T, D)."""
        b, t, c = x.shape
        shape = (b, t, self.n_head, c // self.n_head)
        q, k, v = (part.reshape(shape).transpose(0, 2, 1, 3) for part in ag.split(self.c_attn(x), 3))
        return q, k, v


class MLP(nn.Module):
    """Each position by itself: widen four times, GELU, narrow again."""

    def __init__(self, config: GPTConfig, init: "Initializer", stream: ag.RandomStream) -> None:
        c = config.n_embd
        self.c_fc = nn.Linear(c, 4 * c, init=init.normal)
        self.c_proj = nn.Linear(4 * c, c, init=init.residual)
        self.resid_dropout = nn.Dropout(config.dropout, stream)

    def forward(self, x: ag.Tensor) -> ag.Tensor:
        h = ag.gelu(self.c_fc(x))  # (B, T, 4C)
        return self.resid_dropout(self.c_proj(h))  # (B, T, C)


class Block(nn.Module):
    """Attention, then MLP, each on a normalized copy of the residual stream and added back to it."""

    def __init__(self, config: GPTConfig, init: "Initializer", stream: ag.RandomStream) -> None:
        self.ln_1 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.attn = CausalSelfAttention(config, init, stream)
        self.ln_2 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.mlp = MLP(config, init, stream)
        self.recompute = False  # True: keep only x for the backward pass, and compute the rest again there

    def forward(self, x: ag.Tensor, mask: Any = None, cache: "LayerCache | None" = None) -> ag.Tensor:
        x = x + self.attn(self.ln_1(x), mask, cache)
        return x + self.mlp(self.ln_2(x))


class Head(nn.Module):
    """The output layer: a score for each token of the vocabulary. weight (V, C), often the token embedding's own."""

    def __init__(self, weight: ag.Parameter) -> None:
        self.weight = weight

    def forward(self, x: ag.Tensor) -> ag.Tensor:
        return x @ nn.cast_like(self.weight, x).T  # (..., V)


class Initializer:
    """GPT-2's initial weights, drawn on the host so that every backend starts from the same ones.

    Matrices and embeddings: normal, `initializer_range`. Projections back into the residual stream: smaller by sqrt(2 n_layer),
    because 2 n_layer of them add up in it (GPT-2 report, section 2.3). Biases 0, norms 1 and 0.
    """

    def __init__(self, config: GPTConfig, seed: int, empty: bool = False) -> None:
        self.config = config
        self.rng = np.random.default_rng([seed, 0])
        self.empty = empty  # the weights are about to be loaded: leave them unset

    def normal(self, shape: tuple[int, ...], scale: float = 1.0) -> Any:
        if self.empty:
            return backend.to_device(np.empty(shape, dtype=np.float32))
        values = self.rng.standard_normal(shape, dtype=np.float32)
        values *= scale * self.config.initializer_range
        return backend.to_device(values)

    def residual(self, shape: tuple[int, ...]) -> Any:
        return self.normal(shape, scale=1 / math.sqrt(2 * self.config.n_layer))


class GPT(nn.Module):
    """A language model: for each position, a distribution over the next token.

    config   the shape; see GPTConfig
    seed     decides the initial weights and the dropout masks
    """

    def __init__(self, config: GPTConfig, seed: int = 0, *, _empty: bool = False) -> None:
        self.config = config
        self.dtype = backend.compute_dtype("float32")
        self.dropout_stream = ag.RandomStream(seed)
        init = Initializer(config, seed, _empty)
        self.wte = nn.Embedding(config.vocab_size, config.n_embd, init=init.normal)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd, init=init.normal)
        self.embd_dropout = nn.Dropout(config.dropouts["embd_pdrop"], self.dropout_stream)
        self.h = [Block(config, init, self.dropout_stream) for _ in range(config.n_layer)]
        self.ln_f = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        tied = config.tie_word_embeddings
        self.lm_head = Head(self.wte.weight if tied else ag.Parameter(init.normal((config.vocab_size, config.n_embd))))

    def compute_in(self, dtype: str) -> Self:
        """Switches activations and matrix products to "bfloat16" or back to "float32"; returns the model.

        Weights, their gradients, statistics of norms, softmax and loss stay float32. Raises ValueError, with the reason, where the
        backend has no bfloat16.
        """
        self.dtype = backend.compute_dtype(dtype)
        return self

    def recompute_blocks(self, on: bool = True) -> Self:
        """Trades time for memory in training: every block keeps its input alone and computes the rest again in the backward pass.

        Gradients stay the same, bit for bit. For single blocks set `model.h[i].recompute`. Returns the model.
        """
        for block in self.h:
            block.recompute = on
        return self

    @property
    def n_choices(self) -> int:
        """How many tokens each prediction chooses from: an even guess costs the logarithm of this, in nats."""
        return self.config.vocab_size

    def hidden(self, ids: Any, attention_mask: Any = None, cache: "CacheView | None" = None) -> ag.Tensor:
        """What the output layer sees.

        ids              (B, T) host integers, T <= n_positions
        attention_mask   (B, T), 1 for tokens and 0 for padding (either side), or None
        cache            keys and values of earlier tokens, which `ids` then continue; see `tinygpt.models.cache`
        Returns (B, T, C). Raises ValueError for other shapes, too many positions or ids out of range.
        """
        ids = np.asarray(ids)
        if ids.ndim != 2:
            raise InvalidInput(f"GPT: ids of shape {ids.shape}, expected (batch, positions); wrap one sequence as [ids]")
        t = ids.shape[1]
        if t > self.config.n_positions:
            raise InvalidInput(f"GPT: {t} positions, expected at most n_positions = {self.config.n_positions}; shorten the input")
        positions, mask = np.arange(t), None
        if attention_mask is not None:
            real = np.asarray(attention_mask).astype(bool)
            if real.shape != ids.shape:
                raise InvalidInput(f"GPT: attention_mask of shape {real.shape}, expected {ids.shape}, that of ids; one entry per token")
            positions = np.maximum(np.cumsum(real, axis=1) - 1, 0)  # (B, T): padding on the left does not count
            mask = backend.to_device(real[:, None, None, :])  # (B, 1, 1, S): nobody looks at padding
        if cache is not None:
            positions, mask = cache.positions, cache.mask
        x = self.embed(ids, positions)
        for i, block in enumerate(self.h):
            if block.recompute and cache is None:
                x = nn.recompute(partial(block, mask=mask), x, [self.dropout_stream])
            else:
                x = block(x, mask, None if cache is None else cache.layer(i))
        return self.ln_f(x)

    def embed(self, ids: Any, positions: Any) -> ag.Tensor:
        """What the first block sees, (B, T, C): tokens ids (B, T) at `positions` (T,) or (B, T)."""
        x = self.wte(ids) + self.wpe(positions)
        if self.dtype != np.float32:
            x = ag.cast(x, self.dtype)  # all that follows takes its dtype from here
        return self.embd_dropout(x)

    def forward(self, ids: Any, attention_mask: Any = None) -> ag.Tensor:
        """Logits (B, T, V) for ids (B, T); see `hidden` for the arguments."""
        return self.lm_head(self.hidden(ids, attention_mask))

    def loss(self, ids: Any, targets: Any, attention_mask: Any = None, *, ignore_index: int = -100) -> ag.Tensor:
        """Mean cross-entropy of `targets` (B, T), in nats per token, as a scalar; targets equal to ignore_index do not count.

        Output layer and loss are one op, so the (B T, V) logits never exist at once.
        """
        x = self.hidden(ids, attention_mask)
        return ag.linear_cross_entropy(x, nn.cast_like(self.lm_head.weight, x), targets, ignore_index=ignore_index)

    def generate(self, ids: Any, max_new_tokens: int, **options: Any) -> np.ndarray:
        """ids (B, T) continued by up to max_new_tokens tokens; see `tinygpt.inference.decoding.generate`."""
        from tinygpt.inference.decoding import generate

        return generate(self, ids, max_new_tokens, **options).ids

    def summary(self) -> str:
        """Every parameter with shape and size, and the sums, as a table; see `tinygpt.inspect.trace.summary`."""
        from tinygpt.inspect.trace import summary

        return summary(self)

    def trace(self, ids: Any, targets: Any = None) -> Any:
        """Each step of one forward pass: shape, parameters, FLOPs, bytes saved for backward; see `tinygpt.inspect.trace.trace`."""
        from tinygpt.inspect.trace import trace

        return trace(self, ids, targets)

    def save_pretrained(self, directory: str | Path, tokenizer: Any = None) -> None:
        """Writes a Hugging Face GPT-2 checkpoint directory; see `tinygpt.weights.gpt2.save_pretrained`."""
        from tinygpt.weights.gpt2 import save_pretrained

        save_pretrained(self, directory, tokenizer)

    @classmethod
    def from_pretrained(cls, path_or_name: str | Path) -> Self:
        """Reads GPT-2 weights: a Hugging Face directory, llm.c's file, or a name such as "gpt2"; see `tinygpt.weights.gpt2`."""
        from tinygpt.weights.gpt2 import StoredModel

        stored = StoredModel(path_or_name)
        model = cls(stored.config, _empty=True)
        stored.load_into(model)
        return model
