"""Classification: a head on a pretrained GPT, its training, and an honest report of what it can do.

    classifier = GPTClassifier(gpt, tokenizer, labels=["ham", "spam"])
    set_trainable(classifier, "last-block")                     # or "head", "all", "lora"; tinygpt.finetuning.common
    fit(classifier, train, validation, config, reporter)        # batches: LabeledBatches(encode(...), targets)
    predictions = classifier.predict(["WINNER! Call now"])      # .labels, .probabilities
    classifier.save_pretrained("my"); classifier = GPTClassifier.from_pretrained("my")

In a causal model only the last token of a text has seen all of it, so that is where the head looks by default: at the last *real* token.
Reading a padding position instead lets predictions change with the padding; see `GPTClassifier.forward`.
"""

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np

import autograd as ag
from autograd import Array, backend, inference, nn
from tinygpt.config import GPTConfig
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.data.windows import pad
from tinygpt.errors import InvalidInput, WrongType
from tinygpt.inference.sampling import softmax
from tinygpt.models.gpt import GPT, OutputLayer
from tinygpt.models.protocols import Batch
from tinygpt.runs.checkpoint import Checkpoint
from tinygpt.storage.checked_json import Json
from tinygpt.weights.config_json import CLASSIFIER, ENCODER, KINDS, LANGUAGE_MODEL, another_kind
from tinygpt.weights.pretrained import save_pretrained

Pooling = Literal["last", "mean", "first"]


def encode(
    texts: Sequence[str], tokenizer: Tokenizer, n_positions: int, *, truncate: bool = False, places: Sequence[str] | None = None
) -> tuple[list[np.ndarray], int]:
    """Token ids of each text, with those that the model wants around it, and how many were cut: with truncate, to n_positions tokens.

    places   what error messages call the texts; by default their numbers
    Raises ValueError for a text without a token, and, without truncate, for one that is longer than the context.
    """
    around, sequences, n_cut = tokenizer.wrapping, [], 0
    room = n_positions - len(around.start) - len(around.end)
    for place, text in zip(places or (f"text {i}" for i in range(len(texts))), texts, strict=True):
        ids = tokenizer.encode(text)
        if not len(ids):
            raise InvalidInput(f"{place}: no token, expected at least one; leave empty texts out")
        if len(ids) > room and not truncate:
            rule = f"at most {n_positions}, the model's context"
            found = f"{place}: {len(ids) + n_positions - room} tokens"
            raise InvalidInput(f"{found}, expected {rule}; shorten the text, or choose to cut long ones with --truncate")
        n_cut += len(ids) > room
        sequences.append(np.array(around.wrap(ids[:room]).ids, dtype=tokenizer.dtype))
    return sequences, n_cut


class LabeledBatches:
    """Labeled sequences by index, padded to the longest of the batch: `tinygpt.models.protocols.Batches`.

    targets, class_weights   (N,) numbers of the labels; (labels,) how much a text of each label counts, or None: all the same
    """

    def __init__(self, sequences: Sequence[np.ndarray], targets: np.ndarray, class_weights: np.ndarray | None = None) -> None:
        self.sequences, self.targets, self.class_weights = sequences, np.asarray(targets), class_weights
        self.lengths = np.array([len(ids) for ids in sequences])

    def __len__(self) -> int:
        return len(self.sequences)

    def batch(self, which: np.ndarray) -> Batch:
        """(ids (B, T), targets (B,), mask (B, T), weights (B,) or None): the arguments of `GPTClassifier.loss`."""
        ids, mask = pad([self.sequences[i] for i in which])
        targets = self.targets[which]
        return ids, targets, mask, None if self.class_weights is None else self.class_weights[targets]


def balanced_weights(targets: np.ndarray, n_labels: int) -> np.ndarray:
    """(labels,) weights under which every label counts as much: N / (labels x rows of the label)."""
    return len(targets) / (n_labels * np.maximum(np.bincount(targets, minlength=n_labels), 1))


@dataclass(frozen=True)
class Predictions:
    """labels: the likeliest of each text; probabilities (N, labels), columns in the order of the classifier's labels; n_cut: texts cut."""

    labels: list[str]
    probabilities: np.ndarray
    n_cut: int = 0


