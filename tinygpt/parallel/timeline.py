"""What the stages of a pipeline computed, and when: collected from the ranks, as text, and as a picture."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tinygpt.errors import MissingPackage
from tinygpt.models.protocols import Communicator
from tinygpt.parallel.communicator import tell
from tinygpt.parallel.pipeline import Pass, bubble

Stages = Sequence[Sequence[Pass]]
"""The passes of an update, by stage."""


def collected(passes: Sequence[Pass], pipe: Communicator) -> list[list[Pass]]:
    """Those of all stages, on each of them; their clocks are one clock if the ranks are on one machine. They call it together."""
    texts = [tell(pipe, json.dumps(passes), stage) for stage in range(pipe.size)]
    return [[Pass(*each) for each in json.loads(text)] for text in texts]


def measured_bubble(stages: Stages) -> float:
    """Share of the time, from the first pass to the last, in which the stages compute nothing."""
    passes = [each for stage in stages for each in stage]
    length = max(p.stop for p in passes) - min(p.start for p in passes)
    return 1 - sum(p.stop - p.start for p in passes) / (len(stages) * length)


def as_text(stages: Stages, width: int = 72) -> str:
    """A line per stage: digits are forward passes of micro-batches 0, 1, ..., letters a, b, ... their backward passes; points are waiting."""
    first = min(p.start for stage in stages for p in stage)
    scale = width / (max(p.stop for stage in stages for p in stage) - first)
    lines = []
    for stage, passes in enumerate(stages):
        line = ["."] * width
        for p in passes:
            begin = int((p.start - first) * scale)
            for at in range(begin, min(width, max(begin + 1, round((p.stop - first) * scale)))):
                line[at] = chr(ord("0" if p.kind == "F" else "a") + p.batch % 10)
        lines.append(f"stage {stage}  {''.join(line)}")
    return "\n".join(lines)


def draw(path: Path, updates: Mapping[str, Stages]) -> None:
    """Draws the passes of updates, by title, above each other on one axis of time. Raises ImportError, naming the extra, without matplotlib."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingPackage(f'{path}: matplotlib is missing, expected it for pictures; pip install "tinygpt[plot]"') from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    n_stages = max(map(len, updates.values()))
    figure, panels = plt.subplots(
        len(updates), 1, figsize=(10, (0.45 * n_stages + 0.9) * len(updates)), dpi=120, layout="constrained", sharex=True, squeeze=False
    )
    for panel, (title, stages) in zip(panels[:, 0], updates.items(), strict=True):
        first = min(p.start for stage in stages for p in stage)
        for stage, passes in enumerate(stages):
            for p in passes:
                color, begin, length = ("#56B4E9" if p.kind == "F" else "#E69F00"), 1e3 * (p.start - first), 1e3 * (p.stop - p.start)
                panel.barh(stage, length, left=begin, height=0.8, color=color, edgecolor="white", linewidth=0.8)
                panel.text(begin + length / 2, stage, str(p.batch), ha="center", va="center", fontsize=8)
        waits = f"{measured_bubble(stages):.0%} waiting, (P - 1) / (M + P - 1) = {bubble(len(stages), len(stages[0]) // 2):.0%}"
        panel.set(yticks=range(len(stages)), yticklabels=[f"stage {stage}" for stage in range(len(stages))], ylim=(len(stages) - 0.4, -0.6))
        panel.set_title(f"{title}: {waits}", loc="left", fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1, 0].set_xlabel("milliseconds; blue: forward, orange: backward, by micro-batch")
    figure.savefig(path)
    plt.close(figure)
