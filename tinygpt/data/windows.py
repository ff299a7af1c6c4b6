"""From token ids to batches: windows over a stream of tokens, in an order that the seed decides.

All of it lives on the host in NumPy; the ops move a batch to the device.
"""

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tinygpt.errors import InvalidInput
from tinygpt.storage.durable import replace_file

if TYPE_CHECKING:
    from tinygpt.data.tokenizer import Tokenizer

IGNORED = -100  # the target of a position that does not count: padding, or a prompt that is only to be read


def count_targets(batch: Sequence[np.ndarray]) -> int:
    """How many targets of a batch (ids, targets, ...) count in the loss: those that are not IGNORED."""
    return int(np.count_nonzero(batch[1] != IGNORED))


class Windows:
    """Windows of a token stream: inputs and the same shifted by one as targets.

    tokens    (N,) integers, an array or a memory map
    context   tokens per window (T)
    stride    distance between the starts of neighbouring windows; context: no overlap, 1: every position
    Raises ValueError if the stream is shorter than one window, naming both lengths.
    """

    def __init__(self, tokens: np.ndarray, context: int, stride: int | None = None) -> None:
        stride = stride or context
        if context < 1 or stride < 1:
            raise InvalidInput(f"Windows: context {context}, stride {stride}, expected both >= 1; stride = context means no overlap")
        if len(tokens) < context + 1:
            rule = f"expected at least {context + 1} (a context of {context} and the token after it)"
            fix = f"take more text or a context of at most {max(len(tokens) - 1, 0)}"
            raise InvalidInput(f"Windows: a corpus of {len(tokens)} tokens, {rule}; {fix}")
        self.tokens, self.context, self.stride = tokens, context, stride

    def __len__(self) -> int:
        return (len(self.tokens) - self.context - 1) // self.stride + 1

    def batch(self, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets, each (B, T) int64, of the windows numbered `which` (B,)."""
        places = np.asarray(which)[:, None] * self.stride + np.arange(self.context + 1)
        rows = self.tokens[places].astype(np.int64)
        return rows[:, :-1], rows[:, 1:]


class BatchOrder:
    """Which windows make up which batch: a pure function of (seed, epoch, position), so that training can resume at any position.

    n_items      windows there are
    shuffle      a new random order each epoch, else first to last
    drop_last    leave out a last batch that is not full
    lengths      (n_items,) tokens of each item, or None: the items of `together` batches in a row, those of one update, are sorted by it,
    together     so that each batch needs less padding while the updates stay as random as they were
    """

    def __init__(
        self, n_items: int, batch_size: int, *, seed: int = 0, shuffle: bool = True, drop_last: bool = True,
        lengths: np.ndarray | None = None, together: int = 1,
    ) -> None:  # fmt: skip
        if batch_size < 1:
            raise InvalidInput(f"BatchOrder: batch size {batch_size}, expected at least 1; it counts windows")
        if drop_last and n_items < batch_size:
            fix = f"lower the micro-batch to {max(n_items, 1)} or less, the context or the stride, or take more text"
            raise InvalidInput(f"BatchOrder: {n_items} windows for a batch of {batch_size} with drop_last, expected at least one; {fix}")
        self.n_items, self.batch_size, self.seed, self.shuffle = n_items, batch_size, seed, shuffle
        self.lengths, self.together = lengths, together
        self.n_batches = n_items // batch_size if drop_last else math.ceil(n_items / batch_size)

    def epoch(self, number: int) -> np.ndarray:
        """The order of all windows in epoch `number`."""
        if not self.shuffle:
            return np.arange(self.n_items)
        order = np.random.default_rng([self.seed, number]).permutation(self.n_items)
        if self.lengths is None or self.together == 1:
            return order
        n = self.together * self.batch_size
        updates = [order[start : start + n] for start in range(0, self.n_items, n)]
        return np.concatenate([items[np.argsort(self.lengths[items], kind="stable")] for items in updates])

    def batches(self, start: int = 0) -> Iterator[np.ndarray]:
        """Batches without end, epoch after epoch, beginning with batch number `start`."""
        epoch, position = divmod(start, self.n_batches)
        while True:
            order = self.epoch(epoch)
            for i in range(position, self.n_batches):
                yield order[i * self.batch_size : (i + 1) * self.batch_size]
            epoch, position = epoch + 1, 0

    def __iter__(self) -> Iterator[np.ndarray]:
        """One epoch."""
        return itertools.islice(self.batches(), self.n_batches)


def encode_documents(texts: Iterable[str], tokenizer: "Tokenizer") -> np.ndarray:
    """All texts as one stream of ids; after each `<|endoftext|>`, where the tokenizer has it, and in front what belongs there. uint16 or
    uint32 (N,)."""
    parts = list(encode_pieces(((text, True) for text in texts), tokenizer))
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint16)


def encode_pieces(pieces: Iterable[tuple[str, bool]], tokenizer: "Tokenizer") -> Iterator[np.ndarray]:
    """The same, part by part, of (piece of text, whether its document ends with it)."""
    begins_document = True
    start = () if tokenizer.cls_id is not None else tokenizer.start  # [CLS] opens windows, not documents: `tinygpt.data.masking`
    for piece, ends_document in pieces if tokenizer.divisible else _joined(pieces):
        ids = tokenizer.encode_array(piece)
        if begins_document and start:
            yield np.array(start, dtype=ids.dtype)
        begins_document = ends_document
        yield ids
        if ends_document and tokenizer.eos_id is not None:
            yield np.array([tokenizer.eos_id], dtype=ids.dtype)


def _joined(pieces: Iterable[tuple[str, bool]]) -> Iterator[tuple[str, bool]]:
    """Each document as one piece."""
    parts: list[str] = []
    for piece, ends_document in pieces:
        parts.append(piece)
        if ends_document:
            yield "".join(parts), True
            parts.clear()
    if parts:
        yield "".join(parts), False


def write_tokens(path: str | Path, parts: Iterable[np.ndarray], n_vocab: int) -> int:
    """Writes ids to a flat binary file, part by part, little-endian uint16 or uint32 by the vocabulary's size; returns their number.

    The file appears when all of it is on the disk. Raises OSError if it cannot be written: nothing is left behind then.
    """
    dtype = token_dtype(n_vocab)
    chunks = (np.ascontiguousarray(part, dtype=dtype).view(np.uint8) for part in parts)
    return replace_file(Path(path), chunks, writer=f"{os.getpid()}-").n_bytes // dtype.itemsize


def read_tokens(path: str | Path, n_vocab: int) -> np.ndarray:
    """A file of ids as a memory map (N,), read from disk as it is used: for corpora larger than memory."""
    dtype, size_bytes = token_dtype(n_vocab), Path(path).stat().st_size
    if size_bytes == 0 or size_bytes % dtype.itemsize:
        rule = f"expected a positive multiple of {dtype.itemsize} ({dtype.name} ids)"
        raise InvalidInput(f"{path}: {size_bytes} bytes, {rule}; was it written for another vocabulary than {n_vocab} tokens?")
    return np.memmap(path, dtype=dtype, mode="r")


def token_dtype(n_vocab: int) -> np.dtype:
    """The smallest of uint16 and uint32 that holds every id."""
    return np.dtype("<u2" if n_vocab <= 65536 else "<u4")


def bigram_nats(
    train: np.ndarray, validation: np.ndarray, n_vocab: int, strengths: Sequence[float] = (1, 3, 10, 30, 100, 300, 1000)
) -> float:
    """The baseline: mean nats per token of `validation` under counts of token pairs in `train`.

    p(b | a) = (count(a b) + k p(b)) / (count(a) + k), with k the best of `strengths` on the validation tokens themselves, which
    favours the baseline; p(b) is the add-one unigram. (N,), (M,) ids -> float.
    Source  MacKay and Peto 1995, A hierarchical Dirichlet language model, section 3.
    """
    a, b = train[:-1].astype(np.int64), train[1:].astype(np.int64)
    unigram = (np.bincount(train, minlength=n_vocab) + 1) / (len(train) + n_vocab)
    followers = np.bincount(a, minlength=n_vocab)
    pairs, counts = np.unique(a * n_vocab + b, return_counts=True)
    va, vb = validation[:-1].astype(np.int64), validation[1:].astype(np.int64)
    wanted = va * n_vocab + vb
    nearest = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    count = np.where(pairs[nearest] == wanted, counts[nearest], 0)
    return min(float(-np.log((count + k * unigram[vb]) / (followers[va] + k)).mean()) for k in strengths)


def pad(sequences: Sequence[Sequence[int] | np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of ids as one array, as long as the longest: ids (B, T) int64, and a mask (B, T) that is True for real tokens. Padding is on
    the right and has id 0; any id would do, because no real token attends to it."""
    lengths = np.array([len(ids) for ids in sequences])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(mask.shape, dtype=np.int64)
    ids[mask] = np.concatenate(sequences)
    return ids, mask
