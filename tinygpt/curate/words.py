"""Words and sentences, as the rules count them.

    words("It costs 3,000.5 dollars, doesn't it?")      # ["It", "costs", "3,000.5", "dollars", ",", "doesn't", "it", "?"]
    sentences("Dr. Smith left. Why?")                   # ["Dr. Smith left.", "Why?"]

datatrove takes spaCy's words, at ten times the cost of a rule. These split almost as spaCy's do: a punctuation mark is a word of its own. As a
tokenizer for datatrove's own steps (MinHash): `tinygpt.curate.datatrove_words.WORDS`.
"""

import re

import regex

# \w is Unicode's: letters with their marks, digits, underscore. A run of points, hyphens or equals signs is one mark.
_WORD = regex.compile(r"\w++(?:['’]\w++|[.,]\d++)*+|[^\w\s.=-]|\.++|-++|=++")  # noqa: RUF001
# The same words of ASCII, in half the time. Not (?:...)*+: the re of Python 3.11.2 keeps what a failed turn of it has read.
_ASCII_WORD = re.compile(r"\w++(?:'\w++|[.,]\d++)*|[^\w\s.=-]|\.++|-++|=++", re.ASCII)
_ABBREVIATIONS = r"Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|cf|No|Fig|Eq|Sec|Ch|Vol|approx|e\.g|i\.e|\p{Lu}"
_END = regex.compile(
    rf"""(?:(?:[.!?…‽]{{2,}}+|[!?…‽]|(?<!(?<!\w)(?:{_ABBREVIATIONS}))\.)["'”’»)\]]*+(?=\s++["'“‘«(\[]*+[^\p{{Ll}}\s])"""  # noqa: RUF001
    r"""|[。！？]++["'”’」』）]*+)\s*+"""  # noqa: RUF001
)


def words(text: str) -> list[str]:
    """Words and punctuation marks, in order: every character that is no white space belongs to one."""
    return (_ASCII_WORD if text.isascii() else _WORD).findall(text)


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of each sentence: they cover the text but for white space at its ends and between them.

    A sentence ends at . ! ? or an ellipsis, with the quotes and brackets that close there, if white space and no small letter follow, and
    at the full stops of Chinese and Japanese. A point after an initial or a usual abbreviation ends none.
    """
    start, spans = len(text) - len(text.lstrip()), []
    last = len(text.rstrip())
    for mark in _END.finditer(text):
        end = mark.start() + len(mark[0].rstrip())
        if start < end < last:
            spans.append((start, end))
            start = mark.end()
    return [*spans, (start, last)] if start < last else spans


def sentences(text: str) -> list[str]:
    """The sentences of a text."""
    return [text[start:end] for start, end in sentence_spans(text)]
