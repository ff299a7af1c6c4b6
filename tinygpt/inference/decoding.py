"""Text from a model: one token at a time, each drawn from the model's distribution over the next.

    result = generate(model, [[1, 2, 3], [4, 5]], 50, temperature=0.8, seed=[0, 1])   # token ids; rows may differ in length
    for piece in TextStream(model, tokenizer, "The answer", 50): print(piece, end="")  # text as it is made
    complete(model, tokenizer, "The answer", 50, stop=["\\n"]).text

In the order of this file: how a token is chosen (`Sampling`), how the model is asked for the next one (`Reader`, with a cache of keys and
values or without), the loop over both (`Decoding`), and text on top of it. Beam search and likelihoods are in `tinygpt/inference/likelihood.py`.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import autograd as ag
from autograd import backend
from tinygpt.errors import InvalidInput
from tinygpt.inference.fast import RowDecoder, can_decode
from tinygpt.inference.sampling import RowStreams, Sampling, sample, top_ids
from tinygpt.models.cache import KVCache, fill


def window_length(n_tokens: int, n_positions: int) -> int:
    """How many of the last of n_tokens tokens the model sees.

    Learned positions cannot slide by one: every cached key would be at the wrong place. So a window that is full is cut to its last half,
    which is read anew from position 0, and then grows again. The rule depends on the count alone: with or without a cache, and however
    a text is split into prompt and continuation, the model sees the same.
    """
    if n_tokens <= n_positions:
        return n_tokens
    kept = max(n_positions // 2, 1)
    return kept + (n_tokens - n_positions - 1) % (n_positions + 1 - kept)


class Reader:
    """Rows of tokens, and the model's logits for what may follow each.

    prompts     ids per row, of any lengths
    use_cache   keep keys and values between calls (the default); without, the whole window is computed each time
    slide       past the context, go on with the last half of the window; False: an error
    on_slide    called as on_slide(row, n_kept) when that happens
    max_new_tokens   how many tokens a row will get at most; the cache is made for so many. None: for the whole context
    Raises ValueError for an empty prompt, and for one beyond the context with slide off.
    """

    def __init__(
        self, model: Any, prompts: Sequence[Sequence[int]], *, use_cache: bool = True, slide: bool = True,
        on_slide: Callable[[int, int], Any] | None = None, max_new_tokens: int | None = None,
    ) -> None:  # fmt: skip
        self.model, self.slide, self.on_slide = model, slide, on_slide
        self.n_positions = model.config.n_positions
        if not len(prompts) or not all(map(len, prompts)):
            raise InvalidInput("generate: an empty prompt, expected at least one token; start with <|endoftext|> for a text from nothing")
        self.rows: list[list[int]] = []
        for row, prompt in enumerate(prompts):
            backend.checked_indices(prompt, model.config.vocab_size, what="generate: prompt id")  # the check; the ids stay on the host
            self.rows.append(np.asarray(prompt).tolist())
            self._check_length(row, len(prompt))
        self.lengths = [window_length(len(ids), self.n_positions) for ids in self.rows]
        self.unread = set(range(len(self.rows)))  # rows of which the cache holds nothing valid
        self.cache, self.decoder = None, None
        if use_cache:
            dtype = model.wte.weight.dtype if model.dtype == np.float32 else model.dtype  # that of the activations
            n_slots = None if max_new_tokens is None else max(self.lengths) + max_new_tokens
            self.cache = KVCache(model.config, len(self.rows), dtype, n_slots)
            self.decoder = RowDecoder(model, self.cache, len(self.rows)) if can_decode(model) else None

    def window(self, row: int) -> list[int]:
        """The tokens of a row that the model sees."""
        return self.rows[row][-self.lengths[row] :]

    def logits(self) -> np.ndarray:
        """(B, V), on the host, for the token after each row. The next call may overwrite the array."""
        with ag.no_grad():
            if self.cache is None:
                return self._without_cache()
            if self.unread:
                rows = sorted(self.unread)
                fill(self.model, self.cache, rows, [self.window(row)[:-1] for row in rows])
                self.unread.clear()
            last = np.array([ids[-1] for ids in self.rows])
            positions = np.array(self.lengths) - 1
            if self.decoder is not None:
                return self.decoder.step(last, positions)
            return self._head(self.model.hidden(last[:, None], cache=self.cache.step(positions))[:, 0])

    def append(self, tokens: Any) -> None:
        """Adds one token to each row; None leaves the row as it is."""
        for row, token in enumerate(tokens):
            if token is None:
                continue
            self.rows[row].append(int(token))
            n = window_length(len(self.rows[row]), self.n_positions)
            if n <= self.lengths[row]:
                self._check_length(row, len(self.rows[row]))
                self.unread.add(row)
            self.lengths[row] = n

    def reorder(self, rows: Sequence[int]) -> None:
        """Row i becomes a copy of row rows[i]."""
        if self.cache is not None:
            self.cache.reorder(rows, max(self.lengths))
        self.rows = [list(self.rows[row]) for row in rows]
        self.lengths = [self.lengths[row] for row in rows]
        self.unread = {i for i, row in enumerate(rows) if row in self.unread}

    def _check_length(self, row: int, n: int) -> None:
        if n <= self.n_positions:
            return
        if not self.slide:
            raise InvalidInput(
                f"generate: {n} tokens, expected at most {self.n_positions}, the model's context; shorten the prompt, ask for fewer new "
                "tokens, or let the window slide"
            )
        if self.on_slide is not None:
            self.on_slide(row, window_length(n, self.n_positions))

    def _without_cache(self) -> np.ndarray:
        """Padding stands on the right, where no real token looks."""
        ids = np.zeros((len(self.rows), max(self.lengths)), dtype=np.int64)
        for row in range(len(self.rows)):
            ids[row, : self.lengths[row]] = self.window(row)
        return self._head(self.model.hidden(ids)[np.arange(len(ids)), np.array(self.lengths) - 1])

    def _head(self, hidden: Any) -> np.ndarray:
        """hidden (B, C): the head sees one position per row only."""
        return backend.to_host(ag.cast(self.model.lm_head(hidden), self.model.wte.weight.dtype).data)


@dataclass(frozen=True)
class TokenInfo:
    """How sure the model was of a token: by its own distribution, before temperature and the like. Logarithms in nats.

    alternatives   (id, log-probability) of the likeliest tokens, likeliest first
    """

    id: int
    log_prob: float
    alternatives: tuple[tuple[int, float], ...] = ()


class Decoding:
    """Iterator over the new tokens, (B,) int64 at a time; a row that has ended repeats its end token.

    done           (B,) booleans: rows that have ended. Set an entry to end a row from outside
    infos          per row, a TokenInfo per token, where asked for
    n_slides       how often the window of any row was full and was cut
    Ends after max_new_tokens, or when all rows are done. The arguments are those of `generate`.
    """

    def __init__(
        self, model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, sampling: Sampling | None = None, *,
        seed: int | Sequence[int] = 0, eos_id: int | Collection[int] | None = None, use_cache: bool = True, slide: bool = True,
        alternatives: int | None = None, on_slide: Callable[[int, int], Any] | None = None, n_tokens: int | None = None,
    ) -> None:  # fmt: skip
        if max_new_tokens < 0:
            raise InvalidInput(f"max_new_tokens: {max_new_tokens}, expected >= 0; 0 makes nothing")
        self.model, self.max_new_tokens, self.sampling = model, max_new_tokens, sampling or Sampling()
        self.n_slides, self._on_slide = 0, on_slide
        self.reader = Reader(model, prompts, use_cache=use_cache, slide=slide, on_slide=self._slid, max_new_tokens=max_new_tokens)
        self.done = np.zeros(len(self.reader.rows), bool)
        self.infos: list[list[TokenInfo]] = [[] for _ in self.reader.rows]
        self._ends = frozenset() if eos_id is None else frozenset([eos_id] if isinstance(eos_id, (int, np.integer)) else eos_id)
        self._n_tokens, self._alternatives, self._streams = n_tokens, alternatives, RowStreams(seed, len(self.reader.rows))

    def _slid(self, row: int, n_kept: int) -> None:
        self.n_slides += 1
        if self._on_slide is not None:
            self._on_slide(row, n_kept)

    def __iter__(self) -> Iterator[np.ndarray]:
        was_training = self.model.training
        self.model.eval()
        tokens = np.zeros(len(self.done), dtype=np.int64)
        try:
            for _ in range(self.max_new_tokens):
                logits = self.reader.logits()[:, : self._n_tokens]
                ended = self.done.copy()
                drawn = sample(logits, self.sampling, self._streams, self.reader.rows)
                tokens = np.where(ended, tokens, drawn)
                if self._alternatives is not None:
                    for row in np.flatnonzero(~ended):
                        self.infos[row].append(token_info(logits[row], int(tokens[row]), self._alternatives))
                self.done |= [int(token) in self._ends for token in tokens]
                yield tokens
                if self.done.all():
                    return
                self.reader.append([None if end else int(token) for end, token in zip(self.done, tokens, strict=True)])
        finally:
            self.model.train(was_training)


def token_info(logits: np.ndarray, id: int, n_alternatives: int) -> TokenInfo:
    """What the model's logits (V,) say of token `id` and of the likeliest ones."""
    log_total = float(logits.max()) + float(np.log(np.exp(logits - logits.max()).sum(dtype=np.float64)))
    best = top_ids(logits, min(n_alternatives, len(logits))) if n_alternatives else ()
    return TokenInfo(id, float(logits[id]) - log_total, tuple((int(i), float(logits[i]) - log_total) for i in best))


