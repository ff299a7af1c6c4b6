"""Masked-language-model batches: windows of tokens, some of them hidden, which the model has to name (BERT's pretraining task).

    items = MaskedWindows(tokens, context, tokenizer, seed=0)            # or by="word": whole-word masking
    ids, targets = items.drawn(which, number)                            # masks of micro-batch `number`: other ones in every epoch
    ids, targets = items.batch(which)                                    # the same masks every time: for validation

Source: Devlin et al. 2018, arXiv:1810.04805, section 3.1 and appendix A.1; masks drawn anew each epoch, no sentence pairs, windows that
cross documents: Liu et al. 2019 (RoBERTa), arXiv:1907.11692, sections 4.1 and 4.2; whole words: Devlin's repository, google-research/bert.
"""

from typing import Literal, get_args

import numpy as np

from tinygpt.data.tokenizer import Tokenizer
from tinygpt.data.windows import IGNORED
from tinygpt.errors import InvalidInput

MaskBy = Literal["token", "word"]
RATE = 0.15  # the share of tokens that are chosen, BERT's
AS_BERT = (0.8, 0.1, 0.1)
ALL_MASKED = (1.0, 0.0, 0.0)


class Masking:
    """Which tokens of a row are chosen, and what the model sees of them.

    tokenizer   whose mask token stands for hidden ones; its special tokens are never chosen, and never drawn as replacements
    by          token: any tokens; word: all tokens of words (whole-word masking)
    rate        the share of tokens that are chosen
    shown       of these, the shares shown as the mask token, as another token drawn at random, unchanged

    Of n ordinary tokens, round(rate n) are chosen, and at least one: exactly so many, as in BERT's program. A coin for each token would choose
    as many on average, but each row would have another number of targets, and a short one often none. Words are taken in random order while
    they fit into that number, so it can come out a little smaller; where none fits, one word is taken all the same.
    Raises ValueError for a tokenizer without a mask token, another `by`, a rate outside 0 to 1, and shares that do not add up to 1.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, by: MaskBy = "token", rate: float = RATE, shown: tuple[float, float, float] = AS_BERT
    ) -> None:  # fmt: skip
        if tokenizer.mask_id is None:
            rule = "expected one with a mask token, such as [MASK] or <mask>; take an encoder's, as examples/pretrain_encoder.py makes it"
            raise InvalidInput(f"tokenizer: {tokenizer}, {rule}")
        if by not in get_args(MaskBy):
            raise InvalidInput(f"mask_by: {by!r}, expected {' or '.join(get_args(MaskBy))}; token is BERT's first recipe")
        if not 0 < rate < 1:
            raise InvalidInput(f"mask_rate: {rate}, expected more than 0 and less than 1; BERT's is {RATE}")
        if min(shown) < 0 or abs(sum(shown) - 1) > 1e-9:
            raise InvalidInput(f"shown: {shown}, expected three shares that add up to 1; BERT's are {AS_BERT}")
        self.mask_id, self.rate, self.shown = tokenizer.mask_id, rate, shown
        self.is_ordinary = np.ones(tokenizer.n_vocab, dtype=bool)
        self.is_ordinary[list(tokenizer.special.values())] = False
        self.ordinary = np.flatnonzero(self.is_ordinary)
        self.kinds = kinds_of_characters(tokenizer) if by == "word" else None

    def apply(self, ids: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A row as the model sees it, and its targets: the chosen tokens, IGNORED elsewhere. (T,) -> (T,), (T,). A row without an ordinary token
        has no target."""
        seen, targets = ids.copy(), np.full_like(ids, IGNORED)
        can = np.flatnonzero(self.is_ordinary[ids])
        if not can.size:
            return seen, targets
        n = max(1, round(self.rate * can.size))
        chosen = rng.permutation(can)[:n] if self.kinds is None else self._words(ids, can, n, rng)
        targets[chosen] = ids[chosen]
        others = self.ordinary[rng.integers(self.ordinary.size, size=chosen.size)]
        fate, masked, replaced = rng.random(chosen.size), self.shown[0], self.shown[0] + self.shown[1]
        seen[chosen] = np.where(fate < masked, self.mask_id, np.where(fate < replaced, others, ids[chosen]))
        return seen, targets

    def _words(self, ids: np.ndarray, can: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        """Positions of all tokens of words drawn at random, at most n of them unless no word is as short."""
        assert self.kinds is not None
        words = np.split(can, np.flatnonzero(begins_word(ids, self.kinds)[can][1:]) + 1)
        chosen: list[np.ndarray] = []
        for word in (words[i] for i in rng.permutation(len(words))):
            if word.size <= n:
                chosen.append(word)
                n -= word.size
            if n == 0:
                break
        return np.concatenate(chosen) if chosen else words[rng.integers(len(words))]


class MaskedWindows:
    """Windows of a token stream, each between the tokens [CLS] and [SEP], some of the tokens masked: `tinygpt.models.protocols.DrawnBatches`.

    tokens    (N,) ids of documents one after the other, as `tinygpt.data.windows.encode_documents` gives them; a token after each becomes [SEP]
    context   tokens per window (T), both marks included
    stride    distance between the starts of neighboring windows; by default they do not overlap
    masking   how tokens are chosen
    seed      decides the masks, with the number of the micro-batch and that of the item: a resumed run draws the same ones
    Raises ValueError for a tokenizer without the marks and for a stream shorter than one window.
    """

    def __init__(
        self, tokens: np.ndarray, context: int, tokenizer: Tokenizer, masking: Masking, *, stride: int = 0, seed: int = 0
    ) -> None:  # fmt: skip
        self.body = context - 2
        if tokenizer.cls_id is None or tokenizer.sep_id is None:
            raise InvalidInput(f"MaskedWindows: {tokenizer}, expected a tokenizer with [CLS] and [SEP]; take an encoder's")
        if self.body < 1 or stride < 0:
            raise InvalidInput(f"MaskedWindows: context {context}, stride {stride}, expected at least 3, [CLS], a token and [SEP], and 0")
        if len(tokens) < self.body:
            rule = f"expected at least {self.body} (a context of {context} without [CLS] and [SEP])"
            raise InvalidInput(f"MaskedWindows: a corpus of {len(tokens)} tokens, {rule}; take more text or a smaller context")
        self.tokens, self.masking = tokens, masking
        self.cls_id, self.sep_id, self.eos_id = tokenizer.cls_id, tokenizer.sep_id, tokenizer.eos_id
        self.stride, self.seed = stride or self.body, seed

    def __len__(self) -> int:
        return (len(self.tokens) - self.body) // self.stride + 1

    def rows(self, which: np.ndarray) -> np.ndarray:
        """The windows numbered `which` (B,), without masks: (B, T) int64."""
        which = np.asarray(which)
        rows = np.full((len(which), self.body + 2), self.sep_id, dtype=np.int64)
        rows[:, 0] = self.cls_id
        rows[:, 1:-1] = self.tokens[which[:, None] * self.stride + np.arange(self.body)]
        if self.eos_id is not None:
            rows[rows == self.eos_id] = self.sep_id
        return rows

    def batch(self, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(ids, targets), each (B, T) int64, with masks that depend on the item alone."""
        return self._masked(which, 0)

    def drawn(self, which: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The same with the masks of micro-batch `number`, counted from 0 over all epochs."""
        return self._masked(which, number + 1)

    def _masked(self, which: np.ndarray, draw: int) -> tuple[np.ndarray, np.ndarray]:
        # A generator for each row: its masks do not depend on which rows it shares a batch with.
        pairs = [
            self.masking.apply(row, np.random.default_rng([self.seed, draw, int(item)]))
            for row, item in zip(self.rows(which), which, strict=True)
        ]
        ids, targets = zip(*pairs, strict=True)
        return np.stack(ids), np.stack(targets)


# Kinds of characters, as GPT-2's split pattern has them, and three more: a blank in front of something else, which begins a word; bytes in the
# middle of a character, which continue one; a special token, which is one.
_LETTER, _DIGIT, _SIGN, _WHITE, _BLANK, _INSIDE, _SPECIAL = range(7)


def kinds_of_characters(tokenizer: Tokenizer) -> np.ndarray:
    """(V, 2) int8: the kinds of the first and of the last character of each token."""
    kinds = np.zeros((tokenizer.n_vocab, 2), dtype=np.int8)
    special = set(tokenizer.special.values())
    for id in range(tokenizer.n_vocab):
        token = tokenizer.token_bytes(id)
        text = token.decode("utf-8", "ignore")
        first, last = _kind(text[:1]), _kind(text[-1:])
        if id in special:
            first = last = _SPECIAL
        elif token == b" ":  # alone, because what follows did not join it
            first = last = _BLANK
        elif 0x80 <= token[0] < 0xC0:
            first = _INSIDE
        elif first == _WHITE and text.strip():
            first = _BLANK
        kinds[id] = first, last
    return kinds


def _kind(character: str) -> int:
    """The first byte of a longer character alone, "" here, counts as a letter, which it is most often."""
    return (
        _DIGIT if character.isnumeric() else _WHITE if character.isspace() else _LETTER if not character or character.isalpha() else _SIGN
    )


def begins_word(ids: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """(T,) bool: which tokens of a row begin a word. Byte-level BPE never joins across kinds of characters, so a token continues a word if it
    begins with the kind of character that the token in front of it ends with, or if a blank alone stands in front of it."""
    first, last = kinds[ids, 0], kinds[ids, 1]
    continues = (first[1:] == last[:-1]) | (first[1:] == _INSIDE) | ((last[:-1] == _BLANK) & (first[1:] <= _SIGN))
    continues &= (first[1:] != _BLANK) & (first[1:] != _SPECIAL) & (last[:-1] != _SPECIAL)
    return np.concatenate([[True], ~continues])
