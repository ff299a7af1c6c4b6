"""Align an assistant by preferences (DPO): of two answers to a question, it learns to find the better one likelier.

    python examples/align_dpo.py

Some minutes on two CPU cores, no network. A pair: "What does numpy.argsort do?", the first sentence of its docstring, and a corruption
of that sentence, such as one that stops in the middle. Starts from the newest pretrained run under runs/ (python examples/pretrain.py makes
one), which first learns from the right answers alone (the "SFT" of the papers, a run of its own); an assistant given by --base skips that.
Only low-rank adapters are trained, so the reference that DPO compares with is the same model with them switched off. Leaves a run directory
with report.txt, results.json, loss.png, the adapter and the model. Expect far more of the held-out pairs ranked right than the half before,
and own answers that are worse: the page says why.

More: --data FILE takes your own pairs (jsonl with prompt, chosen and rejected; texts, or lists of messages); --beta says how far the model
may move; --nll-weight keeps the chosen answers likely; --resume RUN. What it is, and what was measured: docs/preferences.md.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from autograd import backend
from tinygpt.cli import Progress, Report, exit_if_interrupted, run, settings, table
from tinygpt.evaluation.statistics import interval
from tinygpt.fields import FREE, PathName
from tinygpt.finetuning.common import fingerprint, fit, n_trainable, open_run, set_trainable, shorten, training_plan
from tinygpt.finetuning.conversations import Answered, Conversation, answer_turns
from tinygpt.finetuning.corruptions import KINDS
from tinygpt.finetuning.lora import LoraConfig
from tinygpt.finetuning.preferences import (
    DOC_KINDS,
    DOC_PAIRS,
    DPO,
    Pair,
    PairBatches,
    Ranking,
    check_weights,
    doc_pairs,
    encode_pairs,
    load_pairs,
    rank,
    split_pairs,
)
from tinygpt.finetuning.warm_start import AlignConfig, Started, answering_start
from tinygpt.storage.checked_json import Json, to_json
from tinygpt.storage.durable import replace_file
from tinygpt.training.metrics import plot_loss


@dataclass(frozen=True)
class DPOConfig(AlignConfig):
    script: ClassVar[str] = "examples/align_dpo.py"
    data: PathName = DOC_PAIRS
    """doc-pairs (text that every installation has), or a jsonl, json, csv or tsv file with prompt, chosen and rejected."""
    kinds: tuple[str, ...] = DOC_KINDS
    """With doc-pairs: corruptions that the rejected answers have; those of all other kinds are only measured."""
    beta: float = 0.03
    """How hard it is to move from the reference: an implicit reward is beta times the change of an answer's log-probability."""
    nll_weight: float = 0.0
    """Weight of the chosen answers' own negative log-likelihood per token in the loss, which keeps them likely. 0: plain DPO."""
    truncate: bool = False
    """Cut answers that do not fit into the context; otherwise they are errors."""
    fractions: tuple[float, float, float] = (0.85, 0.05, 0.1)
    epochs: int = 2
    batch: int = 8
    """Pairs per update."""
    lr: float = 1e-3
    warmup_steps: int = 20
    weight_decay: float = 0.0
    warm_steps: int = 80
    max_new_tokens: int = field(default=48, metadata=FREE)
    """Longest answer."""
    test_answers: int = field(default=40, metadata=FREE)
    """Held-out prompts that are answered before and after; 0: all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weights(self.beta, self.nll_weight)


def main() -> None:
    config = settings(DPOConfig(), __doc__)
    report = Report()
    print(f"backend    {backend.reason}")

    # Pairs, checked and split; then the model to start from.
    data = load_pairs(config.data, config.seed, config.kinds)
    report.say("\n           ".join([f"data       {data.source}", *data.notes]))
    parts = split_pairs(data, config.fractions, seed=config.seed)
    start = answering_start(config, prompts(parts.train), Progress)
    gpt = start.gpt
    adapter = set_trainable(gpt, config.trainable, LoraConfig(config.rank, config.alpha, config.lora_dropout, config.targets), config.seed)
    train, validation, test = (batches(config, start, some) for some in (parts.train, parts.validation, parts.test))
    more = [kind for kind in KINDS if kind not in (*config.kinds, "number")]  # few answers have a number
    others = doc_pairs(config.seed, more).held_out if config.data == DOC_PAIRS else []

    # The reference: the adapter switched off. Its log-probabilities never change, so they are computed once.
    for some in (train, validation):
        some.refer_to(gpt, adapter)
    plan = training_plan(config, len(train), min(config.batch, len(train)), min(config.batch, len(train)), gpt.config.n_positions)
    a_run = open_run(config, start.base, start.tokenizer, adapter, fingerprint(vars(parts)), data_source=data.source)
    n_questions = len({pair.group for pair in parts.test})
    report.say(
        f"split by seed {config.seed}: {len(parts.train):,} training, {len(parts.validation):,} validation, {len(parts.test):,} test pairs "
        f"about {n_questions} other prompts; base {start.base}"
    )

    # Before training: which answer is likelier, and what the model itself answers.
    before = Measured.of(config, start, parts.test, test, others)
    print(f"\nbefore     {before}")
    print(
        f"\ntraining   {config.trainable}: {n_trainable(gpt):,} of {gpt.n_parameters():,} weights, {plan.steps} updates of {config.batch} pairs"
    )
    with Progress(plan.steps, unit="nats per pair") as progress:
        result = fit(DPO(gpt, config.beta, config.nll_weight), train, validation, plan, progress, a_run, config.override)
    exit_if_interrupted(result, f"no report yet; resume with: python {config.script} --resume {a_run.path}")

    # After training: the same pairs and prompts.
    after = Measured.of(config, start, parts.test, test, others)
    write_report(report, config, parts.test + others, before, after, a_run.path)
    report.say(f"best validation loss {result.best_validation_nats:.3f} nats per pair at step {result.best_step} of {result.step}")
    report.write(a_run.path / "report.txt")
    try:
        plot_loss(result, a_run.path / "loss.png", first_guess_nats=float(np.log(2)), unit="nats per pair")
    except ImportError as error:
        print(f"no picture: {error}")
    print(f"\nreport     {a_run.path / 'report.txt'}\nnext: python -m tinygpt chat {a_run.path}")


def batches(config: DPOConfig, start: Started, pairs: list[Pair]) -> PairBatches:
    n_positions = start.gpt.config.n_positions
    return PairBatches(encode_pairs(pairs, start.tokenizer, start.template, n_positions, truncate=config.truncate))


def prompts(pairs: list[Pair]) -> list[Conversation]:
    """Each prompt once, with its right answer."""
    return list({pair.group: pair.right for pair in pairs}.values())


@dataclass
class Measured:
    """A model's ratings of the test pairs (and, behind them, of pairs with other corruptions), and its own answers to some of the prompts."""

    n_test: int
    ranking: Ranking
    answers: list[Answered]

    @classmethod
    def of(cls, config: DPOConfig, start: Started, pairs: list[Pair], test: PairBatches, others: list[Pair]) -> "Measured":
        ranking = rank(start.gpt, test)
        if others:
            more = rank(start.gpt, batches(config, start, others))
            ranking = Ranking(np.concatenate([ranking.log_probs, more.log_probs]), np.concatenate([ranking.n_tokens, more.n_tokens]))
        asked = prompts(pairs)
        drawn = np.random.default_rng(config.seed).permutation(len(asked))[: config.test_answers or None]
        some = [asked[i] for i in sorted(drawn)]
        answers = answer_turns(start.gpt, start.tokenizer, start.template, some, max_new_tokens=config.max_new_tokens)
        return cls(len(test), ranking, answers)

    @property
    def test(self) -> Ranking:
        return Ranking(self.ranking.log_probs[: self.n_test], self.ranking.n_tokens[: self.n_test])

    @property
    def mean_words(self) -> float:
        return float(np.mean([len(answer.said.split()) for answer in self.answers]))

    @property
    def finished(self) -> float:
        """Share of own answers that end as a sentence does."""
        return float(np.mean([answer.said.endswith((".", "!", "?")) for answer in self.answers]))

    def __str__(self) -> str:
        test = self.test
        return (
            f"ranked right {test.right.mean():.1%}; log-probability of a chosen answer {test.chosen_nats:.1f} nats "
            f"({test.chosen_nats_per_token:.2f} per token), of a rejected one {test.rejected_nats:.1f}; "
            f"own answers: {self.mean_words:.1f} words, {self.finished:.0%} end as a sentence"
        )

    def facts(self, pairs: list[Pair]) -> dict[str, Json]:
        """What results.json holds of it."""
        kinds = np.array([pair.kind for pair in pairs])
        by_kind = {kind: float(self.ranking.right[kinds == kind].mean()) for kind in dict.fromkeys(kinds.tolist())}
        test = self.test
        return {
            "ranked_right": float(test.right.mean()), "chosen_nats": test.chosen_nats, "rejected_nats": test.rejected_nats,
            "chosen_nats_per_token": test.chosen_nats_per_token, "words": self.mean_words, "finished": self.finished, "ranked_right_by_kind": by_kind,
        }  # fmt: skip


