"""A model's score on a task: prompts from items, log-probabilities or generated answers from the model, right or wrong from these."""

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tinygpt.data.tokenizer import Tokenizer
from tinygpt.errors import InvalidInput
from tinygpt.evaluation.continuations import Request, Score, encode_pair, score
from tinygpt.evaluation.items import Item, Task, with_shots
from tinygpt.evaluation.statistics import Interval, bootstrap, centered, difference, interval
from tinygpt.finetuning.scoring import bleu_counts, bleu_of, exact_match, token_f1
from tinygpt.inference.likelihood import log_likelihood
from tinygpt.inference.sampling import Sampling
from tinygpt.inference.text import complete_all, prompt_ids
from tinygpt.models.protocols import Decodable

Values = dict[str, float]
"""What an item scored, by metric; the first is the one that the table shows."""

_TOGETHER = 64  # items that are finished, and kept, together
MAIN = {"choice": "per_token", "schema": "sum", "next": "greedy", "text": "bits_per_byte"}
"""The metric that the table shows, by kind; of answers their task says it."""
SCORED = {
    "choice": {"per_token", "per_character", "sum"}, "schema": {"sum"}, "next": {"greedy", "log_prob"}, "answer": {"exact_match", "f1"},
    "text": {"bits_per_byte", "nats_per_token", "n_tokens", "n_bytes"},
}  # fmt: skip
"""What each item scores, by kind."""
_WEIGHTS = {"bits_per_byte": "n_bytes", "nats_per_token": "n_tokens"}  # of all texts together, not the mean of each one's


class Kept(NamedTuple):
    """What is kept of an item: what it scored, a generated answer if there is one, and whether the model could not read all of it."""

    values: Values
    answer: str = ""
    cut: bool = False


@dataclass
class Result:
    """What a task gave.

    values    by item number; see `Values`
    cut       numbers of the items whose context lost its start, or a continuation its end
    answers   generated ones, by item number
    n_new     tokens of a generated answer, at most: half of the model's context where the task asks for more; 0: as the task says
    """

    task: Task
    n_shots: int
    values: dict[int, Values] = field(default_factory=dict)
    cut: set[int] = field(default_factory=set)
    answers: dict[int, str] = field(default_factory=dict)
    n_new: int = 0
    seconds: float = 0.0

    def add(self, number: int, kept: Kept) -> None:
        self.values[number] = kept.values
        if kept.cut:
            self.cut.add(number)
        if self.task.kind == "answer":
            self.answers[number] = kept.answer

    @property
    def n_cut(self) -> int:
        return len(self.cut)

    @property
    def metric(self) -> str:
        """The main metric. BLEU is 0 to 100, shares are 0 to 1."""
        return MAIN.get(self.task.kind, self.task.metric if self.task.metric in ("f1", "bleu") else "exact_match")

    def column(self, metric: str = "", among: Sequence[int] | None = None) -> np.ndarray:
        """One metric of all items, or of those `among` them, in their order; by default the main one. BLEU has none: see `interval`."""
        return np.array([self.values[i][metric or self.metric] for i in (sorted(self.values) if among is None else among)])

    def groups(self, among: Sequence[int] | None = None) -> np.ndarray:
        return np.array([self.task.items[i].group for i in (sorted(self.values) if among is None else among)])

    def interval(self, metric: str = "", among: Sequence[int] | None = None) -> Interval:
        """A metric of the items, or of those `among` them, with its 95 % interval: a mean, or of texts and BLEU that of all of them together."""
        metric = metric or self.metric
        if metric == "bleu":
            return bootstrap(self._bleu(among), _bleus, self.groups(among))
        return interval(self.column(metric, among), self.groups(among), weights=self._weights(metric, among))

    def _weights(self, metric: str, among: Sequence[int] | None) -> np.ndarray | None:
        return self.column(_WEIGHTS[metric], among) if metric in _WEIGHTS else None

    def _bleu(self, among: Sequence[int] | None) -> np.ndarray:
        numbers = sorted(self.values) if among is None else among
        rights = [[right.strip() for right in self.task.items[i].options] for i in numbers]
        return bleu_counts([self.answers[i] for i in numbers], rights)

    def minus(self, other: "Result") -> Interval:
        """The main score minus another model's on the same items, with its interval. Raises ValueError for other items."""
        if self.metric == "bleu":
            rows = np.concatenate([self._bleu(None), other._bleu(None)], axis=1)
            return bootstrap(rows, lambda sums: _bleus(sums[:, :10]) - _bleus(sums[:, 10:]), self.groups())
        return difference(self.column(), other.column(), self.groups(), self._weights(self.metric, None))

    def centered(self) -> float:
        """The main score, 0 for guessing and 1 for perfect."""
        return centered(float(self.column().mean()), self.task.chance)

    def every_metric(self) -> Values:
        """All metrics, of texts perplexity, too, and the numbers of tokens and bytes. BLEU only where it was asked for."""
        names = [name for name in next(iter(self.values.values())) if not name.startswith("n_")]
        found = {name: float(np.average(self.column(name), weights=self._weights(name, None))) for name in names}
        if self.task.kind == "text":
            found |= {"perplexity": math.exp(found["nats_per_token"])}
            found |= {name: float(self.column(name).sum()) for name in ("n_tokens", "n_bytes")}
        return found | ({"bleu": self.interval().mean} if self.metric == "bleu" else {})