class TextClassifier(nn.Module):
    """What classifiers of every kind of model have: a head that gives logits (B, labels), its loss, predictions and files.

    transformer   the pretrained model; its weights are shared, not copied: training the classifier changes them
    labels        names, in the order of the head's outputs
    pooling       where the head looks, one of `poolings`, of which the first is the default
    Raises ValueError for fewer than two labels, a label twice, or an unknown pooling.
    """

    kind: ClassVar[str]  # a key of `tinygpt.weights.config_json.KINDS`
    poolings: ClassVar[tuple[str, ...]]
    config: Json
    transformer: Json
    score: nn.Module
    pad_id: int | None

    def __init__(self, transformer: Json, tokenizer: Tokenizer, labels: Sequence[str], pooling: str) -> None:
        self.labels = list(labels)
        if len(set(self.labels)) < max(len(self.labels), 2):
            raise InvalidInput(f"labels: {self.labels}, expected at least 2 different names; check the label column")
        if pooling not in self.poolings:
            rule = f"expected one of {', '.join(self.poolings)}"
            raise InvalidInput(f"pooling: {pooling!r}, {rule}; {self.poolings[0]} is the usual choice for this kind of model")
        self.transformer = transformer
        self.config = transformer.config
        self.dropout_stream = transformer.dropout_stream
        self.label_smoothing = 0.0
        self.tokenizer, self.pooling = tokenizer, pooling

    @property
    def n_classes(self) -> int:
        """How many labels each prediction chooses from."""
        return len(self.labels)

    def set_compute_dtype(self, dtype: str) -> Self:
        """Switches the model's arithmetic, as `GPT.set_compute_dtype`; head and loss stay float32."""
        self.transformer.set_compute_dtype(dtype)
        return self

    def set_z_loss(self, weight: float) -> Self:
        """Raises ValueError unless the weight is 0: a few labels have no use for z-loss."""
        if weight:
            rule = "expected 0; it is for language models, whose vocabularies are large"
            raise InvalidInput(f"{type(self).__name__}: z_loss {weight}, {rule}")
        return self

    def set_label_smoothing(self, share: float) -> Self:
        """As `GPT.set_label_smoothing`: the share is spread evenly over the labels, in training mode alone."""
        self.label_smoothing = share
        return self

    def check_batch(self, ids: Array, attention_mask: Array) -> tuple[np.ndarray, np.ndarray]:
        """ids (B, T) and which of them are real (B, T): all of them without a mask. Raises ValueError for a row without a real token."""
        ids = np.asarray(ids)
        real = np.ones(ids.shape, bool) if attention_mask is None else np.asarray(attention_mask)
        real = backend.as_mask(real, f"{type(self).__name__}: attention_mask")
        if real.shape != ids.shape or ids.ndim != 2 or not real.any(axis=1).all():
            found = f"ids {ids.shape} with attention_mask {real.shape}"
            rule = "two of (batch, positions) with a real token in every row"
            raise InvalidInput(f"{type(self).__name__}: {found}, expected {rule}; leave empty texts out")
        return ids, real

    def pool(self, h: ag.Tensor, real: np.ndarray) -> ag.Tensor:
        """(B, T, C) -> (B, C): at the first or the last real token, or the mean over all of them."""
        if self.pooling == "mean":
            share = real / real.sum(axis=1, keepdims=True)  # (B, T), 0 for padding
            return (h * ag.Tensor(backend.to_device(share[:, :, None], h.dtype))).sum(axis=1)
        first, last = real.argmax(axis=1), real.shape[1] - 1 - real[:, ::-1].argmax(axis=1)  # (B,) real tokens
        return h[np.arange(len(real)), first if self.pooling == "first" else last]

    def loss(self, ids: Array, targets: Array, attention_mask: Array = None, weights: Array = None) -> ag.Tensor:
        """Mean cross-entropy in nats per text, as a scalar; with weights (B,) the mean of weight times cross-entropy.

        In training mode of the smoothed labels, where `set_label_smoothing` has given them a share.
        """
        return self._loss(self.forward(ids, attention_mask), targets, weights)

    def loss_and_correct(self, ids: Array, targets: Array, attention_mask: Array = None, weights: Array = None) -> tuple[ag.Tensor, int]:
        """`loss`, and how many texts have their largest logit at the right label."""
        logits = self.forward(ids, attention_mask)
        correct = backend.to_host(logits.data).argmax(axis=1) == np.asarray(targets)
        return self._loss(logits, targets, weights), int(np.count_nonzero(correct))

    def _loss(self, logits: ag.Tensor, targets: Array, weights: Array) -> ag.Tensor:
        smoothing = self.label_smoothing if self.training else 0.0
        if weights is None:
            return ag.cross_entropy(logits, targets, label_smoothing=smoothing)
        share = backend.to_device(np.asarray(weights) / len(weights), logits.dtype)
        log_p = ag.log_softmax(logits)  # (B, labels)
        at_target = log_p[np.arange(len(targets)), np.asarray(targets)]  # (B,)
        if smoothing:
            at_target = (1 - smoothing) * at_target + smoothing * log_p.mean(axis=1)
        return -(at_target * ag.Tensor(share)).sum()

    def logits(self, sequences: Sequence[np.ndarray], batch_size: int = 32) -> np.ndarray:
        """(N, labels) for sequences of ids, in batches of texts of similar length: less padding to compute."""
        logits = np.zeros((len(sequences), len(self.labels)), dtype=np.float32)
        by_length = np.argsort([len(ids) for ids in sequences], kind="stable")
        with nn.evaluating(self), inference.mode():
            for start in range(0, len(sequences), batch_size):
                which = by_length[start : start + batch_size]
                logits[which] = backend.to_host(self.forward(*pad([sequences[i] for i in which])).data)
        return logits

    def predict(self, texts: Sequence[str], *, truncate: bool = False, batch_size: int = 32) -> Predictions:
        """The likeliest label of each text, and the probabilities of all. Raises ValueError as `encode`, TypeError for a single str."""
        if isinstance(texts, str):
            raise WrongType("predict: a str, expected a list of texts; wrap it as [text]")
        sequences, n_cut = encode(texts, self.tokenizer, self.config.n_positions, truncate=truncate)
        p = softmax(self.logits(sequences, batch_size))
        return Predictions([self.labels[i] for i in p.argmax(axis=1)], p, n_cut)

    def label_ids(self, labels: Sequence[str]) -> np.ndarray:
        """(N,) numbers of labels. Raises ValueError for one that this head was not made for."""
        if unknown := sorted(set(labels) - set(self.labels)):
            found = f"label {unknown[0]!r}: not among those of the head"
            raise InvalidInput(f"{found}, expected one of {', '.join(self.labels)}; train a new head on this data")
        number = {label: i for i, label in enumerate(self.labels)}
        return np.array([number[label] for label in labels], dtype=np.int64)

    def pretrained_fields(self) -> dict[str, Json]:
        """What config.json says of the head. `pooling` is a key of ours: other programs read the last token that is not `pad_token_id`."""
        return {
            "architectures": [self.kind],
            "id2label": {str(i): label for i, label in enumerate(self.labels)},
            "label2id": {label: i for i, label in enumerate(self.labels)},
            "pad_token_id": self.pad_id,  # never part of a text
            "pooling": self.pooling,
        }

    def save_pretrained(
        self, directory: str | Path, tokenizer: Tokenizer | None = None, dtype: str = "float32", max_shard_size: int | str | None = None
    ) -> None:
        """Writes a Hugging Face ...ForSequenceClassification directory of the model's family, with the tokenizer (by default its own).
        The rest is as in `tinygpt.weights.pretrained.save_pretrained`."""
        save_pretrained(self, directory, tokenizer or self.tokenizer, dtype, max_shard_size)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Self:
        """A saved classifier, from its directory or its run. Raises ValueError for a checkpoint that is none."""
        return cls.from_checkpoint(Checkpoint.open(path))

    @staticmethod
    def empty(config: Json) -> Json:
        """A model of that shape, whose weights are about to be loaded."""
        raise NotImplementedError

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """The classifier of an open checkpoint. Raises ValueError if it is none of this kind."""
        fields = checkpoint.stored.fields
        id2label = fields.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})  # transformers leaves out what it takes for the default
        if checkpoint.kind in (LANGUAGE_MODEL, ENCODER):
            found, fix = KINDS[checkpoint.kind].what, f"train one: python examples/finetune_classifier.py --base {checkpoint.path}"
            raise InvalidInput(f"{checkpoint.path}: {found}, expected {KINDS[cls.kind].what}; {fix}")
        if checkpoint.kind != cls.kind:
            raise another_kind(checkpoint.path, checkpoint.kind, cls.kind)
        if not isinstance(id2label, dict):
            rule = "expected names of labels by number; restore the file"
            raise InvalidInput(f"{checkpoint.path / 'config.json'}: id2label is a {type(id2label).__name__}, {rule}")
        labels = [label for _, label in sorted(id2label.items(), key=lambda item: int(item[0]))]
        classifier = cls(cls.empty(checkpoint.config), checkpoint.tokenizer(), labels, pooling=fields.get("pooling", cls.poolings[0]))
        if isinstance(fields.get("pad_token_id"), int):
            classifier.pad_id = fields["pad_token_id"]
        checkpoint.stored.load_into(classifier)
        return classifier


