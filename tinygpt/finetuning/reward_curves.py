"""What a training by rewards has recorded, as a picture: reward, KL, length, and the share of problems that it solves."""

import json
from pathlib import Path

import numpy as np

from tinygpt.errors import MissingPackage
from tinygpt.storage.checked_json import Json

_PANELS = {
    "reward": "mean reward of the answers drawn",
    "right": "share of right answers",
    "kl": "KL divergence from the reference (nats per token)",
    "length": "tokens of an answer",
}


def read_curves(metrics: Path) -> dict[str, np.ndarray]:
    """By name, (step, value) of each draw (N, 2), and `validation_accuracy` of each evaluation, of a run's metrics.jsonl."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in (*_PANELS, "validation_accuracy")}
    for line in metrics.read_text(encoding="utf-8").splitlines():
        values: dict[str, Json] = json.loads(line)
        for name in found.keys() & values.keys():
            found[name].append((values["step"], values[name]))
    return {name: np.array(pairs, dtype=np.float64).reshape(-1, 2) for name, pairs in found.items()}


def plot_rewards(metrics: Path, path: Path) -> None:
    """Draws the curves of a run's metrics.jsonl against its updates. Raises ImportError, naming the extra, without matplotlib."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingPackage('curves.png: matplotlib is missing, expected it for pictures; pip install "tinygpt[plot]"') from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    curves = read_curves(metrics)
    figure, panels = plt.subplots(2, 2, figsize=(11, 6.4), dpi=120, layout="constrained", sharex=True)
    for panel, (name, title) in zip(panels.ravel(), _PANELS.items(), strict=True):
        steps, values = curves[name].T
        panel.plot(steps, values, color="#56B4E9", linewidth=0.8, label="one update's draws")
        if len(values) > 10:
            width = max(len(values) // 15, 3)
            panel.plot(steps[width - 1 :], np.convolve(values, np.ones(width) / width, "valid"), color="#0072B2", label=f"mean of {width}")
        if name == "right" and len(curves["validation_accuracy"]):
            panel.plot(*curves["validation_accuracy"].T, color="#D55E00", marker="o", markersize=3, label="validation, likeliest tokens")
        panel.set(title=title, xlabel="updates" if panel in panels[-1] else None)
        panel.grid(alpha=0.25)
        panel.legend(framealpha=0.9, edgecolor="none")
    figure.savefig(path)
    plt.close(figure)
