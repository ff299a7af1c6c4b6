"""Encoding faults: text that was decoded wrongly ("don't" as "donâ€™t") is decoded again, control characters go. Needs the extra `curate`.

    Repair()(document).counts       # {"sloppy-windows-1252": 3, "control characters": 1}

The work is ftfy's. What only changes style (curly quotes, ligatures, wide letters, line ends, HTML entities) stays as it is, as in datatrove's
FTFYFormatter but for entities: a text about HTML needs them.
"""

import dataclasses
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import regex

from tinygpt.curate.documents import Document, Outcome
from tinygpt.errors import MissingPackage
from tinygpt.fields import Json

_NAMES = {
    "remove_control_chars": "control characters", "remove_terminal_escapes": "terminal escapes", "fix_surrogates": "surrogates",
    "fix_c1_controls": "control characters", "decode_inconsistent_utf8": "part of a line", "replace_lossy_sequences": "lost characters",
    "restore_byte_a0": "lost spaces",
}  # fmt: skip
_CONTROLS = regex.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f]")  # what ASCII can have to repair


@lru_cache
def _library() -> tuple[Json, Json]:
    """ftfy and its configuration."""
    try:
        import ftfy
    except ImportError as error:
        raise MissingPackage('repair: ftfy is missing, expected it for encoding faults; pip install "tinygpt[curate]"') from error
    off = ("unescape_html", "fix_latin_ligatures", "fix_character_width", "uncurl_quotes", "fix_line_breaks")
    return ftfy, ftfy.TextFixerConfig(normalization=None, **dict.fromkeys(off, False))


def repaired(text: str) -> tuple[str, dict[str, int]]:
    """The text with its faults repaired, line by line, and how many lines had each. A lone surrogate becomes U+FFFD.

    Raises ImportError, naming the extra, without ftfy.
    """
    ftfy, config = _library()
    if text.isascii() and not _CONTROLS.search(text):
        return text, {}
    counts: Counter[str] = Counter()
    lines = text.split("\n")
    for i, line in enumerate(lines):
        if not line.isascii() or _CONTROLS.search(line):
            fixed, steps = ftfy.fix_and_explain(line, config)
            if fixed != line:
                lines[i] = fixed
                counts.update({_kind(action, how) for action, how in steps} - {""} or {"other"})
    return "\n".join(lines), dict(counts)


def _kind(action: str, how: str) -> str:
    """An encoding that text was wrongly decoded from, or what was removed."""
    if action == "encode":
        return how
    return _NAMES.get(how, how) if action in ("apply", "transcode") else ""


@dataclass(frozen=True)
class Repair:
    """Step: encoding faults repaired, counted by kind. Removes no document."""

    name: str = "repair"

    def settings(self) -> dict[str, Json]:
        return {"version": _library()[0].__version__}

    def __call__(self, document: Document) -> Outcome:
        text, counts = repaired(document.text)
        return Outcome(dataclasses.replace(document, text=text) if counts else document, counts=counts)
