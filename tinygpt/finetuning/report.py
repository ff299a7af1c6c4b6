"""A classifier's scores, its mistakes, and the baselines it has to beat."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import regex
from numpy.typing import NDArray

from tinygpt.data.tokenizer import Tokenizer
from tinygpt.errors import InvalidInput, MissingPackage
from tinygpt.finetuning.common import shorten
from tinygpt.inference.likelihood import choose, few_shot_prompt
from tinygpt.inference.sampling import Sampling
from tinygpt.inference.text import complete
from tinygpt.models.gpt import GPT


@dataclass(frozen=True)
class Scores:
    """How predictions compare with the truth: confusion (labels, labels) counts true labels by row and predicted ones by column."""

    labels: list[str]
    confusion: NDArray[np.int64]

    @classmethod
    def of(cls, labels: Sequence[str], true: np.ndarray, predicted: np.ndarray) -> "Scores":
        """From the numbers of true and predicted labels, (N,) each. Raises ValueError if there are none."""
        if not len(true):
            raise InvalidInput("Scores: no predictions, expected at least one; is the test part empty?")
        k = len(labels)
        return cls(list(labels), np.bincount(np.asarray(true) * k + predicted, minlength=k * k).reshape(k, k))

    @property
    def accuracy(self) -> float:
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the labels that occur: what accuracy would be if each were equally frequent."""
        return float(self.recall[self.confusion.sum(axis=1) > 0].mean())

    @property
    def precision(self) -> np.ndarray:
        """(labels,) share of the texts given a label that have it; 0 where none was given."""
        return self._right_of(self.confusion.sum(axis=0))

    @property
    def recall(self) -> np.ndarray:
        """(labels,) share of the texts of a label that were given it; 0 where there are none."""
        return self._right_of(self.confusion.sum(axis=1))

    @property
    def f1(self) -> np.ndarray:
        """(labels,) harmonic mean of precision and recall."""
        return 2 * self._right_of(self.confusion.sum(axis=0) + self.confusion.sum(axis=1))

    def _right_of(self, n: NDArray[np.int64]) -> np.ndarray:
        return np.asarray(np.diag(self.confusion) / np.maximum(n, 1))

    def table(self) -> str:
        """Precision, recall and F1 per label."""
        width = max(map(len, [*self.labels, "label"]))
        lines = [f"{'label':<{width}}  precision  recall     F1  texts"]
        for row in zip(self.labels, self.precision, self.recall, self.f1, self.confusion.sum(axis=1), strict=True):
            lines.append("{:<{width}}  {:>9.3f}  {:>6.3f}  {:>5.3f}  {:>5}".format(*row, width=width))
        return "\n".join(lines)

    def confusion_table(self) -> str:
        """The confusion matrix as text, predicted labels as numbered columns."""
        names = ["true / predicted", *(f"{i:>2}  {label}" for i, label in enumerate(self.labels, start=1))]
        width, cell = max(map(len, names)), max(5, len(str(self.confusion.max())) + 1)
        rows = [range(1, len(self.labels) + 1), *self.confusion]
        return "\n".join(f"{name:<{width}}" + "".join(f"{n:>{cell}}" for n in row) for name, row in zip(names, rows, strict=True))


