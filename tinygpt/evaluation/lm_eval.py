"""Our models in EleutherAI's lm-evaluation-harness, which has thousands of tasks: an adapter, and the command's way to call it.

    python -m tinygpt evaluate RUN --harness --tasks hellaswag arc_easy     # fetches their data
    python -m tinygpt evaluate RUN --harness --tasks my_tasks/              # YAML files of your own: no network

Needs the extra `eval`. Log-probabilities, greedy flags and texts are those of the harness's own model for transformers on the same weights. Its
rolling likelihood reads windows that do not overlap, so it is higher than `likelihood` among the tasks of the command, which overlap by half.
"""

from collections.abc import Sequence
from pathlib import Path

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from tinygpt.data.tokenizer import Tokenizer
from tinygpt.errors import InvalidInput, UserError
from tinygpt.evaluation.continuations import Request, score
from tinygpt.fields import Json
from tinygpt.inference.sampling import Sampling
from tinygpt.inference.text import complete_all
from tinygpt.models.protocols import Decodable

_TOGETHER = 16  # texts that are generated at once
_RESAMPLES = 1_000  # of the bootstrap behind the harness's standard errors


class HarnessModel(TemplateLM):  # type: ignore[misc]  # its library has no types
    """A model and its tokenizer as the harness calls them. Raises ValueError for a tokenizer without a token that texts begin or end with."""

    def __init__(self, model: Decodable, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.gpt, self.tokenizer_of_model = model, tokenizer
        self.cut = 0  # prompts and contexts that lost their start
        if tokenizer.eos_id is None:
            rule = "expected one with an end token, which stands where a context is empty; train with --tokenizer bpe"
            raise InvalidInput(f"tokenizer of kind {tokenizer.kind}: no end token, {rule}")

    @property
    def eot_token_id(self) -> int:
        assert self.tokenizer_of_model.eos_id is not None
        return self.tokenizer_of_model.eos_id

    @property
    def prefix_token_id(self) -> int:
        return self.tokenizer_of_model.start[0] if self.tokenizer_of_model.start else self.eot_token_id

    @property
    def max_length(self) -> int:
        return self.gpt.config.n_positions

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Json) -> list[int]:
        """Ids; what the tokenizer puts in front of texts is added once, unless the harness says otherwise."""
        ids = self.tokenizer_of_model.encode(string, allow_special=True)
        return ids if add_special_tokens is False else [*self.tokenizer_of_model.start, *ids]

    def _loglikelihood_tokens(self, requests: Sequence[tuple[Json, list[int], list[int]]], **kwargs: Json) -> list[tuple[float, bool]]:
        """(log-probability, greedy) of each continuation; those of the same context are read together."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for number, (_, context, _) in enumerate(requests):
            groups.setdefault(tuple(context), []).append(number)
        found = score(self.gpt, [Request(context, [requests[i][2] for i in numbers]) for context, numbers in groups.items()])
        answers: dict[int, tuple[float, bool]] = {}
        for numbers, scores in zip(groups.values(), found, strict=True):
            answers |= {number: (each.log_prob, each.greedy) for number, each in zip(numbers, scores, strict=True)}
            self.cut += any(each.n_cut for each in scores)
        return [answers[number] for number in range(len(requests))]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each text, in windows that do not overlap."""
        windows, owner = [], []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1):
                windows.append((None, *make_disjoint_window(window)))
                owner.append(number)
        totals = [0.0] * len(requests)
        for number, (log_p, _) in zip(owner, self._loglikelihood_tokens(windows), strict=True):
            totals[number] += log_p
        return totals

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """The greedy continuation of each prompt, up to one of its stop strings. A prompt too long for the context keeps its end."""
        texts = []
        for start in range(0, len(requests), _TOGETHER):
            part = [request.args for request in requests[start : start + _TOGETHER]]
            for _, options in part:
                if options.get("do_sample") or options.get("temperature"):
                    raise InvalidInput(f"harness: generation with {options}, expected greedy; set do_sample to false in the task")
            stops = [[until] if isinstance(until, str) else list(until or []) for until in (options.get("until") for _, options in part)]
            lengths = [min(int(options.get("max_gen_toks", 256)), self.max_length // 2) for _, options in part]
            for (context, _), stop, n in zip(part, stops, lengths, strict=True):
                ids = self.tok_encode(context) or [self.prefix_token_id]
                self.cut += len(ids) > self.max_length - n
                found = complete_all(
                    self.gpt, self.tokenizer_of_model, [ids[-(self.max_length - n) :]], n, Sampling(temperature=0), stop=stop
                )
                texts.append(found[0].text)
        return texts


def run_harness(model: Decodable, tokenizer: Tokenizer, tasks: Sequence[str], *, n_shots: int = 0, limit: int = 0) -> dict[str, Json]:
    """What `lm_eval.simple_evaluate` returns for these tasks: names, or folders of YAML files, whose tasks are all taken.

    Raises ValueError for an unknown name, a folder without tasks, and for tasks or data that the harness cannot read.
    """
    adapter = HarnessModel(model, tokenizer)
    try:
        manager, names = _known(tasks)
        found: dict[str, Json] = simple_evaluate(
            model=adapter, tasks=names, num_fewshot=n_shots or None, limit=limit or None, task_manager=manager, log_samples=True,
            bootstrap_iters=_RESAMPLES,
        )  # fmt: skip
    except UserError:
        raise
    except (OSError, TypeError, ValueError, KeyError) as error:
        what = " ".join(f"{type(error).__name__} {error}".split())
        rule = "tasks whose YAML files are complete and whose data is here or can be fetched"
        raise InvalidInput(f"--harness: {what}, expected {rule}; check {', '.join(tasks)}") from error
    return found | {"contexts_cut": adapter.cut}


def _known(tasks: Sequence[str]) -> tuple[TaskManager, list[str]]:
    """The harness's tasks, with those of the folders, and the names of those that are asked for."""
    folders = [task for task in tasks if Path(task).is_dir()]
    manager = TaskManager(include_path=folders or None, include_defaults=len(folders) < len(tasks))
    own = {folder: list(TaskManager(include_path=folder, include_defaults=False).all_tasks) for folder in folders}
    for folder, found in own.items():
        if not found:
            raise InvalidInput(f"--harness: {folder} has no task, expected YAML files with `task:` and a name; check the folder")
    names = [name for name in tasks if name not in folders] + [name for found in own.values() for name in found]
    for name in names:
        if name not in manager.all_tasks:
            raise InvalidInput(f"task {name!r}: unknown to the harness, expected one of `lm_eval ls tasks`, or a folder of YAML files")
    return manager, names
