"""Likelihood of a text, and multiple choice by likelihood.

log_likelihood(model, tokenizer, text).nats_per_token        # also .bits_per_byte, .perplexity
choose(model, tokenizer, "Text: dreadful\\nMood:", [" good", " bad"])   # the likelier answer, without any training
target_log_probs(model, ids, targets)                 # with a graph: what losses of preferences and rewards are made of
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

import autograd as ag
from autograd import backend, inference, nn
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.data.windows import IGNORED, pad
from tinygpt.errors import InvalidInput
from tinygpt.inference.text import prompt_ids
from tinygpt.models.protocols import Decodable


@dataclass(frozen=True)
class Likelihood:
    """How a model rates a text: minus the logarithm of its probability, over n_tokens predicted tokens of n_bytes in UTF-8 (0: unknown)."""

    nats: float
    n_tokens: int
    n_bytes: int = 0

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.n_tokens

    @property
    def perplexity(self) -> float:
        """e to the nats per token: as uncertain as a uniform choice among this many tokens."""
        return math.exp(self.nats_per_token)

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers. Raises ValueError where the bytes are unknown."""
        if not self.n_bytes:
            raise InvalidInput("bits_per_byte: unknown number of bytes, expected a text; use log_likelihood with a tokenizer")
        return self.nats / math.log(2) / self.n_bytes


def token_nats(model: Decodable, ids: Sequence[int], stride: int | None = None) -> np.ndarray:
    """Minus the log-probability of each token of ids (T,) but the first, in nats: (T - 1,).

    stride   distance between the starts of the windows in which a text longer than the context is read, by default half the context: each
             token is predicted once, from at least n_positions - stride tokens before it (in the first window, from those there are)
    Raises ValueError for fewer than two tokens, or a stride outside 1 .. n_positions.
    """
    n_positions = model.config.n_positions
    stride = max(n_positions // 2, 1) if stride is None else stride
    if not 1 <= stride <= n_positions:
        raise InvalidInput(f"stride: {stride}, expected 1 to {n_positions}, the model's context; half of it is usual")
    tokens = np.asarray(ids)
    if len(tokens) < 2:
        raise InvalidInput(f"likelihood: {len(tokens)} tokens, expected at least 2; the first has nothing before it")
    nats, start, done = np.zeros(len(tokens) - 1), 0, 0  # done: predictions made so far; prediction i is of token i + 1
    with nn.evaluating(model), inference.mode():
        while done < len(nats):
            end = min(start + n_positions, len(nats))
            hidden = model.hidden(tokens[None, start:end])[0, done - start :]
            nats[done:end] = _nats(model, hidden, tokens[done + 1 : end + 1])
            start, done = start + stride, end
    return nats


def _nats(model: Decodable, hidden: ag.Tensor, targets: np.ndarray) -> np.ndarray:
    """Minus the log-probability of targets (N,), each predicted from its row of hidden (N, C)."""
    logits = ag.cast(model.lm_head(hidden), model.wte.weight.dtype)
    nats: np.ndarray = -backend.to_host(ag.log_softmax(logits)[np.arange(len(targets)), targets].data)
    return nats


def target_log_probs(model: Decodable, ids: np.ndarray, targets: np.ndarray) -> ag.Tensor:
    """(K,) log-probabilities, in nats, of the K targets (B, T) that are not IGNORED, row by row; ids (B, T). With a graph, so that a loss can be
    made of them: logits are computed at those K positions alone. Raises ValueError where none counts."""
    rows, columns = np.nonzero(targets != IGNORED)
    if not len(rows):
        raise InvalidInput(f"target_log_probs: none of {targets.size} targets counts, expected at least one; is everything masked?")
    hidden = model.hidden(ids)[rows, columns]  # (K, C)
    logits = ag.cast(model.lm_head(hidden), model.wte.weight.dtype)  # (K, V)
    return ag.log_softmax(logits)[np.arange(len(rows)), targets[rows, columns]]


def log_likelihood(model: Decodable, tokenizer: Tokenizer, text: str, stride: int | None = None) -> Likelihood:
    """How likely the model finds a text. What the tokenizer puts in front of texts stands there, else <|endoftext|>, where it has that, so
    that every token is predicted."""
    ids, n_bytes = tokenizer.encode_from_start(text), len(text.encode("utf-8"))
    if not tokenizer.start and tokenizer.eos_id is not None:
        ids = [tokenizer.eos_id, *ids]
    elif ids and not tokenizer.start:
        n_bytes -= len(tokenizer.decode_bytes(ids[:1]))
    nats = token_nats(model, ids, stride)
    return Likelihood(float(nats.sum()), len(nats), n_bytes)


def choose(model: Decodable, tokenizer: Tokenizer, prompt: str, options: Sequence[str]) -> tuple[str, list[Likelihood]]:
    """The option with the highest likelihood per token after the prompt, and the likelihood of each option. Per token, because a longer
    option is less likely merely by being longer. Raises ValueError without an option, or if prompt and option together exceed the context.
    Source  Brown et al. 2020, arXiv:2005.14165, section 2.4.
    """
    if not options:
        raise InvalidInput("choose: no option, expected at least one")
    start, answers = prompt_ids(tokenizer, prompt), [tokenizer.encode(option) for option in options]
    n, most = len(start), model.config.n_positions + 1
    for option, ids in zip(options, answers, strict=True):
        if not n or not ids or n + len(ids) > most:
            given, rule = f"{n} tokens of prompt and {len(ids)} of {option!r}", f"at least one of each and at most {most} together"
            raise InvalidInput(f"choose: {given}, expected {rule}; shorten the prompt")
    inputs, _ = pad([[*start, *ids[:-1]] for ids in answers])
    with nn.evaluating(model), inference.mode():
        hidden = model.hidden(inputs)  # (options, T, C)
        nats = [_nats(model, hidden[i, n - 1 : n - 1 + len(ids)], np.array(ids)) for i, ids in enumerate(answers)]
    found = [Likelihood(float(each.sum()), len(each), len(option.encode("utf-8"))) for each, option in zip(nats, options, strict=True)]
    return min(zip(options, found, strict=True), key=lambda pair: pair[1].nats_per_token)[0], found


def few_shot_prompt(
    query: str, examples: Sequence[tuple[str, str]] = (), *, task: str = "", names: tuple[str, str] = ("Input", "Output")
) -> str:
    """A prompt that shows the task by examples (few-shot) or only names it (zero-shot), and ends where the answer begins.

    few_shot_prompt("up", [("hot", "cold")], task="Say the opposite.") is, with empty lines in between,
    "Say the opposite.", "Input: hot\\nOutput: cold", "Input: up\\nOutput:". The answer then starts with a space and ends with its line:
    stop=["\\n"]. names: the words before question and answer.
    Source  Brown et al. 2020, arXiv:2005.14165, section 2.
    """
    asked, answered = names
    shown = [f"{asked}: {question.strip()}\n{answered}: {answer.strip()}" for question, answer in examples]
    return "\n\n".join([*([task.strip()] if task else []), *shown, f"{asked}: {query.strip()}\n{answered}:"])
