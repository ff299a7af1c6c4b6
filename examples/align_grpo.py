"""Train a model by rewards that a program can check (GRPO): it draws answers, and those above the mean of their group become likelier.

    python examples/align_grpo.py

Some minutes on two CPU cores, no network. A problem: "Sort the letters: q c x a"; the reward is 1 for "a c q x" and else 0. Starts
from the newest pretrained run under runs/ (python examples/pretrain.py makes one), which first learns from right answers until a fifth of
its likeliest ones are right (a run of its own): with no answer right there would be nothing to prefer. Leaves a run directory with report.txt,
results.json, curves.png of reward, KL and length, and the model. Expect some thirty points more of the held-out problems to be solved.

More: --data arithmetic, or a file of questions and answers; --weighting best-of-n learns from the best answer of each group alone, from as
many samples; --iterations 2 makes two updates on the same answers; --beta weighs the KL divergence from the reference, which is the same
model with its adapters switched off; --resume RUN. What it is, and what was measured: docs/rewards.md.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from autograd import backend
from tinygpt.cli import Progress, Report, exit_if_interrupted, run, settings, table
from tinygpt.data.chat_templates import ChatTemplate, Message
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.evaluation.statistics import interval
from tinygpt.fields import FREE, PathName
from tinygpt.finetuning.common import fingerprint, fit, n_trainable, open_run, set_trainable, training_plan
from tinygpt.finetuning.conversations import Conversation
from tinygpt.finetuning.grpo import GRPO, Exam, GroupConfig, Numbers, Rollouts, Weighting, check_bounds
from tinygpt.finetuning.instructions import split_instructions
from tinygpt.finetuning.lora import LoraConfig
from tinygpt.finetuning.reward_curves import plot_rewards
from tinygpt.finetuning.rewards import REWARDS, Problem, load_problems, question
from tinygpt.finetuning.rows import Split
from tinygpt.finetuning.warm_start import AlignConfig, answering_start
from tinygpt.models.gpt import GPT
from tinygpt.storage.checked_json import Json, to_json
from tinygpt.storage.durable import replace_file


@dataclass(frozen=True)
class GRPOConfig(AlignConfig):
    script: ClassVar[str] = "examples/align_grpo.py"
    data: PathName = "letters"
    """letters, arithmetic, or a json, jsonl, csv or tsv file of questions and answers."""
    reward: Literal["exact", "prefix"] = "exact"
    """exact: 1 for the right answer; prefix: the share of its words before the first wrong one."""
    group: int = 8
    """Answers to each problem."""
    iterations: int = 1
    """Updates on the same answers before new ones are drawn."""
    temperature: float = 1.0
    """Of the draws."""
    weighting: Weighting = "grpo"
    """grpo: advantages within the group; best-of-n: the best answer of each group alone."""
    clip: float = 0.2
    """How far one round of updates may change a token's probability, as a factor."""
    beta: float = 0.02
    """Weight of the KL divergence from the reference. 0: none."""
    warm_target: float = 0.2
    """Share of validation problems that the warm start ends at."""
    fractions: tuple[float, float, float] = (0.8, 0.05, 0.15)
    epochs: int = 2
    batch: int = 5
    """Problems per update, each with a group of answers."""
    lr: float = 1e-3
    warmup_steps: int = 10
    weight_decay: float = 0.0
    patience: int = field(default=0, metadata=FREE)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds(self.clip, self.beta)

    @property
    def groups(self) -> GroupConfig:
        return GroupConfig(self.group, self.iterations, self.temperature, self.max_new_tokens, self.weighting, self.seed)


