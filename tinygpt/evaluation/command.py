"""How good is a model: scores on tasks, each with what guessing gives and a 95 % interval.

    python -m tinygpt evaluate                         the newest run, on the tasks that need no network
    python -m tinygpt evaluate RUN --tasks section summary --shots 2 --limit 100
    python -m tinygpt evaluate RUN --compare bigram untrained OTHER      each, and the difference item by item
    python -m tinygpt evaluate RUN --task-file arc.jsonl hellaswag.jsonl
    python -m tinygpt evaluate RUN --data mail.csv --label spam          labeled texts: "Is the following text 'spam'?"

Prints a table and writes evaluation.json and evaluation.png into the run's directory, or into --output. What is finished is kept in
evaluation.jsonl: a run that was stopped continues there.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from autograd import backend
from tinygpt.arguments import parse_args
from tinygpt.data.streaming import token_stream
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.errors import InvalidInput, MissingPackage, PathExists
from tinygpt.evaluation.baselines import Bigram, untrained
from tinygpt.evaluation.files import read_task
from tinygpt.evaluation.items import Item, Task, corrupted, permuted
from tinygpt.evaluation.overlap import find_overlap, training_text
from tinygpt.evaluation.record import Record
from tinygpt.evaluation.report import CONTROLS, Evaluated, ItemProgress, difference_table, notes, overlap_table, plot, score_table
from tinygpt.evaluation.scores import evaluate
from tinygpt.evaluation.tasks import TASKS, asked_label, label_task, make_task
from tinygpt.fields import PathName, check_fields
from tinygpt.finetuning.labeled import load_labeled
from tinygpt.finetuning.scoring import bleu
from tinygpt.models.protocols import Decodable
from tinygpt.runs.checkpoint import Checkpoint
from tinygpt.runs.layout import newest_run


@dataclass(frozen=True)
class EvaluateConfig:
    model: Annotated[PathName, tyro.conf.Positional] = ""
    """A run, a checkpoint directory, or a name on the hub; default: the newest run."""
    tasks: tuple[str, ...] = ()
    """Tasks by name; default: all that need no network, unless --task-file or --data is given."""
    task_file: tuple[PathName, ...] = ()
    """Files of items: ARC, HellaSwag, MMLU, PIQA, LAMBADA, SQuAD, GSM8K, TruthfulQA as published, or of a --kind."""
    kind: str = ""
    """What the items of --task-file are, where their fields do not say it."""
    metric: str = ""
    """How generated answers of --task-file are compared: exact_match, f1, bleu, or a regular expression whose last match is the answer."""
    max_new_tokens: int = 0
    """Length of generated answers of --task-file; 0: as the file's form needs it, 32 for plain ones."""
    data: PathName = ""
    """Labeled texts, asked as "Is the following text 'spam'? Answer with 'yes' or 'no'.": sms-spam, or a txt, csv, tsv, json or jsonl file."""
    label: str = ""
    """The label that --data is asked for; default: spam, where there is that."""
    text_column: str = ""
    """Column of the texts of --data; by default guessed and reported."""
    label_column: str = ""
    """Column of the labels of --data; by default guessed and reported."""
    shots: int = 0
    """Solved examples in front of each item."""
    limit: int = 0
    """At most so many items of each task, drawn by --seed; 0: all."""
    seed: int = 0
    """Decides which examples and items are drawn, and the weights of `--compare untrained`."""
    compare: tuple[PathName, ...] = ()
    """Others, scored on the same items: runs or models, `untrained` (this model with fresh weights), `bigram` (counts of its training tokens)."""
    controls: bool = True
    """Also score items whose passage has its words shuffled, and choices in another order; not for those of --compare."""
    overlap: bool = True
    """Look for the items in the run's training text, and score those apart that it holds."""
    harness: bool = False
    """Run the --tasks, names or folders of YAML files, in lm-evaluation-harness: pip install "tinygpt[eval]"."""
    output: PathName = ""
    """Directory of the results; default: that of the run, or the working one."""

    def __post_init__(self) -> None:
        check_fields(self, {0: "shots limit seed max_new_tokens"})


