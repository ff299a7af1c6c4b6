"""The classifier as a stage: fitted from examples, applied, and checked against held-out rows, and against a small GPT's opinion if asked."""

import heapq
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from tinygpt.curate.documents import read_shard
from tinygpt.curate.executors import Run
from tinygpt.curate.perplexity import SAMPLE, second_opinion
from tinygpt.curate.pipeline import apply_steps, merged
from tinygpt.curate.quality import Quality, Row, examples, fit, load, report, save
from tinygpt.curate.report import Curve, StepReport, order_of
from tinygpt.curate.sources import open_sources, parse_spec
from tinygpt.runs.checkpoint import Checkpoint
from tinygpt.storage.checked_json import Json, read_json, to_json
from tinygpt.storage.durable import replace_file

_JUDGES = {"the classifier": "classifier", "the GPT": "perplexity", "both": "both"}


@dataclass(frozen=True)
class Classified:
    """Removes what resembles bad examples more than good ones.

    good, bad   sources (PATH or NAME=PATH,...) of examples; a bad source's name is its kind. Without: see `quality.examples`
    keep        share of good held-out rows that the threshold keeps
    model       a run whose GPT gives a second opinion, in the report; "": none
    """

    good: tuple[str, ...] = ()
    bad: tuple[str, ...] = ()
    keep: float = 0.97
    model: str = ""
    seed: int = 0
    name: str = "classifier"

    def settings(self) -> dict[str, Json]:
        """Raises what reading the examples and opening the run raise, before anything is done."""
        if self.good or self.bad:
            _rows(self)
        if self.model:
            _check_run(self.model)
        examples = {
            kind: [source.describe() for source in open_sources(map(parse_spec, given))]
            for kind, given in (("good", self.good), ("bad", self.bad))
            if given
        }
        return {**examples, "keep": self.keep, "model": self.model, "seed": self.seed}

    def run(self, inputs: Sequence[Path], work: Path, run: Run) -> Sequence[StepReport]:
        model = work / "quality.safetensors"
        run(partial(_fit, self, model), 1, "fit")
        reports = merged(
            run(partial(apply_steps, (Quality(str(model), name=self.name),), tuple(inputs), work / "shards"), len(inputs), "apply")
        )
        run(partial(_judge, self, model, tuple(inputs)), 1, "judge")
        opinion = read_json(work / "opinion.json")
        if self.model:
            reports[0].notes += [{"opinion of": opinion["run"], "dirt": kind, **_flat(values)} for kind, values in opinion["kinds"].items()]
            reports[0].notes.append(said(opinion["run"], opinion["sample"]))
        return reports


def _flat(values: Json) -> dict[str, Json]:
    return {"AUC of the classifier": round(values["classifier"]["mean"], 3), "AUC of the GPT": round(values["perplexity"]["mean"], 3)}


@lru_cache(maxsize=1)
def _check_run(model: str) -> None:
    """Raises what opening a run raises, ValueError for one of no language model."""
    checkpoint = Checkpoint.open(model)
    checkpoint.language_model()
    checkpoint.tokenizer()


def said(run: str, sample: Json) -> dict[str, Json]:
    """What the GPT says of documents, as a note."""
    quantiles = zip(("5 %", "25 %", "50 %", "75 %", "95 %"), sample["bits_per_byte"], strict=False)
    worse = {f"worse than 99 % of good rows for {name}": round(sample[key], 3) for name, key in _JUDGES.items()}
    bits = {f"bits per byte, {name} of documents below": round(bits, 3) for name, bits in quantiles}
    return {"opinion of": run, "documents": sample["n"], **bits, **worse}


@lru_cache(maxsize=1)
def _rows(stage: Classified) -> list[Row]:
    good = [document.text for source in open_sources(map(parse_spec, stage.good)) for document in source.read()] if stage.good else []
    bad = {source.name: [d.text for d in source.read()] for source in open_sources(map(parse_spec, stage.bad))} if stage.bad else None
    return examples(good, bad, stage.seed)


def _fit(stage: Classified, path: Path, task: int, n_tasks: int) -> list[StepReport]:
    save(fit(_rows(stage), stage.keep), path)
    return []


def _judge(stage: Classified, path: Path, inputs: Sequence[Path], task: int, n_tasks: int) -> list[StepReport]:
    model, rows = load(path), _rows(stage)
    replace_file(path.with_name("quality.json"), to_json(report(model, rows)), writer=f"{os.getpid()}-")
    opinion = second_opinion(stage.model, model, rows, _sample(inputs), stage.seed) if stage.model else {}
    replace_file(path.with_name("opinion.json"), to_json(opinion), writer=f"{os.getpid()}-")
    return []


def _sample(inputs: Sequence[Path]) -> list[str]:
    """Texts of the documents whose ids have the smallest hashes."""

    def all_of_them() -> Iterator[tuple[str, str]]:
        for path in inputs:
            yield from ((order_of(document.id), document.text) for document in read_shard(path))

    return [text for _, text in heapq.nsmallest(SAMPLE, all_of_them())]


def curves(folder: Path) -> list[Curve]:
    """The ROC curves of the classifier that a curation in this folder has fitted; none without one."""
    found = []
    for path in sorted((folder / "work").glob("*/quality.json")):
        values = read_json(path)
        removed = [kind["removed"] * kind["n"] for kind in values["kinds"].values()]
        chosen = (1 - values["good_kept"], sum(removed) / max(sum(kind["n"] for kind in values["kinds"].values()), 1))
        for name, curve in values["roc"].items():
            lost, caught = ([0.0, *curve[side], 1.0] for side in ("good_removed", "bad_removed"))
            found.append(Curve(f"classifier, {name}", curve["auc"]["mean"], tuple(caught), tuple(lost), chosen if name == "all" else None))
    return found
