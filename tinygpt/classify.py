"""Classification: a head on a pretrained GPT, its training, and an honest report of what it can do.

    classifier = GPTClassifier(gpt, tokenizer, labels=["ham", "spam"])
    set_trainable(classifier, "last-block")                     # or "head", "all", "lora"; tinygpt.finetune
    fit(classifier, train, validation, config, reporter)        # batches: LabelledBatches(encode(...), targets)
    predictions = classifier.predict(["WINNER! Call now"])      # .labels, .probabilities
    classifier.save_pretrained("my"); classifier = GPTClassifier.from_pretrained("my")

In a causal model only the last token of a text has seen all of it, so that is where the head looks by default: at the last *real* token.
Reading a padding position instead lets predictions change with the padding; see `GPTClassifier.forward`.
"""

import copy
import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np

import autograd as ag
from autograd import backend, nn
from tinygpt.checkpoint import checkpoint_directory, tokenizer_of
from tinygpt.finetune import pad, shorten
from tinygpt.model import GPT, Head
from tinygpt.tokenizer import Tokenizer
from tinygpt.weights import CLASSIFIER, load_config, load_weights, read_json, save_pretrained

Pooling = Literal["last", "mean", "first"]

# ---- texts to batches --------------------------------------------------------------------------------------------------------------------


def encode(
    texts: Sequence[str], tokenizer: Tokenizer, n_positions: int, *, truncate: bool = False, places: Sequence[str] | None = None
) -> tuple[list[np.ndarray], int]:
    """Token ids of each text, and how many texts were cut.

    n_positions   the model's context
    truncate      keep the first n_positions tokens of longer texts
    places        what error messages call the texts; by default their numbers
    Raises ValueError for a text without a token, and, without truncate, for one that is longer than the context.
    """
    sequences, n_cut = [], 0
    for i, text in enumerate(texts):
        ids = tokenizer.encode_array(text)
        place = places[i] if places else f"text {i}"
        if not ids.size:
            raise ValueError(f"{place}: no token, expected at least one; leave empty texts out")
        if ids.size > n_positions and not truncate:
            raise ValueError(
                f"{place}: {ids.size} tokens, expected at most {n_positions}, the model's context; shorten the text, or choose to cut "
                "long ones with --truncate"
            )
        n_cut += ids.size > n_positions
        sequences.append(ids[:n_positions])
    return sequences, n_cut