def main(argv: list[str] | None = None) -> None:
    """The command `evaluate`."""
    config = parse_args(EvaluateConfig(), __doc__, argv, prog="python -m tinygpt evaluate")
    if config.harness:
        in_harness(config)
        return
    tasks = [task.limited(config.limit, config.seed) for task in _tasks(config)]
    if config.metric == "bleu":
        bleu(["a word"], ["a word"])  # is it installed?
    checkpoint = Checkpoint.open(config.model or newest_run())
    others = {other.name: other for other in (_other(name, checkpoint, config.seed) for name in dict.fromkeys(config.compare))}
    models = [_opened(checkpoint, config.model), *others.values()]
    output = _output(config, checkpoint)
    print(f"backend  {backend.reason}")
    evaluated = []
    settings = [config, *(dataclasses.replace(config, controls=False) for _ in others)]  # the others have no controls
    n_items = sum(len(task.items) * len(_parts(task, each)) for each in settings for task in tasks)
    with ItemProgress(n_items) as progress:
        for model, each in zip(models, settings, strict=True):
            progress.note(f"model    {model.description}")
            evaluated.append(evaluate_all(model, tasks, each, Record(output / "evaluation.jsonl", model.key), progress))
    rows = evaluated[0]
    if config.overlap:
        print("overlap  looking for the items in the run's training text; --no-overlap leaves that out")
    overlaps, looked = find_overlap([task.items for task in tasks], checkpoint) if config.overlap else ([], "")
    for row, overlap in zip(rows, overlaps, strict=False):
        row.overlap = overlap
    shown = [score_table(rows), notes(rows), overlap_table(rows), looked]
    if len(models) > 1:
        shown.append(difference_table([model.name for model in models], evaluated))
    print("\n" + "\n\n".join(part for part in shown if part))
    _write(models, evaluated, output)


def _output(config: EvaluateConfig, checkpoint: Checkpoint) -> Path:
    """The directory of the results, made if need be. Raises FileExistsError where a file has its name."""
    output = Path(config.output) if config.output else checkpoint.run or Path()
    if taken := [path for path in (output, *output.parents) if path.exists() and not path.is_dir()]:
        raise PathExists(f"--output {output}: {taken[0]} is a file, expected a directory for the results; name another one")
    output.mkdir(parents=True, exist_ok=True)
    return output


def _tasks(config: EvaluateConfig) -> Iterator[Task]:
    for name in dict.fromkeys(config.tasks or (() if config.task_file or config.data else TASKS)):
        yield make_task(name)
    for path in dict.fromkeys(config.task_file):
        yield read_task(path, config.kind, metric=config.metric, max_new_tokens=config.max_new_tokens)
    if (config.metric or config.max_new_tokens or config.kind) and not config.task_file:
        raise InvalidInput("--kind, --metric, --max-new-tokens: no --task-file, expected one that they are said of; name the file")
    if config.data:
        data = load_labeled(config.data, text_column=config.text_column, label_column=config.label_column)
        for note in data.notes:
            print(f"data     {note}")
        yield label_task(data, config.label or asked_label(data.labels))
    elif config.label or config.text_column or config.label_column:
        raise InvalidInput(
            "--label, --text-column, --label-column: no --data, expected the file that they are said of; name it with --data"
        )


@dataclass(frozen=True)
class _Model:
    """One of those that are scored. key: says which weights; see `Record`."""

    name: str
    description: str
    key: str
    load: Callable[[], tuple[Decodable, Tokenizer]]


def _opened(checkpoint: Checkpoint, asked: str) -> _Model:
    """asked: what the user named. A checkpoint directory goes by its own name, because its run has several; a run by that of the run."""

    def load() -> tuple[Decodable, Tokenizer]:
        return checkpoint.language_model(), checkpoint.tokenizer()

    itself = bool(asked) and Path(asked).expanduser() == checkpoint.path
    name = checkpoint.path if itself or checkpoint.run is None else checkpoint.run
    return _Model(str(name), checkpoint.describe(), _weights_key(checkpoint), load)


def _weights_key(checkpoint: Checkpoint) -> str:
    """Where the weights are, and when they were written: a folder that is saved to again holds another model."""
    path = checkpoint.path.resolve()
    written = [file.stat() for file in (sorted(path.glob("*.safetensors")) if path.is_dir() else [path])]
    return " ".join([str(path), *(f"{each.st_size}-{each.st_mtime_ns}" for each in written)])


