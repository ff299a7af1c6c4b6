"""Limits of the rules, and named sets of them.

    PROFILES["gopher-quality"].min_words                    # 50
    overridden(PROFILES["web"], Limits(min_words=20))       # with limits of one's own

The limits of `gopher-quality`, `gopher-repetition`, `c4` and `fineweb` are those of datatrove's filters, with which FineWeb was made. `PAPERS`
has what the papers say where that differs. `web` is FineWeb's sequence of them; the others are this project's.
"""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

from tinygpt.errors import InvalidInput, did_you_mean
from tinygpt.fields import Json, check_fields


@dataclass(frozen=True)
class Limits:
    """A limit per rule, named as the rule: beyond it a document (of the rules on lines: a line) is removed. Applied from top to bottom.

    None is, in a profile, no such rule, and as a flag the profile's limit. `skip` names rules to leave out.
    Raises ValueError for a limit below 0 or one that is not finite, and for an unknown name in `skip`.
    """

    max_duplicate_paragraphs: float | None = None
    """Share of paragraphs that came before in the document."""
    max_duplicate_paragraph_characters: float | None = None
    """Share of characters in such paragraphs."""
    max_duplicate_lines: float | None = None
    """Share of lines that came before."""
    max_duplicate_line_characters: float | None = None
    """Share of characters in such lines."""
    max_top_2_gram: float | None = None
    """Share of characters in the most frequent pair of words."""
    max_top_3_gram: float | None = None
    """The same for three words."""
    max_top_4_gram: float | None = None
    """The same for four."""
    max_duplicate_5_grams: float | None = None
    """Share of characters in runs of 5 words that came before."""
    max_duplicate_6_grams: float | None = None
    """The same for 6."""
    max_duplicate_7_grams: float | None = None
    """The same for 7."""
    max_duplicate_8_grams: float | None = None
    """The same for 8."""
    max_duplicate_9_grams: float | None = None
    """The same for 9."""
    max_duplicate_10_grams: float | None = None
    """The same for 10."""
    min_words: float | None = None
    """Words that are not only punctuation."""
    max_words: float | None = None
    """The same, at most."""
    min_mean_word: float | None = None
    """Characters of such a word in the mean."""
    max_mean_word: float | None = None
    """The same, at most."""
    max_hashes_per_word: float | None = None
    """Signs # per word; here and below punctuation marks are words."""
    max_ellipses_per_word: float | None = None
    """Ellipses per word."""
    max_bullet_lines: float | None = None
    """Share of lines that begin with a bullet or a hyphen."""
    max_ellipsis_lines: float | None = None
    """Share of lines that end in an ellipsis."""
    min_alphabetic_words: float | None = None
    """Share of words with a letter."""
    min_stop_words: float | None = None
    """How many of the, be, to, of, and, that, have, with occur."""
    max_line_word: float | None = None
    """Characters of a line's longest word; longer: the line is removed."""
    drop_citations: bool | None = None
    """Remove marks like [1], [edit] and [citation needed]."""
    drop_unpunctuated_lines: bool | None = None
    """Remove lines that do not end in . ? ! or a quote."""
    min_line_words: float | None = None
    """Words of a line; fewer: the line is removed."""
    max_lorem_ipsum: float | None = None
    """Lines with "lorem ipsum"."""
    drop_javascript_lines: bool | None = None
    """Remove lines that name JavaScript."""
    max_curly_brackets: float | None = None
    """Signs {."""
    drop_policy_lines: bool | None = None
    """Remove lines about cookies, privacy policy and terms of use."""
    min_sentences: float | None = None
    """Sentences in the lines that are left."""
    min_punctuated_lines: float | None = None
    """Share of lines that end with a mark that ends sentences."""
    max_short_lines: float | None = None
    """Share of lines of at most 30 characters."""
    max_repeated_line_characters: float | None = None
    """Share of characters in lines that came before."""
    max_newlines_per_word: float | None = None
    """Line ends per word."""
    max_line_characters: float | None = None
    """Characters of the longest line."""
    max_mean_line_characters: float | None = None
    """Characters of a line in the mean."""
    min_alphanumeric_characters: float | None = None
    """Share of characters that are letters or digits."""
    skip: tuple[str, ...] = ()
    """Rules of the profile to leave out, by name."""

    def __post_init__(self) -> None:
        check_fields(self, {0: " ".join(RULES)})
        for name in self.skip:
            if name.replace("-", "_") not in RULES:
                raise InvalidInput(f"skip: {name!r}, expected rules, by the names of their limits; {did_you_mean(name, RULES)}")

    def in_effect(self) -> dict[str, float]:
        """The limits of the rules that there are, in order. A rule that only changes text has the limit 0."""
        skipped = {name.replace("-", "_") for name in self.skip}
        limits = {name: getattr(self, name) for name in RULES if name not in skipped}
        return {name: 0 if limit is True else limit for name, limit in limits.items() if limit is not None and limit is not False}


