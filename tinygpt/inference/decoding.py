"""Token ids from a model, one at a time, each chosen from the model's distribution over the next token.

    generate(model, [[1, 2, 3], [4, 5]], 50, temperature=0.8, seed=[0, 1]).sequences   # prompts may differ in length

`DecodingState` holds the rows of tokens and computes the logits of what may follow, with or without a key/value cache; `TokenIterator`
chooses the tokens (sampling.py says how); `generate` collects them. The loop without all this is `generate_plain` in models/gpt.py.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict, Unpack

import numpy as np
from numpy.typing import ArrayLike

import autograd as ag
from autograd import backend, inference, nn
from tinygpt.data.windows import pad
from tinygpt.errors import InvalidInput
from tinygpt.inference.fast import FastDecoder, supports_fast_decoding
from tinygpt.inference.sampling import PerRowRNG, Sampling, log_softmax, sample, top_ids
from tinygpt.models.cache import KVCache
from tinygpt.models.gpt import window_length
from tinygpt.models.protocols import Decodable


class DecodingState:
    """Rows of tokens, and the model's logits for what may follow each. The model is in evaluation mode during the calls of `logits` only.

    prompts          ids per row, of any lengths
    max_new_tokens   the most tokens that a row will get: decides the size of the cache. None: as many as the context holds
    The other options are those of `generate`. Raises ValueError for an empty prompt, and for one beyond the context with slide off.
    """

    def __init__(
        self, model: Decodable, prompts: Sequence[Sequence[int]], *, use_cache: bool = True, slide: bool = True,
        on_slide: Callable[[int, int], None] | None = None, max_new_tokens: int | None = None,
    ) -> None:  # fmt: skip
        self.model, self.slide, self.on_slide, self.n_positions = model, slide, on_slide, model.config.n_positions
        self._evaluating, self.n_slides = nn.evaluating(model), 0  # n_slides: as in `Generated`
        if not len(prompts) or not all(map(len, prompts)):
            raise InvalidInput("generate: an empty prompt, expected at least one token; start with <|endoftext|> for a text from nothing")
        self.rows: list[list[int]] = []
        for row, prompt in enumerate(prompts):
            backend.checked_indices(prompt, model.config.vocab_size, what="generate: prompt id")  # the check; the ids stay on the host
            self.rows.append(np.asarray(prompt).tolist())
            self._check_length(row, len(prompt))
        self.lengths = [window_length(len(ids), self.n_positions) for ids in self.rows]
        self.stale_rows = set(range(len(self.rows)))  # rows of which the cache holds nothing valid
        self.cache: KVCache | None = None
        self.decoder: FastDecoder | None = None
        if use_cache:
            dtype = model.wte.weight.dtype if model.dtype == np.float32 else model.dtype  # that of the activations
            n_slots = None if max_new_tokens is None else max(self.lengths) + max_new_tokens
            self.cache = KVCache(model.config, len(self.rows), dtype, n_slots)
            if supports_fast_decoding(model):
                self.decoder = FastDecoder(model, self.cache, len(self.rows))

    def window(self, row: int) -> list[int]:
        """The tokens of a row that the model reads."""
        return self.rows[row][-self.lengths[row] :]

    def logits(self) -> np.ndarray:
        """(B, V), on the host, for the token after each row. The next call may overwrite the array."""
        if self.decoder is not None and not self.stale_rows:
            return self.decoder.step(*self._last_tokens())
        with self._evaluating, inference.mode():
            if self.cache is None:
                ids, _ = pad([self.window(row) for row in range(len(self.rows))])
                return self._output(self.model.hidden(ids)[np.arange(len(ids)), np.array(self.lengths) - 1])
            if self.stale_rows:
                rows, self.stale_rows = sorted(self.stale_rows), set()
                if len(rows) == len(self.rows) and len(set(self.lengths)) == 1:  # the last position of each is that of the next token
                    ids = np.array([self.window(row) for row in rows])
                    return self._output(self.model.hidden(ids, cache=self.cache.view_for_prefill(rows, ids.shape[1]), last_only=True)[:, 0])
                ids, _ = pad([self.window(row)[:-1] for row in rows])  # all but the last tokens, which the others need a step for, too
                if ids.size:
                    self.model.hidden(ids, cache=self.cache.view_for_prefill(rows, ids.shape[1]), last_only=True)
            last, positions = self._last_tokens()
            if self.decoder is not None:
                return self.decoder.step(last, positions)
            return self._output(self.model.hidden(last[:, None], cache=self.cache.step(positions))[:, 0])

    def append(self, tokens: Sequence[int | None] | np.ndarray) -> None:
        """Adds one token to each row; None leaves the row as it is."""
        for row, token in enumerate(tokens):
            if token is None:
                continue
            ids = self.rows[row]
            ids.append(int(token))
            before, self.lengths[row] = self.lengths[row], window_length(len(ids), self.n_positions)
            if self.lengths[row] <= before:
                self._check_length(row, len(ids))
                self.stale_rows.add(row)

    def reorder(self, rows: Sequence[int]) -> None:
        """Row i becomes a copy of row rows[i]."""
        if self.cache is not None:
            self.cache.reorder(rows, max(self.lengths))
        self.rows = [list(self.rows[row]) for row in rows]
        self.lengths = [self.lengths[row] for row in rows]
        self.stale_rows = {i for i, row in enumerate(rows) if row in self.stale_rows}

    def _check_length(self, row: int, n: int) -> None:
        if n > self.n_positions and not self.slide:
            fix = "shorten the prompt, ask for fewer new tokens, or let the window slide"
            raise InvalidInput(f"generate: {n} tokens, expected at most {self.n_positions}, the model's context; {fix}")
        self.n_slides += n > self.n_positions
        if n > self.n_positions and self.on_slide is not None:
            self.on_slide(row, window_length(n, self.n_positions))

    def _last_tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """The last token of each row, and its position: (B,) each."""
        return np.array([ids[-1] for ids in self.rows]), np.array(self.lengths) - 1

    def _output(self, hidden: ag.Tensor) -> np.ndarray:
        """Logits (B, V) on the host, of hidden (B, C): one position per row."""
        logits: np.ndarray = backend.to_host(ag.cast(self.model.lm_head(hidden), self.model.wte.weight.dtype).data)
        return logits


@dataclass(frozen=True)
class TokenInfo:
    """How likely the model found a token, in nats, before temperature and such; alternatives: (id, log-probability), likeliest first."""

    id: int
    log_prob: float
    alternatives: tuple[tuple[int, float], ...] = ()


class DecodingOptions(TypedDict, total=False):
    """Options of everything that generates; `generate` says what they mean."""

    seed: int | Sequence[int]
    use_cache: bool
    slide: bool
    alternatives: int | None
    on_slide: Callable[[int, int], None] | None
    n_tokens: int | None


class GenerateOptions(DecodingOptions, total=False):
    """All options of `generate`."""

    attention_mask: ArrayLike | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    eos_id: int | Collection[int] | None


class TokenIterator:
    """Iterator over the new tokens, (B,) int64 at a time; a row that has ended repeats its end token.

    done    (B,) booleans: rows that have ended. Set an entry to end a row from outside
    infos   per row, a TokenInfo per token, where asked for
    Ends after max_new_tokens, or when all rows are done. Between two tokens the model is in the caller's mode. Arguments: see `generate`.
    """

    def __init__(
        self, model: Decodable, prompts: Sequence[Sequence[int]], max_new_tokens: int, sampling: Sampling | None = None, *,
        seed: int | Sequence[int] = 0, eos_id: int | Collection[int] | None = None, use_cache: bool = True, slide: bool = True,
        alternatives: int | None = None, on_slide: Callable[[int, int], None] | None = None, n_tokens: int | None = None,
    ) -> None:  # fmt: skip
        if max_new_tokens < 0:
            raise InvalidInput(f"max_new_tokens: {max_new_tokens}, expected >= 0")
        self.max_new_tokens, self.sampling = max_new_tokens, sampling or Sampling()
        self.state = DecodingState(model, prompts, use_cache=use_cache, slide=slide, on_slide=on_slide, max_new_tokens=max_new_tokens)
        n = len(self.state.rows)
        self.done, self._rng, self._ends = np.zeros(n, bool), PerRowRNG(seed, n), end_tokens(eos_id)
        self.infos: list[list[TokenInfo]] = [[] for _ in range(n)]
        self._alternatives, self._n_tokens = alternatives, n_tokens

    def __iter__(self) -> Iterator[np.ndarray]:
        tokens = np.zeros(len(self.done), dtype=np.int64)
        for _ in range(self.max_new_tokens):
            logits = self.state.logits()[:, : self._n_tokens]
            ended = self.done.copy()
            drawn = sample(logits, self.sampling, self._rng, self.state.rows)
            tokens = np.where(ended, tokens, drawn)
            if self._alternatives is not None:
                for row in np.flatnonzero(~ended):
                    log_p, token = log_softmax(logits[row]), int(tokens[row])
                    best = top_ids(logits[row], min(self._alternatives, len(log_p))) if self._alternatives else ()
                    self.infos[row].append(TokenInfo(token, float(log_p[token]), tuple((int(i), float(log_p[i])) for i in best)))
            self.done |= [int(token) in self._ends for token in tokens]
            yield tokens
            if self.done.all():
                return
            self.state.append([None if end else int(token) for end, token in zip(self.done, tokens, strict=True)])


def end_tokens(eos_id: int | Collection[int] | None) -> frozenset[int]:
    """The tokens that end a text, of one, several or none."""
    return frozenset([int(eos_id)] if isinstance(eos_id, (int, np.integer)) else () if eos_id is None else eos_id)


@dataclass(frozen=True)
class Generated:
    """The result of `generate`.

    ids           (B, T + new): prompts, on the left padded with 0 to the longest, and what follows; after its end, a row's end token again
    sequences     per row, the new tokens without repetition, the end token included
    stop_reason   per row: "eos" or "length"
    infos         per row, a TokenInfo per new token, where asked for
    n_slides      how often the window of any row was full and was cut to its last half
    """

    ids: np.ndarray
    sequences: list[np.ndarray]
    stop_reason: list[str]
    infos: list[list[TokenInfo]]
    n_slides: int


def generate(
    model: Decodable, ids: ArrayLike, max_new_tokens: int, *, attention_mask: ArrayLike | None = None, temperature: float = 0.8,
    top_k: int = 50, top_p: float = 1.0, min_p: float = 0.0, repetition_penalty: float = 1.0,
    eos_id: int | Collection[int] | None = None, **options: Unpack[DecodingOptions],
) -> Generated:  # fmt: skip
    """Continues each prompt by up to max_new_tokens tokens, ending a row early at an end token.

    ids              (B, T) integers, or one sequence per prompt, of any lengths
    attention_mask   (B, T), 1 for tokens and 0 for padding on either side, where `ids` is padded
    temperature ... repetition_penalty   see `Sampling`
    eos_id           an end token, or several
    seed             one number, by default 0, or one per row: a row's text depends on its own seed and prompt alone
    use_cache        False computes the full window for every token: slower, the same tokens
    slide            past the context, continue with the last half of the window (`window_length`), as by default; False: an error
    alternatives     None: no TokenInfo; else log-probabilities, with this number of alternatives
    on_slide         called as on_slide(row, n_kept) when a window was full
    n_tokens         only ids below it are drawn: a tokenizer's n_vocab, where the model has more rows than the tokenizer has tokens
    """
    prompts = prompts_of(ids, attention_mask, "generate")
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    iterator = TokenIterator(model, prompts, max_new_tokens, sampling, eos_id=eos_id, **options)
    n_prompt = max(map(len, prompts))
    columns = [np.array([[0] * (n_prompt - len(prompt)) + prompt for prompt in prompts], dtype=np.int64)]
    running, lengths = np.ones(len(prompts), bool), np.zeros(len(prompts), int)
    for new in iterator:
        columns.append(new[:, None])
        lengths += running
        running = ~iterator.done
    all_ids = np.concatenate(columns, axis=1)
    sequences = [row[n_prompt : n_prompt + n] for row, n in zip(all_ids, lengths, strict=True)]
    return Generated(all_ids, sequences, ["eos" if d else "length" for d in iterator.done], iterator.infos, iterator.state.n_slides)


def generate_ids(model: Decodable, ids: ArrayLike, max_new_tokens: int, **options: Unpack[GenerateOptions]) -> np.ndarray:
    """`model.generate`: the prompts ids (B, T) and what follows them, (B, T + new); the arguments are those of `generate`."""
    return generate(model, ids, max_new_tokens, **options).ids


def prompts_of(ids: ArrayLike, attention_mask: ArrayLike | None, what: str) -> list[list[int]]:
    """One list of ids per prompt, padding removed. what: the function, in messages."""
    if attention_mask is None and isinstance(ids, (list, tuple)) and ids and all(isinstance(row, (list, tuple, np.ndarray)) for row in ids):
        return [np.asarray(row).tolist() for row in ids]
    tokens = np.asarray(ids)
    if tokens.ndim != 2:
        raise InvalidInput(f"{what}: ids of shape {tokens.shape}, expected (batch, positions); wrap one prompt as [ids]")
    real = backend.as_mask(np.asarray(np.ones_like(tokens) if attention_mask is None else attention_mask), f"{what}: attention_mask")
    if real.shape != tokens.shape:
        raise InvalidInput(f"{what}: attention_mask of shape {real.shape}, expected {tokens.shape}, that of ids; one entry per token")
    return [row[kept].tolist() for row, kept in zip(tokens, real, strict=True)]
