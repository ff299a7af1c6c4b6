"""A model's score on a task: prompts from items, log-probabilities or generated answers from the model, right or wrong from these."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tinygpt.data.tokenizer import Tokenizer
from tinygpt.evaluation.continuations import Request, Score, encode_pair, score
from tinygpt.evaluation.items import Item, Task, with_shots
from tinygpt.evaluation.statistics import Interval, centered, interval
from tinygpt.finetuning.scoring import bleu, exact_match, token_f1
from tinygpt.inference.likelihood import log_likelihood
from tinygpt.inference.sampling import Sampling
from tinygpt.inference.text import complete_all, prompt_ids
from tinygpt.models.protocols import Decodable

Values = dict[str, float]
"""What an item scored, by metric; the first is the one that the table shows."""

_TOGETHER = 64  # items between two reports of progress
MAIN = {"choice": "per_token", "schema": "sum", "next": "greedy", "text": "bits_per_byte"}
"""The metric that the table shows, by kind; of answers their task says it."""


@dataclass
class Result:
    """What a task gave.

    values    by item number; see `Values`
    n_cut     items whose context lost its start
    answers   generated ones, by item number
    """

    task: Task
    n_shots: int
    values: dict[int, Values] = field(default_factory=dict)
    n_cut: int = 0
    answers: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def metric(self) -> str:
        return MAIN.get(self.task.kind, "f1" if self.task.metric == "f1" else "exact_match")

    def column(self, metric: str = "") -> np.ndarray:
        """One metric of all items, in their order; by default the main one."""
        return np.array([self.values[i][metric or self.metric] for i in sorted(self.values)])

    def groups(self) -> np.ndarray:
        return np.array([self.task.items[i].group for i in sorted(self.values)])

    def interval(self, metric: str = "") -> Interval:
        """The mean of a metric over the items, with its 95 % interval."""
        return interval(self.column(metric), self.groups())

    def centered(self) -> float:
        """The main score, 0 for guessing and 1 for perfect."""
        return centered(float(self.column().mean()), self.task.chance)


Done = Callable[[int, Values, str], None]
"""Is told of each item that is finished: its number, what it scored, and a generated answer, if there is one."""


def evaluate(
    model: Decodable, tokenizer: Tokenizer, task: Task, *, n_shots: int = 0, seed: int = 0, done: Mapping[int, Values] | None = None,
    finished: Done = lambda number, values, answer: None, change: Callable[[Item], Item] = lambda item: item,
) -> Result:  # fmt: skip
    """Scores all items of a task but those that are `done`, whose values are taken over.

    n_shots   solved examples in front of each item, drawn by seed and item
    change    what to ask instead of an item: a control, such as `corrupted`
    Raises ValueError as `encode_pair`, `score` and `with_shots` do, naming task and item.
    """
    result = Result(task, n_shots, dict(done or {}))
    left = [number for number in range(len(task.items)) if number not in result.values]
    by_kind = {"answer": _answers, "text": _texts}.get(task.kind, _choices)
    for start in range(0, len(left), _TOGETHER):
        numbers = left[start : start + _TOGETHER]
        items = [change(with_shots(task, number, n_shots, seed)) for number in numbers]
        for number, values in zip(numbers, by_kind(model, tokenizer, items, result, numbers), strict=True):
            result.values[number] = values
            finished(number, values, result.answers.get(number, ""))
    return result


def _choices(model: Decodable, tokenizer: Tokenizer, items: Sequence[Item], result: Result, numbers: Sequence[int]) -> list[Values]:
    """Items whose continuations' log-probabilities decide."""
    requests: list[Request] = []
    owner: list[int] = []
    for i, item in enumerate(items):
        pairs = [encode_pair(tokenizer, context, option) for context in item.contexts for option in item.options]
        by_context: dict[tuple[int, ...], list[list[int]]] = {}
        for context, option in pairs:  # the end of a context may depend on what follows
            by_context.setdefault(tuple(context), []).append(option)
        if item.kind == "schema" or len(by_context) > 1:
            by_context = {}
            requests += [Request(context, [option]) for context, option in pairs]
            owner += [i] * len(pairs)
        for ids, options in by_context.items():
            requests.append(Request(ids, options))
            owner.append(i)
    found: list[list[Score]] = [[] for _ in items]
    for i, scores in zip(owner, score(model, requests), strict=True):
        found[i] += scores
    result.n_cut += sum(any(each.n_cut for each in scores) for scores in found)
    return [_judged(item, scores) for item, scores in zip(items, found, strict=True)]


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


def _answers(model: Decodable, tokenizer: Tokenizer, items: Sequence[Item], result: Result, numbers: Sequence[int]) -> list[Values]:
    task = result.task
    room = max(1, model.config.n_positions - task.max_new_tokens)
    prompts = [prompt_ids(tokenizer, item.contexts[0]) for item in items]
    result.n_cut += sum(len(ids) > room for ids in prompts)
    prompts = [ids[-room:] for ids in prompts]
    texts = complete_all(model, tokenizer, prompts, task.max_new_tokens, Sampling(temperature=0), stop=task.stop)
    values = []
    for number, item, text in zip(numbers, items, texts, strict=True):
        given = result.answers[number] = _picked(task.metric, text.text)
        values.append(
            {
                "exact_match": max(float(exact_match(given, right)) for right in item.options),
                "f1": max(token_f1(given, right) for right in item.options),
            }
        )
    return values


def _picked(metric: str, answer: str) -> str:
    """The answer, or with a regular expression as metric its last match: the first group, where it has one, without commas in numbers."""
    if metric in ("exact_match", "f1", "bleu"):
        return answer.strip()
    matches = list(re.finditer(metric, answer))
    found = (matches[-1][1] if matches[-1].re.groups else matches[-1][0]) if matches else ""
    return re.sub(r"(?<=\d),(?=\d)", "", found)


def _texts(model: Decodable, tokenizer: Tokenizer, items: Sequence[Item], result: Result, numbers: Sequence[int]) -> list[Values]:
    """Likelihoods, in windows that overlap by half: see `token_nats`."""
    found = [log_likelihood(model, tokenizer, item.options[0]) for item in items]
    return [
        {"bits_per_byte": each.bits_per_byte, "nats_per_token": each.nats_per_token, "n_tokens": each.n_tokens, "n_bytes": each.n_bytes}
        for each in found
    ]


def corpus_bleu(result: Result) -> float:
    """BLEU of all generated answers together. Raises ImportError, naming the extra, without sacrebleu."""
    numbers = sorted(result.answers)
    return bleu([result.answers[i] for i in numbers], [result.task.items[i].options[0] for i in numbers])
