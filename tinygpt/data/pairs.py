"""Pairs of texts to translate: numbers and dates in words, which need no network, or a user's own files; and their batches.

    pairs = load_pairs("numbers-and-dates", seed=0)                # or load_pairs("pairs.tsv"), load_pairs("corpus.en", "corpus.de")
    tokenizer = train_pair_tokenizer(pairs.train, 512)             # one vocabulary for both languages
    batches = PairBatches(*encode_pairs(pairs.train, tokenizer, 160), pad_id=tokenizer.pad_id)

The numbers are English and German. Their order of words differs: "one hundred and twenty-three" is "einhundertdreiundzwanzig", units before
tens and no space; "Thursday, November the twenty-sixth" is "Donnerstag, der sechsundzwanzigste November".
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np

from tinygpt.data.corpora import user_path
from tinygpt.data.tokenizer import END_OF_TEXT, BPETokenizer, Tokenizer
from tinygpt.data.windows import IGNORED, pad
from tinygpt.errors import InvalidInput, MissingFile, MissingPackage, did_you_mean
from tinygpt.storage.checked_json import read_text

NAMES = ("numbers-and-dates", "numbers")  # the data that is made here
LANGUAGES = ("en", "de")  # its source and target
PADDING = "<|padding|>"
_PAIRS_PER_TOKEN = 8  # that BPE is trained on, evenly spaced: German numbers are words of their own each, which makes it slow

LARGEST = 999_999  # of the numbers
FIRST_DAY, LAST_DAY = date(1900, 1, 1), date(2099, 12, 31)
N_NUMBERS = 30_000  # of training; num2words needs an eighth of a millisecond for each
MOST_NUMBERS = 600_000  # with a tenth as many dates; all are different, and training has nine tenths of LARGEST and of the days
MOST_TESTED = 1_000  # single numbers; there are half as many sentences
MOST_PARTS = 8  # of a sentence
# What stands between the parts of a sentence. A comma comes first: "one hundred and four" is a number.
BETWEEN = ((", ", ", "), (", and ", " und "), (", or ", " oder "), (", then ", ", dann "))

TRAIN, VALIDATION, TEST = range(3)
SHARES = (0.9, 0.05, 0.05)  # of them, for files; of the numbers and days, too


@dataclass(frozen=True)
class Pair:
    """A text and its translation. place: its location for messages, "line 7"; kind: the row of a report in which it counts."""

    place: str
    source: str
    target: str
    kind: str


@dataclass
class Pairs:
    """Pairs from one source, split: no source text of one part is in another.

    source   where they come from, as a sentence for people
    files    what messages call source and target sides: file names
    notes    what was guessed and left out, as sentences
    """

    name: str
    source: str
    files: tuple[str, str]
    train: list[Pair]
    validation: list[Pair]
    test: list[Pair]
    notes: list[str] = field(default_factory=list)


def load_pairs(*names_or_paths: str, seed: int = 0, n_numbers: int = N_NUMBERS) -> Pairs:
    """The pairs that are meant, split by seed.

    names_or_paths   "numbers-and-dates" or "numbers"; a file with a tab between source and target; or two files with a text per line
    n_numbers        of the first two: single numbers to learn from; there are two thirds as many sentences
    Raises ValueError, naming file and line, for an empty side, a line without a tab, files of different length; naming file and byte for
    what is no UTF-8; FileNotFoundError for an unknown name; ImportError, naming the extra, for numbers without num2words and babel.
    """
    if len(names_or_paths) == 1 and names_or_paths[0] in NAMES:
        return _spoken_pairs(names_or_paths[0], seed, n_numbers)
    if len(names_or_paths) not in (1, 2):
        rule = "expected a name, a file of pairs, or two files, source and target"
        raise InvalidInput(f"data: {len(names_or_paths)} names, {rule}; write --data pairs.tsv or --data corpus.en corpus.de")
    paths = [user_path(name) for name in names_or_paths]
    for name, path in zip(names_or_paths, paths, strict=True):
        if not path.is_file():
            fix = did_you_mean(name, NAMES, "check the path")
            raise MissingFile(f"data {name!r}: no such file, expected one of {', '.join(NAMES)}, or a file of pairs; {fix}")
    rows, notes = _two_files(*paths) if len(paths) == 2 else _tab_separated(paths[0])
    pairs = [Pair(place, source, target, _length_range(source)) for place, source, target in rows]
    parts = _split_by_source(pairs, seed)
    shown = " and ".join(names_or_paths)
    return Pairs(names_or_paths[0], f"file{'s' * (len(paths) - 1)} {shown}", (str(paths[0]), str(paths[-1])), *parts, notes)


# Numbers and dates in words ---------------------------------------------------------------------------------------------------------


def speakers(language: str) -> tuple[Callable[[int], str], Callable[[date], str]]:
    """What writes a number, and a date, in words: of "en" or "de".

    num2words has the numbers, babel the names of days and months and their order (the pattern "full" of Unicode's CLDR).
    Raises ImportError, naming the extra, without them.
    """
    try:
        from babel.dates import get_date_format, get_day_names, get_month_names
        from num2words import num2words
    except ImportError as error:
        rule = 'expected them for numbers and dates in words; pip install "tinygpt[translate]", or give your own pairs with --data'
        raise MissingPackage(f"data: num2words or babel is missing, {rule}") from error
    pattern, months = get_date_format("full", locale=language).pattern, get_month_names(locale=language)
    days, article = get_day_names(locale=language), {"en": "the", "de": "der"}[language]

    def number(n: int) -> str:
        return str(num2words(n, lang=language))

    def day(when: date) -> str:
        words = {
            "EEEE": days[when.weekday()], "MMMM": months[when.month], "y": num2words(when.year, lang=language, to="year"),
            "d": f"{article} {num2words(when.day, lang=language, to='ordinal')}",
        }  # fmt: skip
        return re.sub(r"EEEE|MMMM|y|d\.?", lambda found: words[found[0].rstrip(".")], str(pattern))

    return number, day


def held_out(n: int, seed: int) -> np.ndarray:
    """(n,) which part each of n numbers, or days, belongs to: TRAIN, VALIDATION or TEST, drawn by seed."""
    return _deal(n, np.random.default_rng([seed, n]))


def _deal(n: int, rng: np.random.Generator) -> np.ndarray:
    """(n,) parts in random order, as large as SHARES says; with three or more none is empty."""
    n_held = [max(int(share * n), min(1, n // 3)) for share in SHARES[1:]]
    return rng.permutation(np.repeat([TRAIN, VALIDATION, TEST], [n - sum(n_held), *n_held]))


def _spoken_pairs(name: str, seed: int, n_numbers: int) -> Pairs:
    """Single numbers, and for "numbers-and-dates" sentences of one to MOST_PARTS numbers and dates. The split is by number and by day: those
    of a test sentence are in no sentence of training."""
    if not 100 <= n_numbers <= MOST_NUMBERS:
        raise InvalidInput(
            f"numbers: {n_numbers}, expected 100 to {MOST_NUMBERS:,} different ones to learn from; {N_NUMBERS:,} is the default"
        )
    number_and_day = [speakers(language) for language in LANGUAGES]
    part_of_number, part_of_day = held_out(LARGEST + 1, seed), held_out((LAST_DAY - FIRST_DAY).days + 1, seed)
    n_test = min(MOST_TESTED, n_numbers // 10)
    parts: list[list[Pair]] = []
    for part, n in ((TRAIN, n_numbers), (VALIDATION, n_test // 2), (TEST, n_test)):
        rng = np.random.default_rng([seed, part])
        numbers = _draw_numbers(rng, np.flatnonzero(part_of_number == part), n, short=part == TRAIN)
        spoken = [(number_and_day[0][0](k), number_and_day[1][0](k)) for k in numbers]
        pairs = [Pair(f"number {k}", *texts, "single numbers") for k, texts in zip(numbers, spoken, strict=True)]
        if name == NAMES[0]:
            days = rng.choice(np.flatnonzero(part_of_day == part), n // 10 if part == TRAIN else n // 2, replace=False)
            dates = [FIRST_DAY + timedelta(int(i)) for i in days]
            spoken_dates = [(number_and_day[0][1](when), number_and_day[1][1](when)) for when in dates]
            pairs += _sentences(rng, spoken, spoken_dates, 2 * n // 3 if part == TRAIN else n // 2)
        parts.append(pairs)
    what = "numbers and dates" if name == NAMES[0] else "numbers"
    return Pairs(
        name, f"{what} in English and German words, from num2words and babel", (name, name), parts[TRAIN], parts[VALIDATION], parts[TEST]
    )


def _draw_numbers(rng: np.random.Generator, among: np.ndarray, n: int, *, short: bool) -> list[int]:
    """n different numbers of `among`; evenly: nine in ten have six digits. With `short`, so that the others are learned as well,
    up to a third are drawn below 10, 100, ..., 100,000."""
    if not short:
        return [int(k) for k in rng.choice(among, n, replace=False)]
    below = np.searchsorted(among, 10 ** rng.integers(1, 6, n // 3))  # how many numbers of `among` each may be
    few = np.unique(among[(rng.random(n // 3) * below).astype(int)])
    rest = rng.choice(np.setdiff1d(among, few, assume_unique=True), n - len(few), replace=False)
    return [int(k) for k in rng.permutation(np.concatenate([few, rest]))]


def _sentences(rng: np.random.Generator, numbers: Sequence[tuple[str, str]], dates: Sequence[tuple[str, str]], n: int) -> list[Pair]:
    """n sentences, as many of each number of parts. A quarter of the parts are dates, and the only part is one."""
    sentences = []
    for i in range(n):
        n_parts = i % MOST_PARTS + 1
        source = target = ""
        for k in range(n_parts):
            known = dates if n_parts == 1 or rng.random() < 0.25 else numbers
            texts, between = known[int(rng.integers(len(known)))], BETWEEN[int(rng.integers(len(BETWEEN)))] if k else ("", "")
            source, target = source + between[0] + texts[0], target + between[1] + texts[1]
        sentences.append(Pair(f"sentence {i + 1}", source, target, f"sentences of {n_parts}" if k else "single dates"))
    return sentences


# A user's files ---------------------------------------------------------------------------------------------------------------------

_Rows = list[tuple[str, str, str]]  # (place, source, target)


def _lines(path: Path) -> list[str]:
    """The lines of a text file, without the empty ones at its end."""
    try:
        text = read_text(path)
    except InvalidInput as error:
        fix = f"or convert it: iconv -f ISO-8859-1 -t UTF-8 {path} > new.txt (if it is Latin-1)"
        raise InvalidInput(f"{error}; {fix}") from None
    lines = text.split("\n")  # and at nothing else: other separators stand within texts
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise InvalidInput(f"{path}: empty, expected lines of text; check that it is the file that you mean")
    return lines


def _tab_separated(path: Path) -> tuple[_Rows, list[str]]:
    """Source, tab, target, and further columns that do not count, as manythings.org/anki has them; or Tatoeba's own four columns, in which
    a number stands before each text."""
    rows, lines = [], _lines(path)
    numbered = [cells[::2] for cells in (line.split("\t") for line in lines) if len(cells) == 4]
    with_ids = len(numbered) == len(lines) and all(cell.strip().isdecimal() for cells in numbered for cell in cells)
    for i, line in enumerate(lines, start=1):
        cells = line.split("\t")
        if len(cells) < 2:
            rule = "expected one between source and target"
            raise InvalidInput(f"{path}: line {i}: no tab, {rule}; two files with a text per line are --data corpus.en corpus.de")
        sides = cells[1::2] if with_ids else cells[:2]
        rows.append((f"line {i}", *_checked((path, path), i, sides)))
    more = max(line.count("\t") for line in lines) - 1
    if with_ids:
        return rows, ["columns 2 and 4 taken, as the others are Tatoeba's numbers"]
    return rows, [f"the first two columns taken, {more} more left out"] if more else []


def _two_files(source: Path, target: Path) -> tuple[_Rows, list[str]]:
    """A text per line in each file, as the translation system Moses has them: line 7 of one is the translation of line 7 of the other."""
    sides = _lines(source), _lines(target)
    if len(sides[0]) != len(sides[1]):
        counts = f"{source}: {len(sides[0]):,} lines, {target}: {len(sides[1]):,}"
        rule = f"expected as many: line {min(map(len, sides)) + 1} has no translation"
        raise InvalidInput(f"{counts}, {rule}; remove it, or look for the line from which on they differ")
    return [(f"line {i}", *_checked((source, target), i, texts)) for i, texts in enumerate(zip(*sides, strict=True), start=1)], []


def _checked(paths: tuple[Path, Path], line: int, texts: Sequence[str]) -> tuple[str, str]:
    """Source and target without white space around them. Raises ValueError if one is empty."""
    source, target = (text.strip() for text in texts)
    for side, path, text in (("source", paths[0], source), ("target", paths[1], target)):
        if not text:
            raise InvalidInput(
                f"{path}: line {line}: empty {side}, expected text on both sides; remove the line{'s' * (paths[0] != paths[1])}"
            )
    return source, target


def _split_by_source(pairs: Sequence[Pair], seed: int) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """Training, validation and test pairs. Pairs with the same source (but for case and white space) stay together."""
    keys = [" ".join(pair.source.casefold().split()) for pair in pairs]
    sources = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    if len(sources) < 3:
        raise InvalidInput(
            f"data: {len(sources)} different source texts, expected at least 3, for training, validation and test; give more"
        )
    part_of = _deal(len(sources), np.random.default_rng(seed))
    train, validation, test = (
        [pair for pair, key in zip(pairs, keys, strict=True) if part_of[sources[key]] == part] for part in (TRAIN, VALIDATION, TEST)
    )
    return train, validation, test


def _length_range(source: str, edges: Sequence[int] = (0, 5, 10, 20, 40, 80)) -> str:
    n = len(source.split())
    return next((f"{low + 1} to {high} words" for low, high in pairwise(edges) if n <= high), f"more than {edges[-1]} words")


# Token ids and batches --------------------------------------------------------------------------------------------------------------


def train_pair_tokenizer(pairs: Sequence[Pair], vocab_size: int) -> BPETokenizer:
    """Byte-level BPE of at most vocab_size tokens, trained on both sides together, END_OF_TEXT and PADDING included: source and target share an
    embedding.  Source  Vaswani et al. 2017, arXiv:1706.03762, section 5.1"""
    some = pairs[:: max(1, len(pairs) // (_PAIRS_PER_TOKEN * vocab_size))]
    learned = BPETokenizer.train((text for pair in some for text in (pair.source, pair.target)), vocab_size - 1)
    n = learned.n_vocab - 1
    ids = {learned.token_bytes(id): id for id in range(n)}
    tokenizer = BPETokenizer(learned.merges, ids=ids, special={END_OF_TEXT: n, PADDING: n + 1})
    tokenizer.set_roles({"eos_token": END_OF_TEXT, "pad_token": PADDING})
    return tokenizer


def encode_pairs(
    pairs: Sequence[Pair], tokenizer: Tokenizer, n_positions: int, *, files: tuple[str, str] = ("source", "target"), leave_out_long: bool = False,
) -> tuple[list[np.ndarray], list[np.ndarray], list[Pair]]:  # fmt: skip
    """Ids of sources and of targets, each with the end token, and the pairs that they belong to.

    files            what messages call the two sides, `Pairs.files`
    leave_out_long   leave out pairs with a side longer than n_positions; otherwise that is a ValueError that names file and line
    """
    end = tokenizer.eos_id
    assert end is not None, "characters have no end token"
    kept: list[tuple[np.ndarray, np.ndarray, Pair]] = []
    for pair in pairs:
        source, target = (np.array([*tokenizer.encode(text), end], dtype=tokenizer.dtype) for text in (pair.source, pair.target))
        long = max(len(source), len(target)) > n_positions
        if long and not leave_out_long:
            which = int(len(source) <= n_positions)
            found = f"{files[which]}: {pair.place}: {('source', 'target')[which]} of {len((source, target)[which])} tokens"
            fix = "shorten it, raise --n-positions, or leave such pairs out with --leave-out-long"
            raise InvalidInput(f"{found}, expected at most {n_positions}, the model's context; {fix}")
        if not long:
            kept.append((source, target, pair))
    if pairs and not kept:
        raise InvalidInput(f"{files[0]}: no pair within {n_positions} tokens, the model's context, expected some; raise --n-positions")
    return [row[0] for row in kept], [row[1] for row in kept], [row[2] for row in kept]


class PairBatches:
    """Pairs by index, padded to the longest of the batch: `tinygpt.models.protocols.Batches` for an encoder-decoder.

    sources, targets   ids of each, the end token included
    lengths            (N,) tokens of both sides together
    """

    def __init__(self, sources: Sequence[np.ndarray], targets: Sequence[np.ndarray], pad_id: int) -> None:
        self.sources, self.targets, self.pad_id = sources, targets, pad_id
        self.lengths = np.array([len(source) + len(target) for source, target in zip(sources, targets, strict=True)])

    def __len__(self) -> int:
        return len(self.sources)

    def batch(self, which: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(source ids (B, S), targets (B, T), IGNORED after the end token, mask (B, S), True for real source tokens): the arguments of
        `Seq2Seq.loss`."""
        ids, mask = pad([self.sources[i] for i in which])
        targets, real = pad([self.targets[i] for i in which])
        return np.where(mask, ids, self.pad_id), np.where(real, targets, IGNORED), mask
