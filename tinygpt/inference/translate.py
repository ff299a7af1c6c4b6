"""Targets from an encoder-decoder, greedy or by beam search, and what the decoder looked at.

    model.translate([[5, 6, 7], [8, 9]], 50)                     # greedy: the new tokens of each source's target
    search(model, [[5, 6, 7]], 50, n_beams=4)[0][0].ids          # the best of the first source's beams

Each source is encoded once, and every decoder block's keys and values of it are computed once; `TargetState` keeps those of the targets, too.
The loop without all this is `translate_plain` in models/seq2seq.py.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import TypedDict, Unpack

import numpy as np
from numpy.typing import ArrayLike

import autograd as ag
from autograd import Array, backend, inference, nn
from tinygpt.data.windows import pad
from tinygpt.errors import InvalidInput
from tinygpt.inference.beam import Beam, Beams, EarlyStopping
from tinygpt.inference.decoding import prompts_of
from tinygpt.inference.sampling import log_softmax
from tinygpt.models.cache import KVCache
from tinygpt.models.seq2seq import Seq2Seq, Source, shifted_right

Mask = ArrayLike | None


class TargetState:
    """Targets as far as they are written, each of a source, and the model's logits for what follows. All are of one length.

    sources     ids per source, of any lengths
    n_copies    rows of targets per source, next to each other
    use_cache   False: the decoder reads all of the targets again at each step; slower, the same logits
    """

    def __init__(
        self, model: Seq2Seq, sources: Sequence[Sequence[int]], n_copies: int, max_new_tokens: int, use_cache: bool = True
    ) -> None:
        self.model, self._evaluating = model, nn.evaluating(model)
        ids, mask = pad(sources)
        with self._evaluating, inference.mode(), nn.weights_in(model, model.dtype):
            source = model.encode(ids, None if mask.all() else mask)
            self.source = of_rows(model.with_keys(source), np.repeat(np.arange(len(ids)), n_copies))
        self.targets = np.full((len(ids) * n_copies, 1), model.config.start_id)
        self.cache: KVCache | None = None
        if use_cache:
            shape = dataclasses.replace(model.config.blocks(decoder=True), n_positions=max(max_new_tokens, 1))
            self.cache = KVCache(shape, len(self.targets), self.source.hidden.dtype)

    def logits(self) -> np.ndarray:
        """(rows, V), on the host, float32, for the token after each target."""
        n_rows, length = self.targets.shape
        with self._evaluating, inference.mode(), nn.weights_in(self.model, self.model.dtype):
            if self.cache is None:
                hidden = self.model.decode(self.targets, self.source)[:, -1]
            else:
                view = self.cache.step(np.full(n_rows, length - 1))
                hidden = self.model.decode(self.targets[:, -1:], self.source, view)[:, 0]
            logits: np.ndarray = backend.to_host(ag.cast(self.model.lm_head(hidden), "float32").data)
            return logits

    def extend(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Row i becomes row rows[i] with tokens[i] behind it. Where there are fewer than before, those left out are dropped."""
        n_written = self.targets.shape[1]
        if len(rows) == len(self.targets):
            if self.cache is not None:
                self.cache.reorder(rows, n_written)
        else:
            index = np.asarray(rows)
            self.source = of_rows(self.source, index)
            if self.cache is not None:
                self.cache.keys, self.cache.values = (a[:, backend.to_device(index)] for a in (self.cache.keys, self.cache.values))
        self.targets = np.concatenate([self.targets[list(rows)], np.asarray(tokens)[:, None]], axis=1)


def of_rows(source: Source, rows: np.ndarray) -> Source:
    """The source with row i a copy of its row rows[i]."""
    index = backend.to_device(rows)

    def take(x: ag.Tensor) -> ag.Tensor:
        return ag.Tensor(x.data[index])

    cross = None if source.cross is None else tuple((take(k), take(v)) for k, v in source.cross)
    return Source(take(source.hidden), None if source.mask is None else source.mask[index], cross)