def worst_mistakes(
    texts: Sequence[str], true: np.ndarray, probabilities: np.ndarray, labels: Sequence[str], n: int = 5,
    places: Sequence[str] | None = None,
) -> str:  # fmt: skip
    """The wrongly labeled texts to whose true label the model gave the least probability, as text: worst first."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != true)
    wrong = wrong[np.argsort(probabilities[wrong, true[wrong]], kind="stable")][:n]
    blocks = []
    for i in wrong.tolist():
        said, place = int(probabilities[i].argmax()), f" ({places[i]})" if places else ""
        blocks.append(f"{labels[true[i]]}, taken for {labels[said]} with probability {probabilities[i, said]:.3f}{place}")
        blocks.append(f"    {shorten(texts[i], 300)}")
    return "\n".join(blocks) or "none"


def plot_confusion(scores: Scores, path: Path) -> None:
    """Draws the confusion matrix: colors are shares of the true label's texts, numbers counts. Raises ImportError without matplotlib."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingPackage('confusion.png: matplotlib is missing, expected it for pictures; pip install "tinygpt[plot]"') from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    k = len(scores.labels)
    share = scores.confusion / np.maximum(scores.confusion.sum(axis=1, keepdims=True), 1)
    size = min(3.2 + 0.55 * k, 14)
    figure, axes = plt.subplots(figsize=(size + 0.8, size), dpi=120, layout="constrained")
    image = axes.imshow(share, cmap="cividis", vmin=0, vmax=1)  # made to look alike with and without color-vision deficiency
    for i, j in np.ndindex(k, k) if k <= 20 else ():
        axes.text(j, i, str(scores.confusion[i, j]), ha="center", va="center", color="black" if share[i, j] > 0.5 else "white")
    axes.set_xticks(range(k), scores.labels, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(range(k), scores.labels, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true", title=f"accuracy {scores.accuracy:.1%}, balanced {scores.balanced_accuracy:.1%}")
    figure.colorbar(image, ax=axes, label="share of the true label", shrink=0.8)
    figure.savefig(path)
    plt.close(figure)


def majority_baseline(train: np.ndarray, n_texts: int) -> np.ndarray:
    """(n_texts,) the most frequent training label, again and again."""
    return np.full(n_texts, Counter(np.asarray(train).tolist()).most_common(1)[0][0])


_WORDS = regex.compile(r"[\p{L}\p{M}\p{N}_]{2,}").findall  # scikit-learn's own words, but with their combining marks


def tfidf_baseline(
    train_texts: Sequence[str], train: np.ndarray, test_texts: Sequence[str], analyzer: Literal["word", "characters"] = "word"
) -> np.ndarray:
    """Predicted label numbers (test texts,) of logistic regression on TF-IDF weights of words, or of 2 to 5 characters within words.

    The model to beat: seconds to train, no knowledge of the language. Raises ImportError without scikit-learn, ValueError without words.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise MissingPackage('baseline: scikit-learn is missing, expected it for comparison; pip install "tinygpt[classify]"') from error
    options = {"analyzer": "char_wb", "ngram_range": (2, 5)} if analyzer == "characters" else {"tokenizer": _WORDS, "token_pattern": None}
    vectorizer = TfidfVectorizer(sublinear_tf=True, **options)
    model = LogisticRegression(C=10, max_iter=1000).fit(vectorizer.fit_transform(train_texts), train)
    return np.asarray(model.predict(vectorizer.transform(test_texts)))


def label_by_prompt(
    gpt: GPT, tokenizer: Tokenizer, texts: Sequence[str], labels: Sequence[str], examples: Sequence[tuple[str, str]] = ()
) -> tuple[np.ndarray, int]:
    """(N,) label numbers from prompting alone: the label that the language model finds likeliest after each text, without any training.

    examples   solved ones, (text, label), that the prompt shows; without any it is zero-shot
    Also returns how many tokens of each text are read at most: an equal share of what the context leaves.
    Raises ValueError if the context cannot hold the prompt's own words and a token per text.
    """
    options = [f" {label}" for label in labels]  # the space belongs to the word, for a byte-level tokenizer
    most = gpt.config.n_positions - max(len(tokenizer.encode(option)) for option in options)

    def prompt(text: str, n: int) -> str:
        """With the first n tokens of every text."""
        text, *others = (tokenizer.decode(tokenizer.encode(each)[:n]) for each in (text, *(shown for shown, _ in examples)))
        solved = [(shown, label) for shown, (_, label) in zip(others, examples, strict=True)]
        return few_shot_prompt(text, solved, names=("Text", "Label"))

    fixed = len(tokenizer.encode_from_start(prompt("", 0)))
    room = (most - fixed) // (len(examples) + 1)
    if room < 1:
        found = f"{fixed + gpt.config.n_positions - most} tokens in addition to the texts"
        raise InvalidInput(f"prompt: {found}, expected fewer than the context of {gpt.config.n_positions}; give fewer examples")
    chosen = []
    for text in texts:
        n = room
        while (
            len(tokenizer.encode_from_start(prompt(text, n))) > most and n > 1
        ):  # text that was cut may take more tokens when it is encoded again
            n -= 1
        chosen.append(options.index(choose(gpt, tokenizer, prompt(text, n), options)[0]))
    return np.array(chosen), room


def ask_in_words(gpt: GPT, tokenizer: Tokenizer, text: str, label: str, max_new_tokens: int = 24) -> str:
    """The question whether `text` is a `label`, and what the model writes after it: one that was only pretrained continues the text."""
    question = f"Is the following text '{label}'? Answer with 'yes' or 'no': '{shorten(text, 80)}'\n"
    try:
        return question + complete(gpt, tokenizer, question, max_new_tokens, Sampling(0.0)).text
    except ValueError as error:  # a tokenizer of characters lacks some of the question's
        return f"{question}not asked: {error}"