def write_report(report: Report, config: DPOConfig, pairs: list[Pair], before: Measured, after: Measured, directory: Path) -> None:
    groups = np.array([pair.group for pair in pairs])
    kinds, n = np.array([pair.kind for pair in pairs]), before.n_test
    report.say(table(f"on {n} held-out pairs", {"before": before, "after": after}))
    lines = {}
    for kind in dict.fromkeys(kinds.tolist()):
        which = kinds == kind
        name = (kind or "all") + ("" if which[:n].any() else " (not in training)")
        lines[name] = "   ".join(f"{interval(each.ranking.right[which], groups[which])}" for each in (before, after))
    report.say(table("share ranked right, before and after, by what the rejected answer is (95 % intervals, prompts drawn)", lines))
    worse = [name for name, gain in changes(before, after).items() if gain < 0]
    report.say(f"did not improve: {', '.join(worse) or 'nothing of what is measured here'}")
    both = list(zip(before.answers, after.answers, strict=True))
    shown = [
        f"{old.question}\n    before    {shorten(old.said, 160)}\n    after     {shorten(new.said, 160)}\n    chosen    {shorten(old.expected, 160)}"
        for old, new in both[:8]
    ]
    report.say("held-out prompts, answered before and after\n\n" + "\n\n".join(shown))
    facts = {
        "seed": config.seed,
        "beta": config.beta,
        "nll_weight": config.nll_weight,
        "n_pairs": n,
        "before": before.facts(pairs),
        "after": after.facts(pairs),
    }
    examples = [{"prompt": old.question, "before": old.said, "after": new.said, "chosen": old.expected} for old, new in both]
    replace_file(directory / "results.json", to_json(facts | {"answers": examples}))


def changes(before: Measured, after: Measured) -> dict[str, float]:
    """By name, how much better each measure has become; negative: worse."""
    return {
        "the share of pairs ranked right": after.test.right.mean() - before.test.right.mean(),
        "the chosen answers' own log-probability": after.test.chosen_nats - before.test.chosen_nats,
        "the share of own answers that end as a sentence": after.finished - before.finished,
    }


if __name__ == "__main__":
    run(main)