def search(
    model: Seq2Seq, source_ids: ArrayLike, max_new_tokens: int | None = None, *, attention_mask: Mask = None, n_beams: int = 1,
    length_penalty: float = 1.0, early_stopping: EarlyStopping = False, banned_ids: Collection[int] | None = None,
    n_tokens: int | None = None, batch_size: int = 32, use_cache: bool = True,
) -> list[list[Beam]]:  # fmt: skip
    """Per source, the targets that a search with n_beams open ends finds, best first; with one beam it is greedy.

    source_ids       (B, S) integers, or one sequence per source, of any lengths
    max_new_tokens   the most that a target gets, its end token included; default: n_positions
    attention_mask   (B, S), 1 for tokens and 0 for padding on either side, where source_ids is padded
    length_penalty, early_stopping   see `Beams`; the scores are comparable within a source
    banned_ids       ids that are never chosen; default: the config's. Of the rest the log-probabilities stay as they are
    n_tokens         only ids below it are chosen: a tokenizer's n_vocab, where the model has more rows than that
    batch_size       sources that are searched for at once, those of similar length together
    The config's forced_first_id and forced_last_id are chosen whatever their logits, at no cost. Results are those of transformers'
    `generate` with num_beams, max_new_tokens, length_penalty, early_stopping, bad_words_ids and the forced tokens.
    Raises ValueError for no source, an empty one or one longer than the context, ids out of range, and more new tokens than positions.
    """
    config = model.config
    most = config.n_positions if max_new_tokens is None else max_new_tokens
    if most < 0 or (most > config.n_positions and config.positions != "relative"):
        rule = f"expected 0 to {config.n_positions}, the model's n_positions"
        raise InvalidInput(f"translate: max_new_tokens {most}, {rule}; ask for fewer new tokens")
    if batch_size < 1:
        raise InvalidInput(f"translate: batch_size {batch_size}, expected at least 1")
    sources = prompts_of(source_ids, attention_mask, "translate")
    for row, ids in enumerate(sources):
        if not ids:
            raise InvalidInput(f"translate: source {row} is empty, expected at least one token; leave empty sources out")
        backend.checked_indices(ids, config.vocab_size, what="translate: source id")
    banned = set(config.banned_ids if banned_ids is None else banned_ids) - {config.eos_id}
    rules = Rules(config.eos_id, most, sorted(banned), n_tokens, config.forced_first_id, config.forced_last_id)
    found: list[list[Beam]] = [[] for _ in sources]
    by_length = np.argsort([len(ids) for ids in sources], kind="stable").tolist()
    for start in range(0, len(sources), batch_size):
        which = by_length[start : start + batch_size]
        beams = [Beams(n_beams, (config.eos_id,), most, length_penalty=length_penalty, early_stopping=early_stopping) for _ in which]
        state = TargetState(model, [sources[i] for i in which], n_beams, most, use_cache)
        _run(state, beams, rules)
        for i, one in zip(which, beams, strict=True):
            found[i] = one.finished
    return found


@dataclasses.dataclass(frozen=True)
class Rules:
    """Which tokens may be chosen, and when; see `search`."""

    eos_id: int
    max_new_tokens: int
    banned: list[int]
    n_tokens: int | None
    first: int | None
    last: int | None

    def log_probs(self, logits: np.ndarray, n_written: int) -> np.ndarray:
        """(rows, V) from logits (rows, V), for the token after n_written new ones."""
        log_p = log_softmax(logits)
        log_p[:, self.banned] = -np.inf
        if self.n_tokens is not None:
            log_p[:, self.n_tokens :] = -np.inf
        forced = self.last if n_written == self.max_new_tokens - 1 and self.last is not None else self.first if n_written == 0 else None
        if forced is not None:
            log_p[...] = -np.inf
            log_p[:, forced] = 0
        return log_p


def _run(state: TargetState, beams: Sequence[Beams], rules: Rules) -> None:
    """Extends the beams of all sources, one step at a time, until all are done; those of a source that is done leave the batch."""
    running, n_written = [one for one in beams if not one.done], 0
    while running:
        log_p = rules.log_probs(state.logits(), n_written).reshape(len(running), running[0].n, -1)
        rows: list[int] = []
        tokens: list[int] = []
        for i, one in enumerate(running):
            own_rows, own_tokens = one.extend(log_p[i])
            if not one.done:
                rows += [i * one.n + row for row in own_rows]
                tokens += own_tokens
        running, n_written = [one for one in running if not one.done], n_written + 1
        if running:
            state.extend(rows, tokens)


class TranslateOptions(TypedDict, total=False):
    """Options of `translate`; `search` says what they mean."""

    attention_mask: Mask
    n_beams: int
    length_penalty: float
    early_stopping: EarlyStopping
    banned_ids: Collection[int] | None
    n_tokens: int | None
    batch_size: int
    use_cache: bool


def translate(
    model: Seq2Seq, source_ids: ArrayLike, max_new_tokens: int | None = None, **options: Unpack[TranslateOptions]
) -> list[list[int]]:
    """`model.translate`: the new tokens of each source's best target, end token included; the arguments are those of `search`."""
    return [beams[0].ids if beams else [] for beams in search(model, source_ids, max_new_tokens, **options)]


def cross_attention(model: Seq2Seq, source_ids: ArrayLike, targets: ArrayLike, attention_mask: Mask = None) -> np.ndarray:
    """What the decoder looks at: (B, layers, H, T, S) weights of cross-attention, each row with the sum 1.

    source_ids (B, S), targets (B, T) and attention_mask are those of `Seq2Seq.loss`: row t belongs to the step that predicts target t.
    """
    found: list[np.ndarray] = []
    blocks, config = model.decoder.h, model.config
    scale = config.attention_scale or config.channels_per_head**-0.5

    def seen(attend: Callable[..., ag.Tensor]) -> Callable[..., ag.Tensor]:
        def attend_and_see(q: ag.Tensor, k: ag.Tensor, v: ag.Tensor, mask: Array | None, **options: Array) -> ag.Tensor:
            scores = ag.cast(q @ k.transpose(0, 1, 3, 2), "float32") * scale  # (B, H, T, S)
            found.append(backend.to_host(ag.softmax(scores if mask is None else ag.where(mask, scores, -np.inf)).data))
            return attend(q, k, v, mask, **options)

        return attend_and_see

    kept = [block.cross.attend for block in blocks]
    try:
        for block in blocks:
            block.cross.attend = seen(block.cross.attend)
        with nn.evaluating(model), ag.no_grad(), nn.weights_in(model, model.dtype):
            model.decode(shifted_right(targets, config.start_id, config.pad_id), model.encode(source_ids, attention_mask))
    finally:
        for block, attend in zip(blocks, kept, strict=True):
            block.cross.attend = attend
    return np.stack(found, axis=1)