def _bleus(counts: np.ndarray) -> np.ndarray:
    return np.array([bleu_of(row) for row in counts])


Done = Callable[[int, Kept], None]
"""Is told of each item that is finished: its number, and what to keep of it."""


def evaluate(
    model: Decodable, tokenizer: Tokenizer, task: Task, *, n_shots: int = 0, seed: int = 0, done: Mapping[int, Kept] | None = None,
    finished: Done = lambda number, kept: None, change: Callable[[Item], Item] = lambda item: item,
    progress: Callable[[float], None] = lambda n: None,
) -> Result:  # fmt: skip
    """Scores all items of a task but those that are `done`, which are taken over.

    n_shots    solved examples in front of each item, drawn by seed and item
    change     what to ask instead of an item: a control, such as `corrupted`
    progress   is told how many items are finished, those in work counted by their finished part
    Raises ValueError as `encode_pair`, `score` and `with_shots` do, naming task and item.
    """
    result = Result(task, n_shots, n_new=_n_new(model, task))
    for number, kept in (done or {}).items():
        result.add(number, kept)
    left = [number for number in range(len(task.items)) if number not in result.values]
    by_kind = {"answer": _answers, "text": _texts}.get(task.kind, _choices)
    together = 1 if task.kind == "text" else _TOGETHER
    for start in range(0, len(left), together):
        numbers = left[start : start + together]
        items = {number: change(with_shots(task, number, n_shots, seed)) for number in numbers}
        n_before = len(result.values)

        def part(share: float, n_before: int = n_before, n: int = len(numbers)) -> None:
            progress(n_before + share * n)

        for number, kept in zip(numbers, by_kind(model, tokenizer, task, items, part), strict=True):
            result.add(number, kept)
            finished(number, kept)
        progress(len(result.values))
    return result


@contextlib.contextmanager
def _named(task: Task, number: int) -> Iterator[None]:
    """Errors of an item name it."""
    try:
        yield
    except InvalidInput as error:
        raise InvalidInput(f"task {task.name}, item {number}: {error}") from error


