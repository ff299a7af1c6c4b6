"""C4's rules: they look at a document line by line, remove lines, and remove the document for what a line holds or if too little is left.

Source  Raffel et al. 2020, arXiv:1910.10683, section 2.2; order and word lists as in C4's own code (tensorflow_datasets/text/c4_utils.py) and
datatrove's C4QualityFilter. The list of bad words is left out: neither comes with it.
"""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import regex

from tinygpt.curate.words import sentence_spans

_CITATION = regex.compile(r"\[\d*]|\[edit]|\[citation needed]")
_END_MARKS = (".", "?", "!", '"', "'")


class Lines(NamedTuple):
    """What is left of a document: its text; the rule that removes it, with number and limit, or ""; lines and marks removed, by rule."""

    text: str
    rule: str
    number: float
    limit: float
    counts: Mapping[str, int]


def c4_lines(text: str, limits: Mapping[str, float]) -> Lines:
    """Applies the rules that have a limit, line by line, each line stripped. Without a limit a rule is off."""
    limits = _that_can_matter(text, limits)
    topics = limits.keys() & _TOPICS.keys()
    counts: Counter[str] = Counter()
    totals = dict.fromkeys(("max_lorem_ipsum", "max_curly_brackets"), 0)
    kept, n_sentences, least = [], 0, limits.get("min_sentences", 0)
    for raw in text.splitlines():
        line, rule = raw.strip(), _shape(raw, limits)
        if not rule and "drop_citations" in limits and "[" in line:
            line, n = _CITATION.subn("", line)
            counts["drop_citations"] += n
        rule = rule or _end(line, raw, limits)
        if topics and not rule:
            lower = line.lower()
            rule = next((name for name in _DROPPED if name in topics and _TOPICS[name].search(lower)), "")
            totals["max_lorem_ipsum"] += "lorem ipsum" in lower
            totals["max_curly_brackets"] += line.count("{") if rule != "drop_javascript_lines" else 0  # such a line is gone before
            for name, n in totals.items():
                if n > limits.get(name, n):
                    return Lines(text, name, n, limits[name], counts)
        if rule:
            counts[rule] += bool(line)
            continue
        if n_sentences < least:  # beyond, it does not matter how many
            n_sentences += max(len(sentence_spans(line)), 1)
        kept.append(line)
    if n_sentences < least:
        return Lines(text, "min_sentences", n_sentences, least, counts)
    return Lines("\n".join(kept).strip(), "", 0, 0, {name: n for name, n in counts.items() if n})


_DROPPED = ("drop_javascript_lines", "drop_policy_lines")  # in this order
_TOPICS = {
    "drop_javascript_lines": regex.compile("javascript"),
    "drop_policy_lines": regex.compile("terms of use|(?:privacy|cookie) policy|uses cookies|use (?:of )?cookies"),
    "max_lorem_ipsum": regex.compile("lorem ipsum"),
    "max_curly_brackets": regex.compile("{"),
}  # what the rules look for, in small letters


def _that_can_matter(text: str, limits: Mapping[str, float]) -> Mapping[str, float]:
    """The limits without those of rules that look for what is nowhere in the text: most texts need no look at the words of each line."""
    left = (_CITATION.sub("", text) if "drop_citations" in limits else text).lower()  # removing a mark may join letters
    return {name: limit for name, limit in limits.items() if name not in _TOPICS or _TOPICS[name].search(left)}


def _shape(line: str, limits: Mapping[str, float]) -> str:
    """The rule that removes a line for a word that is too long, or ""."""
    most = limits.get("max_line_word")
    return "max_line_word" if most is not None and len(line) > most and max(map(len, line.split()), default=0) > most else ""


def _end(line: str, raw: str, limits: Mapping[str, float]) -> str:
    """The rule that removes a line for its end or its few words, or "". Words are counted before citations go."""
    if "drop_unpunctuated_lines" in limits and (not line.endswith(_END_MARKS) or line.endswith("...")):
        return "drop_unpunctuated_lines"
    return "min_line_words" if len(raw.split()) < limits.get("min_line_words", 0) else ""
