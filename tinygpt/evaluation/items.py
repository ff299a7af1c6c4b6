"""What a task asks: its items, by kind, and how an item becomes a prompt.

The kinds are those of CORE (Li et al. 2024, DataComp-LM, arXiv:2406.11794, appendix G): options after a context, contexts before an ending,
words that must come next, an answer that is generated; and texts whose likelihood counts.
"""

import dataclasses
import hashlib
import json
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from tinygpt.errors import InvalidInput

Kind = Literal["choice", "schema", "next", "answer", "text"]
SEPARATOR = "\n\n"  # between solved examples
LETTERS = string.ascii_uppercase


@dataclass(frozen=True)
class Item:
    """One question.

    kind      choice: which of `options` follows the one context; schema: after which of `contexts` the one option fits; next: the option must
              be the greedy continuation; answer: a generated answer is compared with `options`, all of them right; text: the option's likelihood
    contexts  what comes before; for a schema several
    options   what may follow, its separating white space included
    right     the number of the right option, or of the right context
    group     equal for items from the same document
    passage   the part of contexts or options that has to be read, for the control that shuffles its words; empty: there is none
    shown     of a choice whose context lists the options under letters, as `lettered` does, and whose `options` are these letters: their texts
    """

    kind: Kind
    contexts: tuple[str, ...]
    options: tuple[str, ...]
    right: int = 0
    group: int = 0
    passage: str = ""
    shown: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        several = {"choice": len(self.options), "schema": len(self.contexts)}.get(self.kind)
        if several is not None and (several < 2 or not 0 <= self.right < several):
            raise InvalidInput(f"{self.kind}: answer {self.right} of {several}, expected one of at least 2, counted from 0")
        if several is not None and len(set(self.options if self.kind == "choice" else self.contexts)) < several:
            raise InvalidInput(f"{self.kind}: an option twice, expected different ones; drop the item")
        if not self.options or not self.contexts:
            raise InvalidInput(f"{self.kind}: {len(self.contexts)} contexts and {len(self.options)} options, expected at least one of each")

    @property
    def solved(self) -> str:
        """The item with its right answer, as a solved example shows it."""
        context = self.contexts[self.right if self.kind == "schema" else 0]
        return context + self.options[self.right if self.kind == "choice" else 0]

    @property
    def chance(self) -> float:
        """The score of a guess."""
        return {"choice": 1 / len(self.options), "schema": 1 / len(self.contexts)}.get(self.kind, 0.0)


@dataclass(frozen=True)
class Task:
    """Items of one kind, and others from which solved examples are drawn, never scored.

    what   in a few words, for the table
    source where it comes from, as a sentence
    metric of "answer" items: exact_match, f1, bleu, or a regular expression whose last match is compared
    """

    name: str
    items: Sequence[Item]
    examples: Sequence[Item] = ()
    what: str = ""
    source: str = ""
    metric: str = "exact_match"
    stop: tuple[str, ...] = ("\n",)
    max_new_tokens: int = 32
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        kinds = {item.kind for item in self.items}
        if len(kinds) != 1:
            raise InvalidInput(f"task {self.name}: items of {len(kinds)} kinds, expected at least one item, and one kind")

    @property
    def kind(self) -> Kind:
        return self.items[0].kind

    @property
    def chance(self) -> float:
        """The mean score of guesses."""
        return float(np.mean([item.chance for item in self.items]))

    def fingerprint(self) -> str:
        """sha256, in hex, of items, examples and how answers are asked for: equal ones mean equal questions."""
        rows = [dataclasses.astuple(item) for part in (self.items, self.examples) for item in part]
        asked = [self.metric, self.stop, self.max_new_tokens, rows]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    def limited(self, n: int, seed: int = 0) -> "Task":
        """n of the items, drawn by seed; all of them where n is 0, or not smaller than their number."""
        if not n or n >= len(self.items):
            return self
        drawn = np.sort(np.random.default_rng([seed, len(self.items)]).permutation(len(self.items))[:n])
        return dataclasses.replace(self, items=[self.items[i] for i in drawn])


def with_shots(task: Task, number: int, n_shots: int, seed: int = 0) -> Item:
    """Item `number` of a task with n_shots solved examples in front of each context, drawn by (seed, number) from the task's examples.

    Raises ValueError where there are not as many examples.
    """
    item = task.items[number]
    if not n_shots:
        return item
    if n_shots > len(task.examples):
        rule = f"at most {len(task.examples)}, the solved examples that the task keeps apart from its items"
        raise InvalidInput(f"task {task.name}: {n_shots} shots, expected {rule}; of a file's rows that is a tenth, at most 64")
    drawn = np.random.default_rng([seed, number]).permutation(len(task.examples))[:n_shots]
    shown = "".join(task.examples[i].solved + SEPARATOR for i in drawn)
    return dataclasses.replace(item, contexts=tuple(shown + context for context in item.contexts))


def corrupted(item: Item, seed: int = 0) -> Item:
    """The item with the words of its passage in another order: a model that reads the passage gets worse, one that does not keeps its score."""
    words = item.passage.split()
    if len(words) < 2:
        return item
    rng, shuffled = np.random.default_rng([seed, len(item.passage), len(words)]), item.passage
    while shuffled.split() == words and len(set(words)) > 1:
        shuffled = " ".join(rng.permutation(words).tolist())
    contexts, options = (tuple(text.replace(item.passage, shuffled) for text in texts) for texts in (item.contexts, item.options))
    return dataclasses.replace(item, contexts=contexts, options=options, passage=shuffled)


def permuted(item: Item, seed: int = 0) -> Item:
    """A choice with its options in another order."""
    if item.kind != "choice":
        return item
    order = np.random.default_rng([seed, len(item.options), len(item.contexts[0])]).permutation(len(item.options)).tolist()
    if item.shown:  # the letters stay
        moved = tuple(item.shown[i] for i in order)
        context = item.contexts[0].replace(lettered(item.shown), lettered(moved))
        return dataclasses.replace(item, contexts=(context,), right=order.index(item.right), shown=moved)
    return dataclasses.replace(item, options=tuple(item.options[i] for i in order), right=order.index(item.right))


def lettered(options: Sequence[str]) -> str:
    """Options as a list, a line each: A. one, B. two."""
    return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