RULES = tuple(f.name for f in dataclasses.fields(Limits) if f.name != "skip")
C4_RULES = RULES[RULES.index("max_line_word") : RULES.index("min_sentences") + 1]  # they look at lines, one after the other


def overridden(profile: Limits, own: Limits) -> Limits:
    """A profile with the limits of one's own that are not None, and without the rules to skip."""
    return dataclasses.replace(profile, **{name: value for name, value in dataclasses.asdict(own).items() if value not in (None, ())})


_REPETITION: dict[str, Json] = {
    "max_duplicate_paragraphs": 0.3, "max_duplicate_paragraph_characters": 0.2, "max_duplicate_lines": 0.3, "max_duplicate_line_characters": 0.2,
    "max_top_2_gram": 0.2, "max_top_3_gram": 0.18, "max_top_4_gram": 0.16,
    "max_duplicate_5_grams": 0.15, "max_duplicate_6_grams": 0.14, "max_duplicate_7_grams": 0.13,
    "max_duplicate_8_grams": 0.12, "max_duplicate_9_grams": 0.11, "max_duplicate_10_grams": 0.1,
}  # fmt: skip
_QUALITY: dict[str, Json] = {
    "min_words": 50, "max_words": 100_000, "min_mean_word": 3, "max_mean_word": 10, "max_hashes_per_word": 0.1, "max_ellipses_per_word": 0.1,
    "max_bullet_lines": 0.9, "max_ellipsis_lines": 0.3, "min_alphabetic_words": 0.8, "min_stop_words": 2,
}  # fmt: skip
_C4: dict[str, Json] = {
    "max_line_word": 1000, "drop_citations": True, "min_line_words": 3, "max_lorem_ipsum": 0, "drop_javascript_lines": True,
    "max_curly_brackets": 0, "drop_policy_lines": True, "min_sentences": 5,
}  # fmt: skip
_FINEWEB: dict[str, Json] = {
    "min_punctuated_lines": 0.12,
    "max_short_lines": 0.67,
    "max_repeated_line_characters": 0.01,
    "max_newlines_per_word": 0.3,
}
# Those of `code` and `docs` leave the default corpus and Python's library nearly as they are: docs/curation.md has the shares. Code's lengths
# of lines are those of Chen et al. 2021, arXiv:2107.03374, section 3.1, who also leave out files with few letters and digits.
_REPEATED_LINES: dict[str, Json] = {
    "max_duplicate_lines": 0.5,
    "max_duplicate_line_characters": 0.5,
    "max_duplicate_5_grams": 0.35,
    "max_duplicate_10_grams": 0.35,
}
_LINE_LENGTHS: dict[str, Json] = {"max_line_characters": 1000, "max_mean_line_characters": 100, "min_alphanumeric_characters": 0.25}
_DOCS: dict[str, Json] = {
    "min_words": 5, "max_words": 100_000, "min_mean_word": 2, "max_mean_word": 10, "max_hashes_per_word": 0.1, "max_ellipses_per_word": 0.1,
    "min_alphabetic_words": 0.2, "min_stop_words": 1, "min_alphanumeric_characters": 0.25,
}  # fmt: skip

PROFILES = {
    "gopher-quality": Limits(**_QUALITY),
    "gopher-repetition": Limits(**_REPETITION),
    "c4": Limits(**_C4, drop_unpunctuated_lines=True),
    "fineweb": Limits(**_FINEWEB),
    "web": Limits(**_REPETITION, **_QUALITY, **_C4, **_FINEWEB),  # FineWeb keeps lines without a mark at the end: section 3.5
    "prose": Limits(**_REPETITION, **_QUALITY),
    "code": Limits(**_REPEATED_LINES, min_words=5, max_mean_word=12, **_LINE_LENGTHS),
    "docs": Limits(**_REPEATED_LINES, **_DOCS),
}


class Difference(NamedTuple):
    """What a paper has where the published code has another limit or another definition."""

    profile: str
    rule: str
    paper: str


PAPERS = (
    Difference("gopher-quality", "max_bullet_lines", "a bullet only: the code takes a hyphen for one"),
    Difference("gopher-repetition", "max_duplicate_10_grams", "characters of all occurrences: the code leaves the first one out"),
    Difference("c4", "min_line_words", "3 in the paper, 5 in C4's own code"),
    Difference("c4", "min_sentences", "5 in the paper, 3 in C4's own code"),
    Difference("c4", "drop_unpunctuated_lines", "an end quote is a double one: the code takes a single one, too"),
    Difference("c4", "max_line_word", "not in the paper, but in C4's own code"),
    Difference("c4", "drop_policy_lines", "not in the paper, but in C4's own code"),
    Difference("c4", "drop_citations", "not in the paper, but in C4's own code"),
    Difference("fineweb", "min_punctuated_lines", "0.12 itself is removed"),
    Difference("fineweb", "max_short_lines", "0.67 itself is removed; lines shorter than 30 characters, without 30 itself"),
    Difference("fineweb", "max_repeated_line_characters", "0.1"),
    Difference("fineweb", "max_newlines_per_word", "not in the paper"),
)
