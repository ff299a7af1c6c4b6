"""Classification with an encoder: a head on what its first token knows after all blocks, where every token has seen the entire text."""

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import autograd as ag
from autograd import Array, nn
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.encoder_config import EncoderConfig
from tinygpt.finetuning.classifier import GPTClassifier, TextClassifier, initial_head
from tinygpt.models.encoder import Encoder, EncoderInitializer
from tinygpt.models.gpt import GPT
from tinygpt.runs.checkpoint import Checkpoint
from tinygpt.storage.checked_json import Json
from tinygpt.weights.config_json import ENCODER_CLASSIFIER


class EncoderClassifier(TextClassifier):
    """An encoder with a classification head: logits = tanh(h W_p + b_p) W + b, the pooler and a linear layer, with dropout in between.

    encoder     the pretrained model; its weights are shared, not copied. One without a pooler gets a new one
    labels      names, in the order of the head's outputs
    pooling     h is "first": the first real token, BERT's [CLS], as other programs have it; or "mean": the mean over the real tokens
    seed        decides the initial head, and pooler where there is none: normal, as the other matrices

    Files are those of BertForSequenceClassification and RobertaForSequenceClassification, whose `classifier.dense` is the pooler.
    Source  Devlin et al. 2018, arXiv:1810.04805, section 4.1; the pooler is in their code, for predicting the next sentence.
    """

    kind, poolings = ENCODER_CLASSIFIER, ("first", "mean")
    config: EncoderConfig
    transformer: Encoder
    score: nn.Linear

    def __init__(
        self, encoder: Encoder, tokenizer: Tokenizer, labels: Sequence[str], *, pooling: Literal["first", "mean"] = "first", seed: int = 0
    ) -> None:
        transformer, c = copy.copy(encoder), encoder.config.n_embd
        transformer.config = dataclasses.replace(encoder.config, head=False, pooler=True)
        transformer.head = None  # masked words have no use here
        if transformer.pooler is None:
            transformer.pooler = nn.Linear(c, c, init=EncoderInitializer(encoder.config.blocks(), seed).normal)
        for p in transformer.pooler.parameters():
            p.requires_grad = True
        super().__init__(transformer, tokenizer, labels, pooling)
        self.pad_id = self.config.pad_id
        self.dropout = nn.Dropout(self.config.dropout, self.dropout_stream)
        self.score = nn.Linear(c, len(self.labels), init=lambda shape: initial_head(seed, shape, self.config.initializer_range))

    def forward(self, ids: Array, attention_mask: Array = None, token_types: Array = None) -> ag.Tensor:
        """Logits (B, labels) of ids (B, T), host integers; attention_mask (B, T): 0 for padding, anywhere; None: without.

        token_types   as in `Encoder.hidden`
        Raises ValueError for a row without a real token, and as `Encoder.hidden` does.
        """
        ids, real = self.check_batch(ids, attention_mask)
        h = self.transformer.hidden(ids, None if attention_mask is None else real, token_types)  # (B, T, C)
        h = self.transformer.pool(self.pool(h, real))  # (B, C)
        logits: ag.Tensor = self.score(self.dropout(ag.cast(h, self.score.weight.dtype)))  # (B, labels)
        return logits

    @staticmethod
    def empty(config: EncoderConfig) -> Encoder:
        return Encoder(config, _empty=True)


def classifier_on(
    model: GPT | Encoder, tokenizer: Tokenizer, labels: Sequence[str], *, pooling: str = "", seed: int = 0
) -> TextClassifier:  # fmt: skip
    """A new classifier on a pretrained model of either kind; pooling: where its head looks, "" for the kind's usual choice."""
    cls: type[Json] = EncoderClassifier if isinstance(model, Encoder) else GPTClassifier
    classifier: TextClassifier = cls(model, tokenizer, labels, pooling=pooling or cls.poolings[0], seed=seed)
    return classifier


def open_classifier(path: str | Path) -> TextClassifier:
    """A saved classifier of either kind, from its directory or its run. Raises ValueError for a checkpoint that is none."""
    checkpoint = Checkpoint.open(path)
    return (EncoderClassifier if checkpoint.kind == ENCODER_CLASSIFIER else GPTClassifier).from_checkpoint(checkpoint)
