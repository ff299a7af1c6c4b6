"""A second opinion on quality: how likely a small GPT of ours finds a text. It sees word order, which the classifier hardly does.

    bits = bits_per_byte(Checkpoint.open("runs/docs-001"), texts)       # (texts,)
    second_opinion("runs/docs-001", model, rows, texts)                 # both, on the same rows, as JSON values

Bits per byte are low for clean text and for text that repeats itself, high for what the model has never seen: other subjects and languages
too. So this is an opinion for the report, and no step.
Source  Wenzek et al. 2020, arXiv:1911.00359 (CCNet), section 4.4: perplexity of a language model trained on text one wants more of.
"""

from collections.abc import Sequence

import numpy as np

from tinygpt.curate.quality import QualityModel, Row, areas
from tinygpt.evaluation.continuations import Request, score
from tinygpt.runs.checkpoint import Checkpoint
from tinygpt.storage.checked_json import Json

SAMPLE = 2000  # documents


def bits_per_byte(checkpoint: Checkpoint, texts: Sequence[str]) -> np.ndarray:
    """(texts,) bits per byte of the start of each text, as much as fits into the context once; NaN for fewer than two tokens."""
    model, tokenizer = checkpoint.language_model(), checkpoint.tokenizer()
    most = model.config.n_positions + 1
    starts = (text[: 20 * most].encode("utf-8", "replace").decode("utf-8") for text in texts)  # no token is longer on average
    ids = [tokenizer.encode(start)[:most] for start in starts]
    there = [i for i, found in enumerate(ids) if len(found) > 1]
    scores = score(model, [Request(ids[i][:1], [ids[i][1:]]) for i in there])
    bits = np.full(len(texts), np.nan)
    for i, (found,) in zip(there, scores, strict=True):
        bits[i] = -found.log_prob / np.log(2) / max(len(tokenizer.decode_bytes(ids[i][1:])), 1)
    return bits


def second_opinion(run: str, model: QualityModel, rows: Sequence[Row], texts: Sequence[str], seed: int = 0) -> dict[str, Json]:
    """Classifier and GPT on the same texts, as JSON values.

    kinds    for each kind of dirt among the rows of the last part: the AUC with interval of both; low bits per byte count as good
    sample   of at most 2,000 of the texts, drawn by seed: quantiles of bits per byte, and the share that each opinion finds worse than 99 %
             of the good rows, and both
    Raises what opening the run raises.
    """
    checkpoint = Checkpoint.open(run)
    test = [row for row in rows if row.part == "test"]
    kinds, bits = [row.kind for row in test], bits_per_byte(checkpoint, [row.text for row in test])
    known = ~np.isnan(bits)
    kinds = [kind for kind, there in zip(kinds, known, strict=True) if there]
    scores = model.scores([row.text for row in test])[known]
    bits = bits[known]
    good = [kind == "good" for kind in kinds]
    by_scores, by_bits = areas(scores, kinds), areas(-bits, kinds)
    least, most = np.quantile(scores[good], 0.01), np.quantile(bits[good], 0.99)
    drawn = sorted(np.random.default_rng(seed).permutation(len(texts))[:SAMPLE].tolist())
    chosen = [texts[i] for i in drawn]
    there = bits_per_byte(checkpoint, chosen)
    doubtful, unlikely = model.scores(chosen) < least if chosen else np.zeros(0, bool), there > most
    quantiles = np.nanquantile(there, (0.05, 0.25, 0.5, 0.75, 0.95)).tolist() if np.isfinite(there).any() else []
    return {
        "run": checkpoint.describe(),
        "kinds": {kind: {"n": by_bits[kind]["n"], "classifier": by_scores[kind]["auc"], "perplexity": by_bits[kind]["auc"]} for kind in by_bits},
        "sample": {
            "n": len(chosen), "bits_per_byte": quantiles, "classifier": _mean(doubtful), "perplexity": _mean(unlikely),
            "both": _mean(doubtful & unlikely),
        },
    }  # fmt: skip


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0
