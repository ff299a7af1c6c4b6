"""What a model makes of whole texts: how likely a given one is, and the likeliest continuation that a beam of several finds.

log_likelihood(model, tokenizer, text).nats_per_token        # also .bits_per_byte, .perplexity
beam_search(model, ids, 20, n_beams=4)[0].ids
choose(model, tokenizer, "Text: dreadful\\nMood:", [" good", " bad"])   # the likelier answer, without any training
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import autograd as ag
from autograd import backend
from tinygpt.generate import Reader, prompt_ids, top_ids

# How likely a text is ---------------------------------------------------------------------------------------------------------------------


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
            raise ValueError("bits_per_byte: unknown number of bytes, expected a text; use log_likelihood with a tokenizer")
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
        raise ValueError(f"stride: {stride}, expected 1 to {n_positions}, the model's context; half of it is usual")
    tokens = np.asarray(ids)
    if len(tokens) < 2:
        raise ValueError(f"likelihood: {len(tokens)} tokens, expected at least 2; the first has nothing before it")
    nats = np.zeros(len(tokens) - 1)
    was_training = model.training
    model.eval()
    with ag.no_grad():
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
        raise ValueError("choose: no option, expected at least one; list the possible answers")
    start = prompt_ids(tokenizer, prompt)
    found = []
    for option in options:
        ids = tokenizer.encode(option)
        if not ids or len(start) + len(ids) > model.config.n_positions + 1:
            raise ValueError(
                f"choose: {len(start)} tokens of prompt and {len(ids)} of {option!r}, expected at least one of each and at most "
                f"{model.config.n_positions + 1} together; shorten the prompt"
            )
        nats = token_nats(model, [*start, *ids])[-len(ids) :]
        found.append(Likelihood(float(nats.sum()), len(ids), len(option.encode("utf-8"))))
    best = min(range(len(options)), key=lambda i: found[i].nats_per_token)
    return options[best], found


# Prompts that show by example -------------------------------------------------------------------------------------------------------------


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


# Beam search ------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Beam:
    """A continuation. ids: its new tokens, an end token included. score: log-probability / length ** length_penalty."""

    ids: list[int]
    log_prob: float
    score: float
    stop_reason: str


def beam_search(
    model: Any, ids: Sequence[int], max_new_tokens: int, *, n_beams: int = 4, length_penalty: float = 1.0,
    eos_id: int | Collection[int] | None = None, use_cache: bool = True,
) -> list[Beam]:  # fmt: skip
    """The best continuations of one prompt that a search with n_beams open ends finds, best first.

    Every step extends each open end by every token and keeps the n_beams likeliest. One that ends on an end token is set aside; the
    search stops when no open end can still beat the worst of n_beams finished ones. With one beam it is greedy.

    length_penalty   the score divides by length to this power: above 0 it favours longer texts, whose log-probability is always lower
    Raises ValueError for fewer than one beam, and as `Reader` does.
    Source  Graves 2012, arXiv:1211.3711, algorithm 1; the length penalty in this form: Hugging Face's transformers.
    """
    if n_beams < 1:
        raise ValueError(f"n_beams: {n_beams}, expected at least 1; 1 is greedy")
    ends: frozenset[int] = frozenset() if eos_id is None else frozenset([eos_id] if isinstance(eos_id, (int, np.integer)) else eos_id)
    was_training = model.training
    model.eval()
    reader = Reader(model, [list(ids)] * n_beams, use_cache=use_cache, max_new_tokens=max_new_tokens)
    n_prompt = len(ids)
    log_probs = np.full(n_beams, -np.inf)
    log_probs[0] = 0.0  # all rows are the prompt; only the first counts until they differ
    finished: list[Beam] = []
    for length in range(1, max_new_tokens + 1):
        totals = log_probs[:, None] + _log_softmax(reader.logits())  # (beams, V)
        v = totals.shape[1]
        best = top_ids(totals.reshape(-1), min(n_beams * (1 + len(ends)), totals.size))  # enough that n_beams go on
        rows: list[int] = []
        tokens: list[int] = []
        log_probs_next: list[float] = []
        for rank, place in enumerate(best.tolist()):
            row, token, log_prob = place // v, place % v, float(totals.reshape(-1)[place])
            if log_prob == -math.inf:
                continue
            if token in ends:
                if rank < n_beams:
                    beam = [*reader.rows[row][n_prompt:], token]
                    finished.append(Beam(beam, log_prob, log_prob / length**length_penalty, "eos"))
            elif len(rows) < n_beams:
                rows.append(row)
                tokens.append(token)
                log_probs_next.append(log_prob)
        finished = sorted(finished, key=lambda beam: -beam.score)[:n_beams]
        if not rows:
            break
        missing = n_beams - len(rows)  # a vocabulary smaller than the beam
        reader.reorder(rows + rows[:1] * missing)
        reader.append(tokens + tokens[:1] * missing)
        log_probs = np.array(log_probs_next + [-math.inf] * missing)
        if len(finished) == n_beams and log_probs[0] / length**length_penalty <= finished[-1].score:
            break
    else:
        for row, log_prob in enumerate(log_probs):
            if log_prob > -math.inf and max_new_tokens:
                beam = reader.rows[row][n_prompt:]
                finished.append(Beam(beam, float(log_prob), float(log_prob) / len(beam) ** length_penalty, "length"))
    model.train(was_training)
    return sorted(finished, key=lambda beam: -beam.score)[:n_beams]


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    scores = logits.astype(np.float64)
    scores -= scores.max(axis=-1, keepdims=True)
    scores -= np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    return scores
