"""Where an encoder-decoder looks while it translates: the weights of its cross-attention, as numbers and as a picture.

weights = cross_attention(model, source_ids, target_ids)       # (blocks, heads, T, S)
plot_cross_attention([Alignment(source_tokens, target_tokens, weights.mean(axis=(0, 1)))], "attention.png")
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinygpt.errors import MissingPackage


@dataclass(frozen=True)
class Alignment:
    """The tokens of a source (S,) and of its translation (T,), and how much each of these looked at each of those (T, S)."""

    source: Sequence[str]
    target: Sequence[str]
    weights: np.ndarray


def plot_cross_attention(alignments: Sequence[Alignment], path: str | Path) -> None:
    """Draws a panel for each: a row per token of the translation, a column per token of the source, dark where it looked. Raises ImportError,
    naming the extra, without matplotlib."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingPackage('attention.png: matplotlib is missing, expected it for pictures; pip install "tinygpt[plot]"') from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    inches = 0.26  # of a cell
    heights = [len(a.target) * inches + 1.3 for a in alignments]
    width = max(len(a.source) for a in alignments) * inches + 2.2
    figure, panels = plt.subplots(
        len(alignments), 1, figsize=(width, sum(heights)), dpi=110, layout="constrained", squeeze=False, height_ratios=heights
    )
    for panel, a in zip(panels[:, 0], alignments, strict=True):
        panel.imshow(a.weights, cmap="Blues", vmin=0, vmax=1, aspect="equal")
        panel.set_xticks(
            range(len(a.source)),
            [token.replace("$", r"\$") for token in a.source],
            rotation=60,
            ha="left",
            rotation_mode="anchor",
            fontsize=9,
        )
        panel.set_yticks(range(len(a.target)), [token.replace("$", r"\$") for token in a.target], fontsize=9)
        panel.xaxis.tick_top()
        panel.tick_params(length=2)
        panel.set_anchor("W")
    figure.savefig(path)
    plt.close(figure)