class LabelledBatches:
    """Labelled sequences as a trainer wants them: by number, padded to the longest of the batch.

    sequences       ids of each text
    targets         (N,) numbers of the labels
    class_weights   (labels,) how much a text of each label counts, or None: all the same
    token_dropout   probability of leaving each token out, anew each time: for training texts, so that no single word decides
    seed            of what is left out
    """

    def __init__(
        self,
        sequences: Sequence[np.ndarray],
        targets: np.ndarray,
        class_weights: np.ndarray | None = None,
        *,
        token_dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        if not 0 <= token_dropout < 1:
            raise ValueError(f"token_dropout: {token_dropout}, expected 0 <= p < 1; p is the share of tokens that is left out")
        self.sequences, self.targets, self.class_weights = sequences, np.asarray(targets), class_weights
        self.lengths = np.array([len(ids) for ids in sequences])
        self.token_dropout, self._rng = token_dropout, np.random.default_rng([seed, 3])

    def __len__(self) -> int:
        return len(self.sequences)

    def batch(self, which: np.ndarray) -> tuple[Any, ...]:
        """(ids (B, T), targets (B,), mask (B, T), weights (B,) or None): the arguments of `GPTClassifier.loss`."""
        ids, mask = pad([self._thinned(self.sequences[i]) for i in which])
        targets = self.targets[which]
        return ids, targets, mask, None if self.class_weights is None else self.class_weights[targets]

    def _thinned(self, ids: np.ndarray) -> np.ndarray:
        """The sequence without the tokens that are dropped; never without all of them."""
        if not self.token_dropout:
            return ids
        kept = ids[self._rng.random(len(ids)) >= self.token_dropout]
        return kept if len(kept) else ids


def balanced_weights(targets: np.ndarray, n_labels: int) -> np.ndarray:
    """(labels,) weights under which every label counts as much: N / (labels x rows of the label)."""
    return len(targets) / (n_labels * np.maximum(np.bincount(targets, minlength=n_labels), 1))


# ---- the model ---------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Predictions:
    """labels: the likeliest of each text; probabilities (N, labels), columns in the order of the classifier's labels; n_cut: texts cut."""

    labels: list[str]
    probabilities: np.ndarray
    n_cut: int = 0


class GPTClassifier(nn.Module):
    """A GPT with a classification head: logits = W h, without bias, h the final-norm output at one position or the mean over all.

    gpt         the pretrained model; its weights are shared, not copied: training the classifier changes them
    labels      names, in the order of the head's outputs
    pooling     "last": the last real token, which has seen the whole text; "mean": mean over the real tokens; "first": the first token,
                which in a causal model has seen nothing else and is there to compare
    seed        decides the initial head: normal, as GPT-2's other matrices

    Weights have the names of Hugging Face's GPT2ForSequenceClassification: `transformer.` before the GPT's, `score.weight` (labels, C).
    Raises ValueError for fewer than two labels, a label twice, or an unknown pooling.
    """

    def __init__(self, gpt: GPT, tokenizer: Tokenizer, labels: Sequence[str], *, pooling: Pooling = "last", seed: int = 0) -> None:
        self.labels = list(labels)
        if len(set(self.labels)) < max(len(self.labels), 2):
            raise ValueError(f"labels: {self.labels}, expected at least 2 different names; check the label column")
        if pooling not in get_args(Pooling):
            raise ValueError(f"pooling: {pooling!r}, expected one of {', '.join(get_args(Pooling))}; last is the usual choice")
        self.transformer = copy.copy(gpt)
        if not gpt.config.tie_word_embeddings:  # an output layer of its own has no use here
            self.transformer.config = dataclasses.replace(gpt.config, tie_word_embeddings=True)
            self.transformer.lm_head = Head(gpt.wte.weight)
        self.config = self.transformer.config
        self.dropout_stream = gpt.dropout_stream
        self.tokenizer, self.pooling = tokenizer, pooling
        weight = np.random.default_rng([seed, 1]).standard_normal((len(self.labels), self.config.n_embd), dtype=np.float32)
        self.score = Head(ag.Parameter(backend.to_device(weight * np.float32(self.config.initializer_range))))

    @property
    def n_choices(self) -> int:
        """How many labels each prediction chooses from."""
        return len(self.labels)

    def compute_in(self, dtype: str) -> Self:
        """Switches the GPT's arithmetic, as `GPT.compute_in`; head and loss stay float32."""
        self.transformer.compute_in(dtype)
        return self

    def forward(self, ids: Any, attention_mask: Any = None) -> ag.Tensor:
        """Logits (B, labels).

        ids              (B, T) host integers
        attention_mask   (B, T), 1 for tokens and 0 for padding on either side; None: no padding
        Padding on the right needs no mask inside the model: attention is causal, so no real token sees what comes after it.
        Raises ValueError for a row without a real token, and as `GPT.hidden` does.
        """
        ids = np.asarray(ids)
        real = np.ones(ids.shape, bool) if attention_mask is None else np.asarray(attention_mask).astype(bool)
        if real.shape != ids.shape or ids.ndim != 2 or not real.any(axis=1).all():
            raise ValueError(
                f"GPTClassifier: ids {ids.shape} with attention_mask {real.shape}, expected two of (batch, positions) with a real token in "
                "every row; leave empty texts out"
            )
        padded_left = not real[:, 0].all()
        h = self.transformer.hidden(ids, real if padded_left else None)  # (B, T, C)
        rows = np.arange(len(ids))
        if self.pooling == "mean":
            share = real / real.sum(axis=1, keepdims=True)  # (B, T), 0 for padding
            h = (h * ag.Tensor(backend.to_device(share[:, :, None], h.dtype))).sum(axis=1)  # (B, C)
        elif self.pooling == "first":
            h = h[rows, real.argmax(axis=1)]  # (B, C)
        else:
            h = h[rows, real.shape[1] - 1 - real[:, ::-1].argmax(axis=1)]  # (B, C)
        return self.score(ag.cast(h, self.score.weight.dtype))  # (B, labels)

    def loss(self, ids: Any, targets: Any, attention_mask: Any = None, weights: Any = None) -> ag.Tensor:
        """Mean cross-entropy in nats per text, as a scalar; with weights (B,) the mean of weight times cross-entropy."""
        logits = self.forward(ids, attention_mask)
        if weights is None:
            return ag.cross_entropy(logits, targets)
        share = backend.to_device(np.asarray(weights) / len(weights), logits.dtype)
        log_p = ag.log_softmax(logits)[np.arange(len(targets)), np.asarray(targets)]  # (B,)
        return -(log_p * ag.Tensor(share)).sum()

    def logits(self, sequences: Sequence[np.ndarray], batch_size: int = 32) -> np.ndarray:
        """(N, labels) for sequences of ids, in batches of texts of similar length: less padding to compute."""
        logits = np.zeros((len(sequences), len(self.labels)), dtype=np.float32)
        by_length = np.argsort([len(ids) for ids in sequences], kind="stable")
        was_training = self.training
        self.eval()
        with ag.no_grad():
            for start in range(0, len(sequences), batch_size):
                which = by_length[start : start + batch_size]
                logits[which] = backend.to_host(self.forward(*pad([sequences[i] for i in which])).data)
        self.train(was_training)
        return logits

    def predict(self, texts: Sequence[str], *, truncate: bool = False, batch_size: int = 32) -> Predictions:
        """The likeliest label of each text, and the probabilities of all. Raises ValueError as `encode`, TypeError for a single str."""
        if isinstance(texts, str):
            raise TypeError("predict: a str, expected a list of texts; wrap it as [text]")
        sequences, n_cut = encode(texts, self.tokenizer, self.config.n_positions, truncate=truncate)
        p = softmax(self.logits(sequences, batch_size))
        return Predictions([self.labels[i] for i in p.argmax(axis=1)], p, n_cut)

    def label_ids(self, labels: Sequence[str]) -> np.ndarray:
        """(N,) numbers of labels. Raises ValueError for one that this head was not made for."""
        number = {label: i for i, label in enumerate(self.labels)}
        unknown = sorted(set(labels) - number.keys())
        if unknown:
            raise ValueError(
                f"label {unknown[0]!r}: not among those of the head, expected one of {', '.join(self.labels)}; train a new head on this data"
            )
        return np.array([number[label] for label in labels], dtype=np.int64)

    def save_pretrained(self, directory: str | Path, tokenizer: Tokenizer | None = None) -> None:
        """Writes a Hugging Face GPT2ForSequenceClassification directory, with the tokenizer (by default the classifier's own).

        `pooling` is a key of ours: other programs read the last token that is not `pad_token_id`.
        """
        extra = {
            "architectures": [CLASSIFIER],
            "id2label": {str(i): label for i, label in enumerate(self.labels)},
            "label2id": {label: i for i, label in enumerate(self.labels)},
            "pad_token_id": self.tokenizer.eos_id,  # never part of a text
            "pooling": self.pooling,
        }
        save_pretrained(self, directory, tokenizer or self.tokenizer, extra)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Self:
        """A saved classifier, from its directory or its run. Raises ValueError for a checkpoint that is none."""
        directory = checkpoint_directory(path)
        fields = read_json(directory / "config.json")
        id2label = fields.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})  # transformers leaves out what it takes for the default
        if CLASSIFIER not in fields.get("architectures", []) or not isinstance(id2label, dict):
            raise ValueError(
                f"{directory}: architectures {fields.get('architectures')}, expected {CLASSIFIER} with id2label; "
                "train one: python examples/finetune_classifier.py"
            )
        labels = [label for _, label in sorted(id2label.items(), key=lambda item: int(item[0]))]
        config = load_config(directory)
        gpt = GPT(config, _empty=True)
        classifier = cls(gpt, tokenizer_of(directory, config), labels, pooling=fields.get("pooling", "last"))
        load_weights(classifier, directory)
        return classifier


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (N, labels) of logits (N, labels), on the host."""
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


# ---- the report --------------------------------------------------------------------------------------------------------------------------


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
            raise ValueError("Scores: no predictions, expected at least one; is the test part empty?")
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
    """The wrongly labelled texts to whose true label the model gave the least probability, as text: worst first."""
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
    """Draws the confusion matrix: colour is the share of the true label's texts, numbers are counts.

    Raises ImportError, naming the extra, without matplotlib.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError('confusion.png: matplotlib is missing, expected it for pictures; pip install "tinygpt[plot]"') from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    k = len(scores.labels)
    share = scores.confusion / np.maximum(scores.confusion.sum(axis=1, keepdims=True), 1)
    size = min(3.2 + 0.55 * k, 14)
    figure, axes = plt.subplots(figsize=(size + 0.8, size), dpi=120, layout="constrained")
    image = axes.imshow(share, cmap="cividis", vmin=0, vmax=1)  # made to look alike with and without colour-vision deficiency
    for i, j in np.ndindex(k, k) if k <= 20 else ():
        axes.text(j, i, str(scores.confusion[i, j]), ha="center", va="center", color="black" if share[i, j] > 0.5 else "white")
    axes.set_xticks(range(k), scores.labels, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(range(k), scores.labels, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true", title=f"accuracy {scores.accuracy:.1%}, balanced {scores.balanced_accuracy:.1%}")
    figure.colorbar(image, ax=axes, label="share of the true label", shrink=0.8)
    figure.savefig(path)
    plt.close(figure)


# ---- what to compare with ----------------------------------------------------------------------------------------------------------------


def majority_baseline(train: np.ndarray, n_texts: int) -> np.ndarray:
    """(n_texts,) the most frequent training label, again and again."""
    return np.full(n_texts, Counter(np.asarray(train).tolist()).most_common(1)[0][0])


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
        raise ImportError('baseline: scikit-learn is missing, expected it for comparison; pip install "tinygpt[classify]"') from error
    options = {"analyzer": "char_wb", "ngram_range": (2, 5)} if analyzer == "characters" else {}
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
        raise ValueError(
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