def initial_head(seed: int, shape: tuple[int, ...], scale: float) -> Array:
    """A new head's weights: normal, as the model's other matrices."""
    return backend.to_device(np.random.default_rng([seed, 1]).standard_normal(shape, dtype=np.float32) * np.float32(scale))


class GPTClassifier(TextClassifier):
    """A GPT with a classification head: logits = W h, without bias, h the final-norm output at one position or the mean over all.

    gpt         the pretrained model; its weights are shared, not copied: training the classifier changes them
    labels      names, in the order of the head's outputs
    pooling     "last": the last real token, which has seen all of the text; "mean": mean over the real tokens; "first": the first token,
                which in a causal model has seen nothing else and is there to compare
    seed        decides the initial head: normal, as GPT-2's other matrices

    pad_id      what transformers fills batches up with, and so leaves out when it looks for the last token; here a mask says that

    Weights have the names of Hugging Face's GPT2ForSequenceClassification: `transformer.` before the GPT's, `score.weight` (labels, C).
    Other families' files have those of theirs, LlamaForSequenceClassification's and so on.
    """

    kind, poolings = CLASSIFIER, ("last", "mean", "first")
    config: GPTConfig
    transformer: GPT
    score: OutputLayer

    def __init__(self, gpt: GPT, tokenizer: Tokenizer, labels: Sequence[str], *, pooling: Pooling = "last", seed: int = 0) -> None:
        transformer = copy.copy(gpt)
        if not gpt.config.tie_word_embeddings:  # a separate output layer has no use here
            transformer.config = dataclasses.replace(gpt.config, tie_word_embeddings=True)
            transformer.lm_head = OutputLayer(gpt.wte.weight)
        super().__init__(transformer, tokenizer, labels, pooling)
        self.pad_id = tokenizer.eos_id if tokenizer.pad_id is None else tokenizer.pad_id
        self.score = OutputLayer(ag.Parameter(initial_head(seed, (len(self.labels), self.config.n_embd), self.config.initializer_range)))

    def forward(self, ids: Array, attention_mask: Array = None) -> ag.Tensor:
        """Logits (B, labels) of ids (B, T), host integers; attention_mask (B, T): 0 for padding, on either side; None: without.

        Padding on the right needs no mask inside the model: attention is causal, so no real token sees what comes after it.
        Raises ValueError for a row without a real token, and as `GPT.hidden` does.
        """
        ids, real = self.check_batch(ids, attention_mask)
        padded_left = not real[:, 0].all()
        h = self.transformer.hidden(ids, real if padded_left else None)  # (B, T, C)
        logits: ag.Tensor = self.score(ag.cast(self.pool(h, real), self.score.weight.dtype))  # (B, labels)
        return logits

    @staticmethod
    def empty(config: GPTConfig) -> GPT:
        return GPT(config, _empty=True)