@dataclass(frozen=True)
class Generated:
    """What `generate` made.

    ids           (B, T + new): prompts, on the left padded with 0 to the longest, and what follows; after its end, a row's end token again
    sequences     per row, the new tokens without repetition, the end token included
    stop_reason   per row: "eos" or "length"
    infos         per row, a TokenInfo per new token, where asked for
    n_slides      how often the window of a row was full and generation went on with its last half
    """

    ids: np.ndarray
    sequences: list[np.ndarray]
    stop_reason: list[str]
    infos: list[list[TokenInfo]] = field(default_factory=list)
    n_slides: int = 0


def generate(
    model: Any, ids: Any, max_new_tokens: int, *, attention_mask: Any = None, temperature: float = 0.8, top_k: int = 50, top_p: float = 1.0,
    min_p: float = 0.0, repetition_penalty: float = 1.0, seed: int | Sequence[int] = 0, eos_id: int | Collection[int] | None = None,
    use_cache: bool = True, slide: bool = True, alternatives: int | None = None, on_slide: Callable[[int, int], Any] | None = None,
    n_tokens: int | None = None,
) -> Generated:  # fmt: skip
    """Continues each prompt by up to max_new_tokens tokens, ending a row early at an end token.

    ids              (B, T) integers, or one sequence per prompt, of any lengths
    attention_mask   (B, T), 1 for tokens and 0 for padding on either side, where `ids` is padded
    temperature ... repetition_penalty   see `Sampling`
    seed             one number, or one per row: a row's text depends on its own seed and prompt, not on its neighbours
    eos_id           an end token, or several
    use_cache        False computes the whole window for every token: slower, the same tokens
    slide            past the context, go on with the last half of the window (`window_length`); False: an error
    alternatives     None: no TokenInfo; else log-probabilities, with so many alternatives
    on_slide         called as on_slide(row, n_kept) when a window was full
    n_tokens         only ids below it are drawn: a tokenizer's n_vocab, where the model has more rows than the tokenizer has tokens
    """
    prompts = _prompts(ids, attention_mask)
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    decoding = Decoding(
        model, prompts, max_new_tokens, sampling, seed=seed, eos_id=eos_id, use_cache=use_cache, slide=slide, alternatives=alternatives,
        on_slide=on_slide, n_tokens=n_tokens,
    )  # fmt: skip
    n_prompt = max(map(len, prompts))
    tokens = np.zeros((len(prompts), n_prompt), dtype=np.int64)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[n_prompt - len(prompt) :] = prompt
    columns, running, lengths = [tokens], np.ones(len(prompts), bool), np.zeros(len(prompts), int)
    for new in decoding:
        columns.append(new[:, None])
        lengths += running
        running = ~decoding.done
    all_ids = np.concatenate(columns, axis=1)
    sequences = [row[n_prompt : n_prompt + n] for row, n in zip(all_ids, lengths, strict=True)]
    return Generated(all_ids, sequences, ["eos" if d else "length" for d in decoding.done], decoding.infos, decoding.n_slides)


def _prompts(ids: Any, attention_mask: Any) -> list[list[int]]:
    """One list of ids per prompt, padding removed."""
    if (
        not isinstance(ids, np.ndarray)
        and len(ids)
        and all(isinstance(row, (list, tuple, np.ndarray)) for row in ids)
        and attention_mask is None
    ):
        return [np.asarray(row).tolist() for row in ids]
    tokens = np.asarray(ids)
    if tokens.ndim != 2:
        raise InvalidInput(f"generate: ids of shape {tokens.shape}, expected (batch, positions); wrap one prompt as [ids]")
    if attention_mask is None:
        return [row.tolist() for row in tokens]
    real = np.asarray(attention_mask).astype(bool)
    if real.shape != tokens.shape:
        raise InvalidInput(f"generate: attention_mask of shape {real.shape}, expected {tokens.shape}, that of ids; one entry per token")
    return [row[kept].tolist() for row, kept in zip(tokens, real, strict=True)]