def _choices(model: Decodable, tokenizer: Tokenizer, task: Task, items: Mapping[int, Item], part: Callable[[float], None]) -> list[Kept]:
    """Items whose continuations' log-probabilities decide."""
    requests: list[Request] = []
    owner: list[int] = []
    for number, item in items.items():
        with _named(task, number):
            pairs = [encode_pair(tokenizer, context, option) for context in item.contexts for option in item.options]
        by_context: dict[tuple[int, ...], list[list[int]]] = {}
        for context, option in pairs:  # the end of a context may depend on what follows
            by_context.setdefault(tuple(context), []).append(option)
        if item.kind == "schema" or len(by_context) > 1:
            by_context = {}
            requests += [Request(context, [option]) for context, option in pairs]
            owner += [number] * len(pairs)
        for ids, options in by_context.items():
            requests.append(Request(ids, options))
            owner.append(number)
    found: dict[int, list[Score]] = {number: [] for number in items}
    for number, scores in zip(owner, score(model, requests, lambda n: part(n / len(requests))), strict=True):
        found[number] += scores
    return [Kept(_judged(items[number], scores), cut=any(each.n_cut for each in scores)) for number, scores in found.items()]


def _judged(item: Item, scores: Sequence[Score]) -> Values:
    """Right (1) or wrong (0) by each rule. Options differ in length, so choices are compared per token, per character and as they are."""
    log_p = np.array([each.log_prob for each in scores])
    if item.kind == "next":
        return {"greedy": float(scores[0].greedy), "log_prob": scores[0].log_prob}
    values = {"sum": float(log_p.argmax() == item.right)}
    if item.kind == "choice":
        values = {
            "per_token": float((log_p / [each.n_tokens for each in scores]).argmax() == item.right),
            "per_character": float((log_p / [max(len(option.strip()), 1) for option in item.options]).argmax() == item.right),
        } | values
    return values


def _n_new(model: Decodable, task: Task) -> int:
    """Tokens of a generated answer, at most: a prompt has at least half of the context, as in the adapter of the harness."""
    return max(1, min(task.max_new_tokens, model.config.n_positions // 2))


def _answers(model: Decodable, tokenizer: Tokenizer, task: Task, items: Mapping[int, Item], part: Callable[[float], None]) -> list[Kept]:
    """Generated, greedily; a prompt that leaves no room for the answer loses its start."""
    n_new = _n_new(model, task)
    room = max(1, model.config.n_positions - n_new)
    prompts = []
    for number, item in items.items():
        prompts.append(prompt_ids(tokenizer, item.contexts[0]))
        if not prompts[-1]:
            rule = f"expected at least one; a tokenizer of kind {tokenizer.kind} has no token to start with, so give the item a prompt"
            raise InvalidInput(f"task {task.name}, item {number}: a prompt without a token, {rule}")
    texts = complete_all(model, tokenizer, [ids[-room:] for ids in prompts], n_new, Sampling(temperature=0), stop=task.stop)
    found = []
    for ids, item, text in zip(prompts, items.values(), texts, strict=True):
        given = _picked(task.metric, text.text)
        values = {
            "exact_match": max(float(exact_match(given, right)) for right in item.options),
            "f1": max(token_f1(given, right) for right in item.options),
        }
        found.append(Kept(values, given, len(ids) > room))
    return found


METRICS = ("exact_match", "f1", "bleu")


def _picked(metric: str, answer: str) -> str:
    """The answer, or with a regular expression as metric its last match: the first group that has one, without commas in numbers."""
    if metric in METRICS:
        return answer.strip()
    found = ""
    for match in re.finditer(metric, answer):
        found = next((group for group in match.groups() if group is not None), match[0])
    return re.sub(r"(?<=\d),(?=\d)", "", found.strip())


def _texts(model: Decodable, tokenizer: Tokenizer, task: Task, items: Mapping[int, Item], part: Callable[[float], None]) -> list[Kept]:
    """Likelihoods, in windows that overlap by half: see `token_nats`."""
    kept = []
    for number, item in items.items():
        with _named(task, number):
            each = log_likelihood(model, tokenizer, item.options[0])
        measured = {"bits_per_byte": each.bits_per_byte, "nats_per_token": each.nats_per_token}
        kept.append(Kept(measured | {"n_tokens": each.n_tokens, "n_bytes": each.n_bytes}))
    return kept
