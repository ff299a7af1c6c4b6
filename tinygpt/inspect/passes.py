"""What the explorer shows of a pass through a model of each kind: the sequences in it, what they predict, and who attends to whom."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

import autograd as ag
from autograd import backend
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.data.windows import IGNORED
from tinygpt.errors import InvalidInput
from tinygpt.models.base import Model
from tinygpt.models.encoder import Encoder
from tinygpt.models.gpt import GPT
from tinygpt.models.seq2seq import Seq2Seq, shifted_right


class Sequence(NamedTuple):
    """Tokens that go through a stack of blocks.

    ids        (T,)
    answers    what each position is to predict; None where nothing is known, or nothing is predicted
    blocks     what the names of the blocks begin with, and how many there are
    head       the residual stream (1, T, C) -> logits (1, T, V); None for one that predicts nothing
    embedded   how many sequences are embedded before it in a pass
    """

    ids: np.ndarray
    answers: list[int | None]
    blocks: tuple[str, int]
    head: Callable[[ag.Tensor], ag.Tensor] | None
    embedded: int = 0


class View(NamedTuple):
    """One kind of attention: `name` for the page, tokens that look, tokens that are looked at, whether a mask hides those that come later."""

    name: str
    queries: Sequence
    keys: Sequence
    causal: bool
    within: Callable[[str], bool] = bool
    """Whether the module of that name computes it."""


@dataclass(frozen=True)
class Pass:
    """ids and targets as the model's `loss` takes them, what is shown, and in a sentence what the loss and the predictions are of."""

    ids: np.ndarray
    targets: np.ndarray
    views: list[View]
    about: str


def pass_of(model: Model, tokenizer: Tokenizer, prompt: str, target: str = "") -> Pass:
    """What is shown of a prompt, for an encoder-decoder the source of `target`; without one, of the model's own translation.

    Raises ValueError for texts that do not fit the model's context, and for a target with another kind of model.
    """
    if isinstance(model, Seq2Seq):
        return _of_translation(model, tokenizer, prompt, target)
    if target:
        raise InvalidInput(f"explore: the target {target!r} for a model that reads one text, expected none; leave --target out")
    if isinstance(model, Encoder):
        return _of_masked_words(model, tokenizer, prompt)
    assert isinstance(model, GPT)
    ids = np.array(tokenizer.encode_from_start(prompt), dtype=np.int64)
    _check_length("prompt", ids, 2, model.config.n_positions, "one to read and one to predict at least")
    answers = [*ids[1:].tolist(), None]  # nothing is known to follow the last token
    sequence = Sequence(ids, answers, ("h.", model.config.n_layer), lambda x: model.lm_head(model.ln_f(x)))
    return Pass(*_batch(ids, answers), [View("", sequence, sequence, causal=True)], "")


def _of_masked_words(model: Encoder, tokenizer: Tokenizer, prompt: str) -> Pass:
    """The positions of [MASK] are to predict the model's own likeliest tokens; without any, every position the token that it has."""
    ids = np.array(tokenizer.encode_wrapped(prompt, allow_special=True).ids, dtype=np.int64)
    _check_length("prompt", ids, 2, model.config.n_positions, "one to look and one to look at at least")
    masked = ids == (-1 if tokenizer.mask_id is None else tokenizer.mask_id)
    answers: list[int | None] = ids.tolist()
    if masked.any():
        with ag.no_grad():
            likeliest = backend.to_host(model(ids[None]).data)[0].argmax(axis=-1)
        answers = [int(i) if hidden else None for i, hidden in zip(likeliest, masked, strict=True)]
    if model.head is None:
        raise InvalidInput("explore: an encoder without a head for masked words, expected one that predicts them; load another file")
    head = model.head
    sequence = Sequence(ids, answers, ("h.", model.config.n_layer), lambda x: head(model.ln_f(x)))
    what = "the likeliest token at each mask" if masked.any() else "the token that stands there, at every position"
    return Pass(*_batch(ids, answers), [View("", sequence, sequence, causal=False)], f"Answers: {what}.")


def _of_translation(model: Seq2Seq, tokenizer: Tokenizer, prompt: str, target: str) -> Pass:
    config = model.config
    source = np.array(tokenizer.encode_wrapped(prompt).ids, dtype=np.int64)
    _check_length("prompt", source, 1, config.n_positions, "one at least")
    written = tokenizer.target.encode_wrapped(target).ids if target else model.translate(source[None], config.n_positions)[0]
    targets = np.array(written, dtype=np.int64)
    _check_length("target", targets, 1, config.n_positions, "one at least")
    read = shifted_right(targets[None], config.start_id, config.pad_id)[0]
    of_target = Sequence(
        read, targets.tolist(), ("decoder.h.", config.n_decoder_layers), lambda x: model.lm_head(model.decoder.ln_f(x)), embedded=1
    )
    of_source = Sequence(source, [None] * len(source), ("encoder.h.", config.n_layer), None)
    views = [
        View("target looks at source", of_target, of_source, False, lambda module: ".cross" in module),
        View("target looks at itself", of_target, of_target, True, lambda module: module.startswith("decoder.") and ".cross" not in module),
        View("source looks at itself", of_source, of_source, False, lambda module: module.startswith("encoder.")),
    ]
    return Pass(source[None], targets[None], views, f"Target: {'as given' if target else 'as the model translates'}.")


def _batch(ids: np.ndarray, answers: list[int | None]) -> tuple[np.ndarray, np.ndarray]:
    return ids[None], np.array([[IGNORED if answer is None else answer for answer in answers]])


def _check_length(what: str, ids: np.ndarray, least: int, most: int, why: str) -> None:
    if not least <= len(ids) <= most:
        rule = f"{least} to {most} (the model's context), {why}"
        raise InvalidInput(f"explore: a {what} of {len(ids)} tokens, expected {rule}; change the {what}")
