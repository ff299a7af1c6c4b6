"""A classifier's scores, its mistakes, and the baselines it has to beat."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import regex

import autograd as ag
from autograd import backend
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.errors import InvalidInput, MissingPackage
from tinygpt.finetuning.common import pad, shorten
from tinygpt.models.gpt import GPT


@dataclass(frozen=True)
class Scores:
    """How predictions compare with the truth.

    confusion   (labels, labels) counts: rows are true labels, columns predicted ones
    """

    labels: list[str]
    confusion: np.ndarray

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
        return np.diag(self.confusion) / np.maximum(self.confusion.sum(axis=0), 1)

    @property
    def recall(self) -> np.ndarray:
        """(labels,) share of the texts of a label that were given it; 0 where there are none."""
        return np.diag(self.confusion) / np.maximum(self.confusion.sum(axis=1), 1)

    @property
    def f1(self) -> np.ndarray:
        """(labels,) harmonic mean of precision and recall."""
        return 2 * np.diag(self.confusion) / np.maximum(self.confusion.sum(axis=0) + self.confusion.sum(axis=1), 1)

    def table(self) -> str:
        """Precision, recall and F1 per label."""
        width = max(map(len, [*self.labels, "label"]))
        lines = [f"{'label':<{width}}  precision  recall     F1  texts"]
        for row in zip(self.labels, self.precision, self.recall, self.f1, self.confusion.sum(axis=1), strict=True):
            lines.append("{:<{width}}  {:>9.3f}  {:>6.3f}  {:>5.3f}  {:>5}".format(*row, width=width))
        return "\n".join(lines)

    def confusion_table(self) -> str:
        """The confusion matrix as text, predicted labels as numbered columns."""
        width = max(map(len, self.labels)) + 4
        cell = max(5, len(str(self.confusion.max())) + 1)
        lines = [f"{'true / predicted':<{max(width, 16)}}" + "".join(f"{i:>{cell}}" for i in range(1, len(self.labels) + 1))]
        for i, (label, counts) in enumerate(zip(self.labels, self.confusion, strict=True), start=1):
            lines.append(f"{f'{i:>2}  {label}':<{max(width, 16)}}" + "".join(f"{n:>{cell}}" for n in counts))
        return "\n".join(lines)


def worst_mistakes(
    texts: Sequence[str],
    true: np.ndarray,
    probabilities: np.ndarray,
    labels: Sequence[str],
    n: int = 5,
    places: Sequence[str] | None = None,
) -> str:
    """The wrongly labeled texts to whose true label the model gave the least probability, as text: worst first."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != true)
    wrong = wrong[np.argsort(probabilities[wrong, true[wrong]], kind="stable")][:n]
    blocks = []
    for i in wrong.tolist():
        said = int(probabilities[i].argmax())
        place = f" ({places[i]})" if places else ""
        blocks.append(
            f"{labels[true[i]]}, taken for {labels[said]} with probability {probabilities[i, said]:.3f}{place}\n"
            + f"    {shorten(texts[i], 300)}"
        )
    return "\n".join(blocks) or "none"


def plot_confusion(scores: Scores, path: Path) -> None:
    """Draws the confusion matrix: color is the share of the true label's texts, numbers are counts.

    Raises ImportError, naming the extra, without matplotlib.
    """
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

    The model to beat: seconds to train, no knowledge of the language. Raises ImportError, naming the extra, without scikit-learn, and
    ValueError if no text has a word of two letters or more.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise MissingPackage('baseline: scikit-learn is missing, expected it for comparison; pip install "tinygpt[classify]"') from error
    options = {"analyzer": "char_wb", "ngram_range": (2, 5)} if analyzer == "characters" else {"tokenizer": _WORDS, "token_pattern": None}
    vectorizer = TfidfVectorizer(sublinear_tf=True, **options)
    model = LogisticRegression(C=10, max_iter=1000).fit(vectorizer.fit_transform(train_texts), train)
    predicted: np.ndarray = model.predict(vectorizer.transform(test_texts))
    return predicted


PROMPT = ("Text: ", "\nLabel:", "\n\n")  # before a text, between it and its label, and after a solved example


def prompt_room(gpt: GPT, tokenizer: Tokenizer, labels: Sequence[str], examples: Sequence[tuple[str, str]] = ()) -> int:
    """Tokens that each text may have in a prompt: an equal share of what the context leaves.

    Raises ValueError if the context cannot hold the prompt's own words and a token per text.
    """
    before, after, end = (len(tokenizer.encode(words)) for words in PROMPT)
    solved = sum(before + after + end + len(tokenizer.encode(" " + label)) for _, label in examples)
    fixed = solved + before + after + max(len(tokenizer.encode(" " + label)) for label in labels)
    room = (gpt.config.n_positions - fixed) // (len(examples) + 1)
    if room < 1:
        raise InvalidInput(
            f"prompted: {fixed} tokens besides the texts, expected fewer than the context of {gpt.config.n_positions}; give fewer examples"
        )
    return room


def prompted(
    gpt: GPT,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    labels: Sequence[str],
    examples: Sequence[tuple[str, str]] = (),
    batch_size: int = 16,
) -> np.ndarray:
    """(N,) label numbers from prompting alone: the label that the language model finds likeliest after each text.

    The prompt is "Text: ...", "Label:", preceded by solved `examples` (text, label); without any it is zero-shot. The score of a label is
    the mean log-probability of its tokens. Each text is cut to its first `prompt_room` tokens.

    Source  Brown et al. 2020, arXiv:2005.14165, section 2.4 (multiple choice by the likelihood of each option, per token).
    Raises ValueError as `prompt_room`.
    """
    room = prompt_room(gpt, tokenizer, labels, examples)
    before, after, end = (tokenizer.encode(words) for words in PROMPT)
    answers = [tokenizer.encode(" " + label) for label in labels]
    shots: list[int] = []
    for text, label in examples:
        shots += before + tokenizer.encode(text)[:room] + after + tokenizer.encode(" " + label) + end
    prompts = [shots + before + tokenizer.encode(text)[:room] + after for text in texts]
    scores = np.zeros((len(texts), len(labels)))
    was_training = gpt.training
    gpt.eval()
    with ag.no_grad():
        for start in range(0, len(texts), batch_size):
            for j, answer in enumerate(answers):
                some = prompts[start : start + batch_size]
                ids, _ = pad([np.array(prompt + answer) for prompt in some])
                rows = np.arange(len(some))[:, None]
                places = np.array([len(prompt) for prompt in some])[:, None] + np.arange(len(answer)) - 1  # what predicts the answer
                log_p = ag.log_softmax(gpt.lm_head(gpt.hidden(ids)[rows, places]))  # (B, tokens of the answer, V)
                scores[start : start + len(some), j] = backend.to_host(log_p.data)[:, np.arange(len(answer)), answer].mean(axis=1)
    gpt.train(was_training)
    return scores.argmax(axis=1)
