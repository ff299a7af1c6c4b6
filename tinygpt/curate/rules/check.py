"""Rules on a text: the first that removes it, with its number and its limit."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

from tinygpt.curate.documents import Document, Outcome
from tinygpt.curate.rules.c4 import c4_lines
from tinygpt.curate.rules.limits import C4_RULES, PROFILES, Limits, overridden
from tinygpt.curate.rules.measures import AT_MOST, MEASURES, Text
from tinygpt.errors import InvalidInput, did_you_mean
from tinygpt.fields import Json

Profile = Literal["gopher-quality", "gopher-repetition", "c4", "fineweb", "web", "prose", "code", "docs"]
assert set(get_args(Profile)) == PROFILES.keys()


class Verdict(NamedTuple):
    """What rules make of a text.

    text     what is left of it: rules on lines remove some
    rule     the rule that removes it, "" if none does; `number` is beyond `limit` (min_...: below it, max_...: above it)
    counts   lines and marks removed, by rule
    """

    text: str
    rule: str = ""
    number: float = 0.0
    limit: float = 0.0
    counts: Mapping[str, int] = {}


@lru_cache
def _in_order(limits: Limits) -> tuple[tuple[tuple[str, float], ...], dict[str, float], tuple[tuple[str, float], ...]]:
    """Rules before those on lines, those on lines, and rules after them, with their limits."""
    found = limits.in_effect()
    names = [name for name in found if name not in C4_RULES]
    first = [name for name in names if list(MEASURES).index(name) < list(MEASURES).index("min_punctuated_lines")]
    on_lines = {name: limit for name, limit in found.items() if name in C4_RULES}
    return tuple((n, found[n]) for n in first), on_lines, tuple((n, found[n]) for n in names if n not in first)


def check(text: str, limits: Limits) -> Verdict:
    """The verdict on a text. One of white space only is removed by the rule "empty", before the others and after those on lines."""
    before, on_lines, after = _in_order(limits)
    if not text.strip():
        return Verdict(text, "empty", 0, 1)
    t = Text(text)
    if broken := _first_broken(t, before):
        return Verdict(text, *broken)
    counts: Mapping[str, int] = {}
    if on_lines:
        left, rule, number, limit, counts = c4_lines(text, on_lines)
        if rule:
            return Verdict(text, rule, number, limit, counts)
        if not left:
            return Verdict(text, "empty", 0, 1, counts)
        t = t if left == text else Text(left)
    return Verdict(t.text, *(_first_broken(t, after) or ("", 0.0, 0.0)), counts)


def _first_broken(t: Text, rules: tuple[tuple[str, float], ...]) -> tuple[str, float, float] | None:
    for name, limit in rules:
        if name in AT_MOST and AT_MOST[name](t) <= limit:
            continue
        number = MEASURES[name](t)
        if number < limit if name.startswith("min_") else number > limit:
            return name, float(number), float(limit)
    return None


@dataclass(frozen=True)
class Rules:
    """Step: a profile's rules, with limits of one's own. Raises ValueError for an unknown profile."""

    profile: Profile = "web"
    own: Limits = field(default_factory=Limits)
    name: str = "rules"

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            known = ", ".join(PROFILES)
            raise InvalidInput(f"rules: profile {self.profile!r}, expected one of {known}; {did_you_mean(self.profile, PROFILES)}")

    @property
    def limits(self) -> Limits:
        return overridden(PROFILES[self.profile], self.own)

    def settings(self) -> dict[str, Json]:
        """Profile and limits in effect, without those of rules that are off."""
        return {"profile": self.profile, **self.limits.in_effect()}

    def __call__(self, document: Document) -> Outcome:
        verdict = check(document.text, self.limits)
        kept = document if verdict.text == document.text else dataclasses.replace(document, text=verdict.text)
        return Outcome(None if verdict.rule else kept, verdict.rule, verdict.number, verdict.limit, verdict.counts)