def _other(name: str, like: Checkpoint, seed: int) -> _Model:
    """A model to compare with: a baseline of `like`, or a checkpoint by name."""
    if name == "untrained":

        def fresh() -> tuple[Decodable, Tokenizer]:
            return untrained(like.language_model().config, seed), like.tokenizer()

        return _Model(
            name, f"untrained, the same architecture with fresh weights of seed {seed}", f"untrained {seed} {_weights_key(like)}", fresh
        )
    if name == "bigram":
        try:
            corpus = training_text(like).corpus
        except (InvalidInput, OSError) as error:
            raise InvalidInput(f"--compare bigram: {error}; without its text there is nothing to count") from error

        def count() -> tuple[Decodable, Tokenizer]:
            tokenizer = like.tokenizer()
            train, validation = token_stream(corpus, "train", tokenizer), token_stream(corpus, "validation", tokenizer)
            return Bigram(train, validation, like.language_model().config), tokenizer

        return _Model(name, f"bigram, counts of token pairs in {corpus.source}", f"bigram {corpus.fingerprint} {_weights_key(like)}", count)
    return _opened(Checkpoint.open(name), name)


_CHANGES = {"passage shuffled": corrupted, "options permuted": permuted}


def _parts(task: Task, config: EvaluateConfig) -> dict[str, Callable[[Item], Item]]:
    """What is asked of a model, by name: "" is the task itself, the others are its controls that change any item."""
    parts: dict[str, Callable[[Item], Item]] = {"": lambda item: item}
    for name in CONTROLS if config.controls else ():
        if any(_CHANGES[name](item) != item for item in task.items):
            parts[name] = _CHANGES[name]
    return parts


def evaluate_all(model: _Model, tasks: Sequence[Task], config: EvaluateConfig, record: Record, progress: ItemProgress) -> list[Evaluated]:
    """Every task and its controls. record: keeps each finished item, and has those of earlier calls."""
    gpt, tokenizer = model.load()
    found = []
    for task in tasks:
        results = {}
        for name, change in _parts(task, config).items():
            key = f"{task.name}, {name}, {config.shots} shots, seed {config.seed}, {task.fingerprint()}"
            progress.begin(f"{model.name}, {task.name}{f', {name}' if name else ''}")
            with record.adding(key) as keep:
                results[name] = evaluate(
                    gpt, tokenizer, task, n_shots=config.shots, seed=config.seed, done=record.items(key, task), finished=keep, change=change,
                    progress=progress.update,
                )  # fmt: skip
            results[name].seconds = record.seconds(key)
            progress.end(len(task.items))
        found.append(Evaluated(results.pop(""), results))
    return found


def _write(models: Sequence[_Model], evaluated: Sequence[Sequence[Evaluated]], output: Path) -> None:
    """evaluation.json: a list of models, each with its rows; and the picture, where it can be drawn."""
    report = [
        {"model": model.name, "description": model.description, "tasks": [row.fields() for row in rows]}
        for model, rows in zip(models, evaluated, strict=True)
    ]
    path = output / "evaluation.json"
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    print(f"\nresults  {path}")
    try:
        plot(evaluated, [model.name for model in models], output / "evaluation.png")
        print(f"picture  {output / 'evaluation.png'}")
    except MissingPackage as error:
        print(f"picture  not drawn: {error}")


def in_harness(config: EvaluateConfig) -> None:
    """The harness's own table of its tasks, for our model."""
    names = ("compare", "task_file", "kind", "metric", "max_new_tokens", "data", "label", "text_column", "label_column")
    if given := [f"--{name.replace('_', '-')}" for name in names if getattr(config, name)]:
        raise InvalidInput(f"--harness: {', '.join(given)}, expected --tasks alone, which say how they are scored; leave out {given[0]}")
    try:
        from lm_eval.utils import make_table

        from tinygpt.evaluation.lm_eval import run_harness
    except ImportError as error:
        raise MissingPackage('--harness: lm_eval is missing, expected it for the harness; pip install "tinygpt[eval]"') from error
    if not config.tasks:
        raise InvalidInput(
            "--harness: no --tasks, expected names of the harness's tasks or folders of YAML files; `lm_eval ls tasks` lists them"
        )
    checkpoint = Checkpoint.open(config.model or newest_run())
    output = _output(config, checkpoint)
    print(f"backend  {backend.reason}\nmodel    {checkpoint.describe()}")
    results = run_harness(checkpoint.language_model(), checkpoint.tokenizer(), config.tasks, n_shots=config.shots, limit=config.limit)
    print("\n" + make_table(results))
    if results["contexts_cut"]:
        print(f"{results['contexts_cut']} contexts lost their start")
    path = output / "evaluation-harness.json"
    path.write_text(json.dumps(results["results"], indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"results  {path}")
