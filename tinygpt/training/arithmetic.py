"""How much arithmetic an update takes: the model's, and the optimizer's in addition."""

from autograd.optim import FlatOptimizer
from tinygpt.encoder_config import EncoderConfig
from tinygpt.training.stacks import Stack, TrainedConfig, n_predictions, stacks


def training_flops(config: TrainedConfig, n_tokens: int, lengths: tuple[int, int] | None = None, masked: float = 0.15) -> int:
    """Multiplications and additions of the matrix products in the forward and backward pass of n_tokens, in windows of n_positions,
    without what `recompute` does again.

    lengths   of an encoder-decoder: tokens of a source, which n_tokens counts, and of its target; default: n_positions for both
    masked    of an encoder: the share of positions that have a target, and go through the head

    6 per token and number of a matrix, embeddings aside: 2 forward, and 2 each for the gradients of its input and of itself.
    Attention: as much for each channel of each key that a query sees, on average (T + 1) / 2, and of its value; where all see each other, T,
    and in cross-attention as many as the source has.
    Source  Kaplan et al. 2020, arXiv:2001.08361, section 2.1, C = 6 N; attention as in its table 1, for the keys that are seen instead of all.
    """
    parts, c = stacks(config, 1, lengths), config.n_embd
    n_rows = n_tokens / parts[0].length
    last = config.vocab_size * c + (c * c if isinstance(config, EncoderConfig) else 0)
    share = n_predictions(config, parts, masked) if isinstance(config, EncoderConfig) else parts[-1].length
    return round(6 * n_rows * (sum(map(products, parts)) + share * last))


def products(stack: Stack) -> float:
    """Numbers multiplied and added in the forward pass of one row through a stack of blocks."""
    config, t, keys = stack.blocks, stack.length, 0.0
    for layer in range(config.n_layer):
        seen = min(t, config.window_of(layer) or t)
        keys += seen - seen * (seen - 1) / (2 * t) if stack.causal else t  # the mean of min(position, seen) over positions 1 to t
    inner = config.n_head * config.channels_per_head
    attention = 2 * inner * t * (keys + config.n_layer * stack.source)
    of_source = (
        2 * config.n_embd * inner * config.n_layer if stack.source else 0
    )  # keys and values: matrices that the source's tokens go through
    return t * (config.n_layer * stack.matrices() - of_source) + stack.source * of_source + attention


def cost_note(optimizer: FlatOptimizer, model_flops: int, later_flops: int = 0) -> str:
    """What the optimizer costs per update, next to the model's arithmetic in it; and what to do where it costs more.

    later_flops   the model's arithmetic after a batch ramp; 0: there is none
    """
    name, cost, ramp = type(optimizer).__name__, optimizer.cost(), "after the batch ramp"
    if not cost:
        later = f", {ramp} {_giga(later_flops)}" if later_flops else ""
        return f"{name}: a few passes over the weights per update; the model's arithmetic is {_giga(model_flops)}{later}"
    text = f"{name}: {_giga(cost)} per update, {cost / model_flops:.0%} of the model's {_giga(model_flops)}"
    if later_flops:
        text += f", {ramp} {cost / later_flops:.0%} of {_giga(later_flops)}"
    if cost > (later_flops or model_flops):
        # A matrix of C x C costs Newton-Schulz 6 C^3 for each of its polynomials, and the model 6 C^2 per token.
        fix = "raise --tokens-per-update, or take --optimizer adamw"
        text += f"; more than the model itself: {name} suits updates of many times n_embd tokens; {fix}"
    return text


def _giga(n: int) -> str:
    return f"{n / 1e9:.2g} GFLOP" if n < 1e10 else f"{n / 1e9:,.0f} GFLOP"