def main() -> None:
    config = settings(GRPOConfig(), __doc__)
    report, groups, reward = Report(), config.groups, REWARDS[config.reward]
    print(f"backend    {backend.reason}")

    # Problems, split; then a model that can solve some of them.
    data = load_problems(config.data)
    report.say("\n           ".join([f"data       {data.source}", *data.notes]))
    parts = split_instructions(data, config.fractions, seed=config.seed)
    problems = parts.train + parts.validation + parts.test
    first, last = len(parts.train), len(parts.train) + len(parts.validation)
    numbers = Split([*range(first)], [*range(first, last)], [*range(last, len(problems))])

    def exam(gpt: GPT, tokenizer: Tokenizer, template: ChatTemplate) -> Exam:
        return Exam(gpt, tokenizer, template, problems, reward, max_new_tokens=config.max_new_tokens)

    def solved(gpt: GPT, tokenizer: Tokenizer, template: ChatTemplate) -> float:
        asks = exam(gpt, tokenizer, template)
        return float(asks.right(numbers.validation, asks.draw(numbers.validation, temperature=0.0)).mean())

    rows = [Conversation((Message("user", question(each)), Message("assistant", each.output)), each.place) for each in parts.train]
    start = answering_start(config, rows, Progress, enough=solved, target=config.warm_target)
    gpt, asks = start.gpt, exam(start.gpt, start.tokenizer, start.template)
    adapter = set_trainable(gpt, config.trainable, LoraConfig(config.rank, config.alpha, config.lora_dropout, config.targets), config.seed)
    batch = min(config.batch, len(parts.train))
    plan = training_plan(config, len(parts.train), batch, batch, gpt.config.n_positions)
    plan = replace(plan, eval_every=max(plan.eval_every // 4, 1), log_every=max(plan.eval_every // 8, 1))  # the curve is what one looks at
    a_run = open_run(config, start.base, start.tokenizer, adapter, fingerprint(vars(parts)), data_source=data.source)
    report.say(
        f"split by seed {config.seed}: {len(parts.train):,} training, {len(parts.validation):,} validation, {len(parts.test):,} test problems; base {start.base}"
    )

    # Before training.
    before = measured(asks, numbers.test, config)
    print(f"\nbefore     {sentence(before)}")
    n_drawn = plan.steps // config.iterations * batch * config.group
    print(
        f"\ntraining   {config.trainable}: {n_trainable(gpt):,} of {gpt.n_parameters():,} weights, {plan.steps} updates, "
        f"{n_drawn:,} answers in groups of {config.group}"
    )
    with Progress(plan.steps, unit="of the validation problems wrong") as progress:

        def record(line: dict[str, Json]) -> None:
            a_run.log(line)
            if line["step"] == 1 or line["step"] % plan.log_every == 0:
                progress.note(
                    f"step {line['step']:>5}/{plan.steps}  reward {line['reward']:.3f}  right {line['right']:.1%}  KL {line['kl']:.4f} nats per token  "
                    f"length {line['length']:.1f} tokens  groups that differ {line['groups_that_differ']:.0%}"
                )

        rollouts = Rollouts(asks, numbers.train, groups, adapter, keeps_kl=config.beta > 0, record=record)
        result = fit(
            GRPO(gpt, asks, config.clip, config.beta), rollouts, Numbers(numbers.validation), plan, progress, a_run, config.override
        )
    exit_if_interrupted(result, f"no report yet; resume with: python {config.script} --resume {a_run.path}")

    # After training: the same problems.
    after = measured(asks, numbers.test, config)
    write_report(report, config, parts.test, before, after, n_drawn, a_run.path)
    report.say(f"weights of step {result.best_step} of {result.step}, the best on validation problems")
    report.write(a_run.path / "report.txt")
    try:
        plot_rewards(a_run.path / "metrics.jsonl", a_run.path / "curves.png")
    except ImportError as error:
        print(f"no picture: {error}")
    print(f"\nreport     {a_run.path / 'report.txt'}\nnext: python -m tinygpt chat {a_run.path}")


def measured(asks: Exam, which: list[int], config: GRPOConfig) -> dict[str, np.ndarray]:
    """By problem (N,): right by the likeliest tokens, share right of `group` draws, whether any of them is (best of n, with the checker at
    hand), tokens of an answer; and the likeliest answers."""
    likeliest = asks.draw(which, temperature=0.0)
    many = np.repeat(which, config.group)
    seeds = np.random.default_rng([config.seed, 10**6]).integers(2**62, size=len(many)).tolist()
    draws = asks.draw(many, temperature=config.temperature, seeds=seeds)
    right = asks.right(many, draws).reshape(-1, config.group)
    return {
        "greedy": asks.right(which, likeliest), "sampled": right.mean(axis=1), "best_of_n": right.max(axis=1),
        "tokens": likeliest.n_tokens.astype(np.float64), "answers": np.array(likeliest.texts, dtype=object),
    }  # fmt: skip


def sentence(found: dict[str, np.ndarray]) -> str:
    greedy, sampled, best, tokens = (found[name].mean() for name in ("greedy", "sampled", "best_of_n", "tokens"))
    return f"right: likeliest tokens {greedy:.1%}, a draw {sampled:.1%}, the best of a group {best:.1%}; {tokens:.1f} tokens per answer"


def write_report(
    report: Report,
    config: GRPOConfig,
    problems: list[Problem],
    before: dict[str, np.ndarray],
    after: dict[str, np.ndarray],
    n_drawn: int,
    directory: Path,
) -> None:
    report.say(table(f"on {len(problems)} held-out problems", {"before": sentence(before), "after": sentence(after)}))
    rows: dict[str, Callable[[dict[str, np.ndarray]], np.ndarray]] = {
        "likeliest tokens": lambda found: found["greedy"],
        "one draw": lambda found: found["sampled"],
        f"best of {config.group} draws, by the checker": lambda found: found["best_of_n"],
    }
    report.say(
        table(
            "share right, before and after (95 % intervals, problems drawn)",
            {name: "   ".join(str(interval(part(each))) for each in (before, after)) for name, part in rows.items()},
        )
    )
    worse = [name for name, part in rows.items() if part(after).mean() < part(before).mean()]
    report.say(f"did not improve: {', '.join(worse) or 'nothing of what is measured here'}; {n_drawn:,} answers were drawn in training")
    shown = [
        f"{problem.instruction}\n    before    {old}\n    after     {new}\n    right     {problem.output}"
        for problem, old, new in list(zip(problems, before["answers"], after["answers"], strict=True))[:8]
    ]
    report.say("held-out problems, answered before and after\n\n" + "\n\n".join(shown))
    facts: dict[str, Json] = {
        "seed": config.seed,
        "weighting": config.weighting,
        "group": config.group,
        "n_problems": len(problems),
        "n_drawn": n_drawn,
    }
    for name, found in (("before", before), ("after", after)):
        facts[name] = {key: float(found[key].mean()) for key in ("greedy", "sampled", "best_of_n", "tokens")}
    replace_file(directory / "results.json", to_json(facts))


if __name__ == "__main__":
    run(main)
