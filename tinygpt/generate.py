"""Text from a model: one token at a time, each drawn from the model's distribution over the next."""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import autograd as ag
from autograd import backend


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the model's distribution.

    temperature   divides the logits: below 1 bolder towards the likely, above 1 more even; 0: always the likeliest (greedy)
    top_k         only the k likeliest tokens; 0: all
    top_p         only the likeliest tokens that together reach this probability; 1: all.
                  Source  Holtzman et al. 2020, arXiv:1904.09751, section 3.1
    """

    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature: {self.temperature}, expected a finite number >= 0; 0 is greedy")
        if self.top_k < 0:
            raise ValueError(f"top_k: {self.top_k}, expected >= 0; 0 allows all tokens")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: {self.top_p}, expected 0 < top_p <= 1; 1 allows all tokens")


@dataclass(frozen=True)
class Generated:
    """What `generate` made.

    ids           (B, T + new) the prompts and what follows; after a sequence has ended, its end token again
    stop_reason   per sequence: "eos" or "length"
    """

    ids: np.ndarray
    stop_reason: list[str]


def generate(
    model: Any,
    ids: Any,
    max_new_tokens: int,
    *,
    temperature: float = 0.8,
    top_k: int = 50,
    top_p: float = 1.0,
    seed: int = 0,
    eos_id: int | None = None,
) -> Generated:
    """Continues each row of ids (B, T) by up to max_new_tokens tokens, ending a row early at `eos_id`."""
    tokens = np.asarray(ids)
    if tokens.ndim != 2:
        raise ValueError(f"generate: ids of shape {tokens.shape}, expected (batch, positions); wrap one prompt as [ids]")
    done = np.zeros(len(tokens), bool)
    for new in next_tokens(model, tokens, max_new_tokens, Sampling(temperature, top_k, top_p), seed):
        if eos_id is not None:
            new = np.where(done, eos_id, new)
            done |= new == eos_id
        tokens = np.concatenate([tokens, new[:, None]], axis=1)
        if done.all():
            break
    return Generated(tokens, ["eos" if d else "length" for d in done])


def next_tokens(model: Any, ids: np.ndarray, max_new_tokens: int, sampling: Sampling, seed: int = 0) -> Iterator[np.ndarray]:
    """Yields the next token of each row, (B,) int64, again and again.

    When the window is full, the last n_positions // 2 tokens are kept and read anew from position 0: learned positions do not
    slide. Raises ValueError for an empty prompt or one longer than the context.
    """
    n_positions = model.config.n_positions
    if ids.shape[1] == 0:
        raise ValueError("generate: an empty prompt, expected at least one token; start with <|endoftext|> for a text from nothing")
    if ids.shape[1] > n_positions:
        raise ValueError(
            f"generate: a prompt of {ids.shape[1]} tokens, expected at most {n_positions}, the model's context; "
            "shorten the prompt, or keep its last part"
        )
    rng = np.random.default_rng(seed)
    window = np.asarray(ids, dtype=np.int64)
    was_training = model.training
    model.eval()
    try:
        for _ in range(max_new_tokens):
            if window.shape[1] > n_positions:
                window = window[:, -max(n_positions // 2, 1) :]
            with ag.no_grad():
                last = model.lm_head(model.hidden(window)[:, -1])  # (B, V): the head sees one position only
            new = sample(backend.to_host(last.data), sampling, rng)
            window = np.concatenate([window, new[:, None]], axis=1)
            yield new
    finally:
        model.train(was_training)


def sample(logits: np.ndarray, sampling: Sampling, rng: np.random.Generator) -> np.ndarray:
    """One token per row of logits (B, V) -> (B,) int64."""
    if sampling.temperature == 0:
        return logits.argmax(axis=-1)
    scores = logits.astype(np.float64) / sampling.temperature
    if 0 < sampling.top_k < scores.shape[-1]:
        kth = np.partition(scores, -sampling.top_k, axis=-1)[:, -sampling.top_k, None]
        scores = np.where(scores >= kth, scores, -np.inf)
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    if sampling.top_p < 1:
        order = np.argsort(-p, axis=-1, kind="stable")
        ranked = np.take_along_axis(p, order, axis=-1)
        before = np.cumsum(ranked, axis=-1) - ranked  # what the likelier ones reach already
        kept = np.zeros_like(p)
        np.put_along_axis(kept, order, np.where(before < sampling.top_p, ranked, 0), axis=-1)
        p = kept / kept.sum(axis=-1, keepdims=True)
    # Inverse of the cumulative distribution at one uniform number per row.
    cumulative = np.cumsum(p, axis=-1)
    return np.array([_first_above(c, u) for c, u in zip(cumulative, rng.random(len(p)), strict=True)], dtype=np.int64)


def _first_above(cumulative: np.ndarray, u: float) -> int:
    """The first index whose cumulative probability exceeds u times the total: never one of probability 0."""
    last = cumulative.argmax()  # rounding may carry u times the total up to the total itself
    return int(min(np.searchsorted(cumulative, u * cumulative[-1], side="right"), last))


class TextStream:
    """Iterator over pieces of generated text, never half a character; afterwards `text`, `ids` and `stop_reason` are set.

    prompt       text to continue; "" starts from <|endoftext|>, where the tokenizer has it
    stop         strings that end the text (not shown themselves)
    stop_reason  "eos", "stop string" or "length"
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        prompt: str,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        *,
        stop: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        if any(not s for s in stop):
            raise ValueError("stop: an empty string, expected at least one character; leave it out to stop nowhere")
        prompt_ids = tokenizer.encode(prompt)
        if not prompt_ids and tokenizer.eos_id is not None:
            prompt_ids = [tokenizer.eos_id]
        self.text = ""
        self.ids: list[int] = []
        self.stop_reason = "length"
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._tokens = next_tokens(model, np.array([prompt_ids], dtype=np.int64), max_new_tokens, sampling or Sampling(), seed)

    def __iter__(self) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        pending = ""  # text that may turn out to begin a stop string
        for new in self._tokens:
            token = int(new[0])
            if token == self._tokenizer.eos_id:
                self.stop_reason = "eos"
                break
            self.ids.append(token)
            pending += decoder.decode(self._tokenizer.token_bytes(token))
            end = min((i for s in self._stop if (i := pending.find(s)) >= 0), default=-1)
            if end >= 0:
                self.stop_reason = "stop string"
                self.text += pending[:end]
                yield pending[:end]
                return
            held = max((n for s in self._stop for n in range(1, len(s)) if pending.endswith(s[:n])), default=0)
            ready, pending = pending[: len(pending) - held], pending[len(pending) - held :]
            if ready:
                self.text += ready
                yield ready
        rest = pending + decoder.decode(b"", final=True)
        if rest:
            self.text += rest
            yield rest


def complete(model: Any, tokenizer: Any, prompt: str, max_new_tokens: int, sampling: Sampling | None = None, **options: Any) -> TextStream:
    """A finished `TextStream`: read `.text` and `.stop_reason`."""
    stream = TextStream(model, tokenizer, prompt, max_new_tokens, sampling, **options)
    for _ in stream:
        pass
    return stream
