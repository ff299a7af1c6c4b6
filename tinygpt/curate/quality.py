"""Good text or bad: a linear classifier on words and pairs of words, from examples. Needs the extra `classify`.

    rows = examples(good, {"spam": bad})            # split by groups of near copies: train, choose, test
    model = fit(rows)                               # trained on the first part, its threshold chosen on the second
    save(model, path); report(model, rows)          # the report is on the third: kinds, AUC with interval, threshold, ROC curve
    Quality(str(path))(document)                    # a step: removes what scores below the threshold

Without examples of one's own, good is the default corpus and bad is dirt made from it (`tinygpt.curate.dirt`). Hashing means that no
vocabulary has to travel: a model is weights, a bias and a threshold, in one safetensors file.
A bag of words hardly sees word order: `tinygpt.curate.perplexity` has a second opinion, which does.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tinygpt.curate.dirt import SEEN, UNSEEN, soiled
from tinygpt.curate.documents import Document, Outcome
from tinygpt.curate.words import words
from tinygpt.data.corpora import load_corpus
from tinygpt.data.near_copies import group_near_copies
from tinygpt.errors import InvalidInput, MissingFile, MissingPackage
from tinygpt.evaluation.statistics import Interval
from tinygpt.fields import Json, PathName
from tinygpt.storage.durable import replace_file
from tinygpt.storage.safetensors import TensorFile, read_metadata, read_safetensors_header, read_tensor

N_FEATURES, STRENGTH = 1 << 18, 10.0  # hash buckets; the inverse of the weight of the L2 penalty
PARTS = ("train", "choose", "test")


class Row(NamedTuple):
    """A text; its kind: "good", or what is bad about it; its part."""

    text: str
    kind: str
    part: str


def examples(good: Sequence[str] = (), bad: Mapping[str, Sequence[str]] | None = None, seed: int = 0) -> list[Row]:
    """Labeled rows in three parts: 80 %, 10 % and 10 % of the groups of near copies, drawn by a hash of seed and text.

    good   texts to keep; none: the default corpus, whose validation texts are the last two parts
    bad    texts to remove, by kind; none: of each good text one kind of made dirt, in turn, all of them of each text of the last part
    The last part also has dirt of kinds that are in no other part. Raises ValueError for too few examples.
    """
    if good:
        parts = _parts(good, seed)
    else:
        corpus = load_corpus("docs")
        held_out = [document.text for document in corpus.validation]
        halves = ["choose" if part < 0.5 else "test" for part in _draws(held_out, seed)]
        good, parts = [document.text for document in corpus.train] + held_out, ["train"] * len(corpus.train) + halves
    rows = [Row(text, "good", part) for text, part in zip(good, parts, strict=True)]
    for kind, texts in (bad or {}).items():
        rows += [Row(text, kind, part) for text, part in zip(texts, _parts(texts, seed), strict=True)]
    made = []
    for i, row in enumerate(rows):
        if row.kind == "good":
            if row.part == "test":
                made += [Row(soiled(row.text, kind, seed), kind, "test") for kind in (*(() if bad else SEEN), *UNSEEN)]
            elif not bad:
                made.append(Row(soiled(row.text, SEEN[i % len(SEEN)], seed), SEEN[i % len(SEEN)], row.part))
    rows += made
    for part in PARTS:
        n_good = sum(row.kind == "good" for row in rows if row.part == part)
        n_bad = sum(row.part == part for row in rows) - n_good
        if min(n_good, n_bad) < 5:
            raise InvalidInput(f"quality: {n_good} good and {n_bad} bad examples to {part}, expected at least 5 of each; add examples")
    return rows


def _draws(texts: Sequence[str], seed: int) -> list[float]:
    """A number from 0 to 1 per text, the same for near copies."""
    groups = group_near_copies(texts)
    first = {group: text for text, group in reversed(list(zip(texts, groups, strict=True)))}
    digests = {g: hashlib.sha256(f"{seed} ".encode() + text.encode("utf-8", "surrogatepass")).digest() for g, text in first.items()}
    return [int.from_bytes(digests[group][:6], "little") / (1 << 48) for group in groups]


def _parts(texts: Sequence[str], seed: int) -> list[str]:
    return ["train" if x < 0.8 else "choose" if x < 0.9 else "test" for x in _draws(texts, seed)]


@dataclass(frozen=True, eq=False)
class QualityModel:
    """score = 1 / (1 + exp(-(w x + bias))), x the counts of hashed words and pairs of words of a text, divided by their length.

    weights      (n_features,) float32
    threshold    texts that score less are bad
    n_rows       how many it was trained on, by kind
    """

    weights: np.ndarray
    bias: float
    threshold: float
    n_rows: Mapping[str, int]

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """(texts,) from 0, bad, to 1, good."""
        x = np.asarray(_hashed(texts, len(self.weights)) @ self.weights.astype(np.float64), dtype=np.float64) + self.bias
        return np.exp(-np.logaddexp(0, -x))


def _hashed(texts: Sequence[str], n_features: int) -> Json:
    """(texts, n_features) sparse."""
    return _vectorizer(n_features).transform(texts)


@lru_cache
def _vectorizer(n_features: int) -> Json:
    try:
        from sklearn.feature_extraction.text import HashingVectorizer
    except ImportError as error:
        raise MissingPackage('quality: scikit-learn is missing, expected it for the classifier; pip install "tinygpt[classify]"') from error
    return HashingVectorizer(analyzer=_words_and_pairs, n_features=n_features)


def _words_and_pairs(text: str) -> list[str]:
    found = words(text.encode("utf-8", "replace").decode("utf-8").lower())  # the hash wants no lone surrogates
    return [*found, *map(" ".join, pairwise(found))]


def fit(rows: Sequence[Row], keep: float = 0.97) -> QualityModel:
    """The classifier of the rows to train on, with the highest threshold that keeps a share `keep` of the good rows to choose it on.

    Good and bad count equally, however many there are. Raises ImportError, naming the extra, without scikit-learn.
    """
    if not 0 < keep <= 1:
        raise InvalidInput(f"quality: keep {keep}, expected more than 0 and at most 1; 0.97 loses three good texts in a hundred")
    train = [row for row in rows if row.part == "train"]
    hashed = _hashed([row.text for row in train], N_FEATURES)
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=STRENGTH, class_weight="balanced", solver="liblinear")  # without threads: the same bits every time
    fitted.fit(hashed, [row.kind == "good" for row in train])
    counts = {kind: sum(row.kind == kind for row in train) for kind in sorted({row.kind for row in train})}
    model = QualityModel(fitted.coef_[0].astype(np.float32), float(fitted.intercept_[0]), 0.0, counts)
    scores = np.sort(model.scores([row.text for row in rows if row.part == "choose" and row.kind == "good"]))
    return QualityModel(model.weights, model.bias, float(scores[int((1 - keep) * len(scores))]), counts)


def save(model: QualityModel, path: str | Path) -> None:
    """Writes a model, durably; the same model gives the same bytes."""
    settings = json.dumps({"bias": model.bias, "threshold": model.threshold, "n_rows": dict(model.n_rows)})
    replace_file(Path(path), TensorFile({"weights": model.weights}, {"settings": settings}).chunks(), writer=f"{os.getpid()}-")


def load(path: str | Path) -> QualityModel:
    """A saved model. Raises FileNotFoundError without the file, ValueError for another one."""
    if not Path(path).is_file():
        raise MissingFile(f"{path}: no such file, expected a classifier; run the command again, which makes it")
    try:
        (weights,) = map(read_tensor, read_safetensors_header(Path(path)).values())
        settings = json.loads(read_metadata(Path(path))["settings"])
        return QualityModel(weights, settings["bias"], settings["threshold"], settings["n_rows"])
    except (ValueError, KeyError, OSError, TypeError, IndexError) as error:
        raise InvalidInput(f"{path}: {error}, expected a classifier that `quality.save` wrote; restore the file") from error


def auc_interval(auc: float, n_good: int, n_bad: int) -> Interval:
    """95 % interval of an area under the ROC curve, not empty at 1: the areas whose standard error (Hanley and McNeil 1982, with the
    symmetric variance below) puts them within 1.96 of the one that was found.

    Source  Newcombe 2006, Confidence intervals for an effect size measure based on the Mann-Whitney statistic, part 2, method 5.
    """

    def error(a: float) -> float:
        half = (n_good + n_bad) / 2 - 1
        variance = a * (1 - a) * (1 + half * (1 - a) / (2 - a) + half * a / (1 + a)) / (n_good * n_bad)
        return float(variance**0.5)

    def bound(outer: float) -> float:
        inside, outside = auc, outer
        for _ in range(50):
            middle = (inside + outside) / 2
            if abs(auc - middle) <= 1.96 * error(middle):
                inside = middle
            else:
                outside = middle
        return inside

    return Interval(auc, bound(0.0), bound(1.0))


def areas(values: np.ndarray, kinds: Sequence[str]) -> dict[str, Json]:
    """For each bad kind: how many there are, and the AUC with its interval of good rows against it; higher values are better text."""
    good = values[[kind == "good" for kind in kinds]]
    found: dict[str, Json] = {}
    for kind in dict.fromkeys(kinds):
        if kind != "good":
            bad = values[[k == kind for k in kinds]]
            auc = float(((good[:, None] > bad) + 0.5 * (good[:, None] == bad)).mean())
            found[kind] = {"n": len(bad), "auc": auc_interval(auc, len(good), len(bad))._asdict()}
    return found


def report(model: QualityModel, rows: Sequence[Row], points: int = 100) -> dict[str, Json]:
    """What the model does to the rows of the last part, as JSON values: kinds (n, AUC with interval, in training or not, the share below the
    threshold), the share of good text kept, and the ROC curves of all kinds, those of training and the others: at most so many points of
    false positive rate (good removed), true positive rate (bad removed) and threshold.
    """
    test = [row for row in rows if row.part == "test"]
    scores, kinds = model.scores([row.text for row in test]), [row.kind for row in test]
    found = areas(scores, kinds)
    for kind, values in found.items():
        values["in_training"] = kind in model.n_rows
        values["removed"] = float((scores[[k == kind for k in kinds]] < model.threshold).mean())
    groups = {"all": set(found), "in training": found.keys() & model.n_rows.keys(), "new kinds": found.keys() - model.n_rows.keys()}
    good = np.array([kind == "good" for kind in kinds])
    return {
        "rows": {part: {kind: sum(r.part == part and r.kind == kind for r in rows) for kind in dict.fromkeys(r.kind for r in rows)} for part in PARTS},
        "threshold": model.threshold,
        "good_kept": float((scores[good] >= model.threshold).mean()),
        "kinds": found,
        "roc": {name: _curve(scores[good], scores[[k in group for k in kinds]], points) for name, group in groups.items() if group},
    }  # fmt: skip


def _curve(good: np.ndarray, bad: np.ndarray, points: int) -> dict[str, Json]:
    every = np.unique(np.concatenate([good, bad]))
    thresholds = every[np.unique(np.linspace(0, len(every) - 1, min(points, len(every))).astype(int))]
    rates = [np.searchsorted(np.sort(values), thresholds, side="left") / len(values) for values in (good, bad)]
    auc = areas(np.concatenate([good, bad]), ["good"] * len(good) + ["bad"] * len(bad))["bad"]["auc"]
    return {"auc": auc, "good_removed": rates[0].tolist(), "bad_removed": rates[1].tolist(), "thresholds": thresholds.tolist()}


@lru_cache(maxsize=4)
def _loaded(path: str, digest: str) -> QualityModel:
    return load(path)


@dataclass(frozen=True)
class Quality:
    """Step: removes documents that a saved classifier scores below its threshold, or below one's own."""

    model: PathName
    threshold: float | None = None
    name: str = "quality"

    def settings(self) -> dict[str, Json]:
        """Weights and threshold by a hash of the file. Raises FileNotFoundError without it."""
        return {"model": self._digest(), "threshold": self._threshold()}

    def _digest(self) -> str:
        if not Path(self.model).is_file():
            raise MissingFile(f"{self.model}: no such file, expected a classifier; fit one first, or leave the step out")
        return hashlib.sha256(Path(self.model).read_bytes()).hexdigest()

    def _threshold(self) -> float:
        return _once(self.model).threshold if self.threshold is None else self.threshold

    def __call__(self, document: Document) -> Outcome:
        score, limit = float(_once(self.model).scores([document.text])[0]), self._threshold()
        return Outcome(document if score >= limit else None, "quality", score, limit)


def _once(path: str) -> QualityModel:
    """A model, read once per process and version of its file."""
    stat = Path(path).stat() if Path(path).is_file() else None
    return _loaded(path, f"{stat.st_mtime_ns} {stat.st_size}" if stat else "")
