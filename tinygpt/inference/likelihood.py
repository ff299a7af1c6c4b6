"""What a model makes of whole texts: how likely a given one is, and the likeliest continuation that a beam of several finds.

log_likelihood(model, tokenizer, text).nats_per_token        # also .bits_per_byte, .perplexity
beam_search(model, ids, 20, n_beams=4)[0].ids
choose(model, tokenizer, "Text: dreadful\\nMood:", [" good", " bad"])   # the likelier answer, without any training
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import autograd as ag
from autograd import backend, inference
from tinygpt.errors import InvalidInput
from tinygpt.inference.text import prompt_ids


@dataclass(frozen=True)
class Likelihood:
    """How a model rates a text.

    nats       minus the logarithm of its probability, over the n_tokens tokens that were predicted
    n_bytes    UTF-8 bytes of these tokens, 0 where unknown
    """

    nats: float
    n_tokens: int
    n_bytes: int = 0

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.n_tokens

    @property
    def perplexity(self) -> float:
        """e to the nats per token: among how many tokens an even choice would be as hard."""
        return math.exp(self.nats_per_token)

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers. Raises ValueError where the bytes are unknown."""
        if not self.n_bytes:
            raise InvalidInput("bits_per_byte: unknown number of bytes, expected a text; use log_likelihood with a tokenizer")
        return self.nats / math.log(2) / self.n_bytes


def token_nats(model: Any, ids: Sequence[int], stride: int | None = None) -> np.ndarray:
    """Minus the log-probability of each token of ids (T,) but the first, in nats: (T - 1,).

    stride   a text longer than the context is read in windows whose starts lie so far apart: each token is predicted once, from at least
             n_positions - stride tokens before it (the first window's from what there is). Smaller is slower and fairer; by default half
             the context
    Raises ValueError for fewer than two tokens, or a stride outside 1 .. n_positions.
    """
    n_positions = model.config.n_positions
    stride = max(n_positions // 2, 1) if stride is None else stride
    if not 1 <= stride <= n_positions:
        raise InvalidInput(f"stride: {stride}, expected 1 to {n_positions}, the model's context; half of it is usual")
    tokens = np.asarray(ids)
    if len(tokens) < 2:
        raise InvalidInput(f"likelihood: {len(tokens)} tokens, expected at least 2; the first has nothing before it")
    nats = np.zeros(len(tokens) - 1)
    was_training = model.training
    model.eval()
    with inference.mode():
        done = 0  # predictions made so far; prediction i is of token i + 1
        for start in range(0, len(tokens) - 1, stride):
            end = min(start + n_positions, len(tokens) - 1)
            hidden = model.hidden(tokens[None, start:end])[0, done - start :]
            logits = ag.cast(model.lm_head(hidden), model.wte.weight.dtype)
            log_p = ag.log_softmax(logits)[np.arange(end - done), tokens[done + 1 : end + 1]]
            nats[done:end] = -backend.to_host(log_p.data)
            done = end
            if done == len(tokens) - 1:
                break
    model.train(was_training)
    return nats


def log_likelihood(model: Any, tokenizer: Any, text: str, stride: int | None = None) -> Likelihood:
    """How likely the model finds a text. Where the tokenizer has <|endoftext|>, it stands in front, so that every token is predicted."""
    ids = list(tokenizer.encode(text))
    n_bytes = len(text.encode("utf-8"))
    if tokenizer.eos_id is not None:
        ids = [tokenizer.eos_id, *ids]
    elif ids:
        n_bytes -= len(tokenizer.decode_bytes(ids[:1]))
    nats = token_nats(model, ids, stride)
    return Likelihood(float(nats.sum()), len(nats), n_bytes)


def choose(model: Any, tokenizer: Any, prompt: str, options: Sequence[str]) -> tuple[str, list[Likelihood]]:
    """The option that most likely follows the prompt, per token, and the likelihood of each.

    Per token, because a longer option is less likely merely by being longer. Raises ValueError without an option, or if prompt and
    option together exceed the context.
    """
    if not options:
        raise InvalidInput("choose: no option, expected at least one; list the possible answers")
    start = prompt_ids(tokenizer, prompt)
    found = []
    for option in options:
        ids = tokenizer.encode(option)
        if not ids or len(start) + len(ids) > model.config.n_positions + 1:
            raise InvalidInput(
                f"choose: {len(start)} tokens of prompt and {len(ids)} of {option!r}, expected at least one of each and at most "
                f"{model.config.n_positions + 1} together; shorten the prompt"
            )
        nats = token_nats(model, [*start, *ids])[-len(ids) :]
        found.append(Likelihood(float(nats.sum()), len(ids), len(option.encode("utf-8"))))
    best = min(range(len(options)), key=lambda i: found[i].nats_per_token)
    return options[best], found


def few_shot_prompt(
    query: str, examples: Sequence[tuple[str, str]] = (), *, task: str = "", names: tuple[str, str] = ("Input", "Output")
) -> str:
    """A prompt that shows the task by examples (few-shot), or only names it (no examples: zero-shot), and ends where the answer begins.

        Say the opposite.

        Input: hot
        Output: cold

        Input: up
        Output:

    task    one line at the top, or ""
    names   what stands before question and answer
    The answer then starts with a blank, and ends at a line end: stop=["\\n"].
    Source  Brown et al. 2020, arXiv:2005.14165, section 2.
    """
    asked, answered = names
    shown = [f"{asked}: {question.strip()}\n{answered}: {answer.strip()}" for question, answer in examples]
    return "\n\n".join([*([task.strip()] if task else []), *shown, f"{asked}: {query.strip()}\n{answered}:"])


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    scores = logits.astype(np.float64)
    scores -= scores.max(axis=-1, keepdims=True)
    scores -= np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    return scores
