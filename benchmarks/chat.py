"""What talking to the default model gains from fine-tuning on conversations, over several seeds.

    python benchmarks/chat.py --base runs/docs-001 --output benchmarks/results/chat.json     # three times examples/finetune_chat.py

Per seed: the example with its default settings from the pretrained model --base, then every turn of the held-out conversations answered
greedily and compared with the expected answer (exact match but for case and white space), by kind of question:

    summary     "What does numpy.sort(a, axis) do?": to be known, or guessed
    count       "How many parameters does numpy.sort(a, axis) name?": stands in the question
    follow-up   "And its last parameter?": stands in the conversation, not in the question

in four ways: `given`: the turns before are the row's own; `own`: the model's earlier answers stand there, as in a chat; `alone`: the question
without the turns before; `frequent`: no model, always the answer that this question most often has in the training rows. Summaries also
have their token F1. Means over the seeds with their 95 % interval (Student's t); `before` is the same for all seeds.

Runs that --runs holds already are not trained again.
"""

import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinygpt.arguments import parse_args
from tinygpt.cli import run
from tinygpt.data.chat_templates import chat_template
from tinygpt.data.jinja_templates import saved_template
from tinygpt.errors import InvalidInput
from tinygpt.fields import PathName
from tinygpt.finetuning.conversations import DOCS, Answered, Conversation, answer_turns, load_conversations, split_conversations
from tinygpt.finetuning.scoring import token_f1
from tinygpt.inference.chat import Chat
from tinygpt.inference.sampling import Sampling
from tinygpt.runs.checkpoint import Checkpoint

EXAMPLE = Path(__file__).parents[1] / "examples" / "finetune_chat.py"
STUDENT_T = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}  # 97.5 % quantile by number of seeds
MAX_TOKENS = 48


@dataclass(frozen=True)
class Config:
    base: PathName = ""
    """Pretrained run or checkpoint to start from."""
    seeds: int = 3
    """How many seeds, 2 to 5, from 0 on."""
    runs: PathName = "runs/chat"
    """Directory for the runs, one per seed."""
    epochs: int = 0
    """Passes over the training rows; 0: the example's own number."""
    test_rows: int = 0
    """At most so many held-out conversations; 0: all."""
    output: PathName = ""
    """File for the report as JSON."""


def kind_of(question: str) -> str:
    return "summary" if question.startswith("What does") else "count" if question.startswith("How many") else "follow-up"


def shares(answers: Sequence[Answered], train: Sequence[Conversation]) -> dict[str, float]:
    """Share of exact matches of each kind of question, of each follow-up, and of those whose answer some or no training row has; token F1 of
    summaries."""
    exact, known = defaultdict(list), {answer for row in train for _, answer in row.prompts()}
    for answer in answers:
        exact[kind_of(answer.question)].append(answer.exact)
        if kind_of(answer.question) == "follow-up":
            exact[re.sub(r"And its (\w+) .*", r"\1", answer.question)].append(answer.exact)
            exact["known name" if answer.expected in known else "new name"].append(answer.exact)
    f1 = [token_f1(answer.said, answer.expected) for answer in answers if kind_of(answer.question) == "summary"]
    return {kind: float(np.mean(right)) for kind, right in exact.items()} | {"summary F1": float(np.mean(f1))}


def own_history(chat: Chat, rows: Sequence[Conversation]) -> list[Answered]:
    """The answers in a conversation with the model: the user's turns are the row's, the others its own."""
    found = []
    for row in rows:
        chat.messages = []
        for number, (before, expected) in enumerate(row.prompts()):
            for _ in chat.reply(before[-1].content):
                pass
            found.append(Answered(number, before[-1].content, expected, chat.messages[-1].content))
    return found


def most_frequent(rows: Sequence[Conversation], train: Sequence[Conversation]) -> list[Answered]:
    """The answer that each question, without the function's name, most often has in the training rows."""
    key = lambda question: question if kind_of(question) == "follow-up" else kind_of(question)  # noqa: E731
    seen = defaultdict(Counter)
    for row in train:
        for before, answer in row.prompts():
            seen[key(before[-1].content)][answer] += 1
    asked = [(number, before[-1].content, expected) for row in rows for number, (before, expected) in enumerate(row.prompts())]
    return [Answered(n, question, expected, seen[key(question)].most_common(1)[0][0]) for n, question, expected in asked]


def before_training(config: Config, rows: Sequence[Conversation], train: Sequence[Conversation]) -> dict[str, float]:
    base = Checkpoint.open(config.base)
    model, tokenizer = base.language_model(), base.tokenizer()
    return shares(answer_turns(model, tokenizer, chat_template("plain", tokenizer), rows, max_new_tokens=MAX_TOKENS), train)


def one_seed(config: Config, seed: int, rows: Sequence[Conversation], train: Sequence[Conversation]) -> dict[str, dict[str, float]]:
    """Trains where it has not been trained, and answers the held-out conversations in each way."""
    directory = Path(config.runs) / f"seed-{seed}"
    if not (directory / "report.txt").is_file():
        flags = ["--base", config.base, "--seed", str(seed), "--run", str(directory), "--test-rows", "1"]
        flags += ["--epochs", str(config.epochs)] if config.epochs else []
        subprocess.run([sys.executable, str(EXAMPLE), *flags], check=True)
    report = (directory / "report.txt").read_text(encoding="utf-8")
    loss = {side: float(re.findall(rf"^ *{side} +(\d+\.\d+),", report, re.MULTILINE)[0]) for side in ("before", "after")}
    checkpoint = Checkpoint.open(directory)
    model, tokenizer = checkpoint.language_model(), checkpoint.tokenizer()
    template = saved_template(tokenizer)
    chat = Chat(model, tokenizer, template, sampling=Sampling(temperature=0), max_tokens=MAX_TOKENS)
    return {
        "loss": loss,
        "given": shares(answer_turns(model, tokenizer, template, rows, max_new_tokens=MAX_TOKENS), train),
        "own": shares(own_history(chat, rows), train),
        "alone": shares(answer_turns(model, tokenizer, template, rows, max_new_tokens=MAX_TOKENS, history=False), train),
        "frequent": shares(most_frequent(rows, train), train),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean and half of the 95 % interval of the mean over seeds."""
    half = STUDENT_T[len(values)] * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return {"mean": float(np.mean(values)), "half": half}


KINDS = {
    "count": "the number of parameters",
    "follow-up": "follow-ups, all",
    "first": "its first parameter",
    "second": "its second parameter",
    "third": "its third parameter",
    "last": "its last parameter",
    "known name": "follow-ups whose answer is one in training rows",
    "new name": "follow-ups whose answer is in no training row",
    "summary": "what the function does",
    "summary F1": "what the function does, token F1",
}


def rows_of_table(report: dict) -> list[str]:
    """The report as a table in Markdown."""

    def cell(way: str, kind: str) -> str:
        return f"{report['mean'][way][kind]['mean']:.1%} ± {report['mean'][way][kind]['half']:.1%}"

    titles = [
        "| question | before | most frequent answer | after | after, in a chat | after, question alone |",
        "|---|---|---|---|---|---|",
    ]
    return titles + [
        f"| {name} | {report['before'][kind]:.1%} | {report['mean']['frequent'][kind]['mean']:.1%} | {cell('given', kind)} | {cell('own', kind)} | {cell('alone', kind)} |"
        for kind, name in KINDS.items()
    ]


def main() -> None:
    config = parse_args(Config(), __doc__)
    if not config.base:
        raise InvalidInput("--base: none, expected a pretrained run or checkpoint; make one with python examples/pretrain.py")
    if config.seeds not in STUDENT_T:
        raise InvalidInput(f"--seeds: {config.seeds}, expected 2 to 5")
    data = load_conversations(DOCS)
    rows = data.held_out[: config.test_rows or None]
    trained_on = [split_conversations(data, seed=seed).train for seed in range(config.seeds)]
    before = before_training(config, rows, trained_on[0])
    found = [one_seed(config, seed, rows, train) for seed, train in enumerate(trained_on)]
    means = {way: {kind: spread([each[way][kind] for each in found]) for kind in found[0][way]} for way in found[0]}
    report = {"rows": len(rows), "seeds": config.seeds, "before": before, "mean": means, "each": found}
    loss = ", ".join(f"{side} {each['mean']:.3f} ± {each['half']:.3f}" for side, each in means["loss"].items())
    print(f"{len(rows)} held-out conversations, {config.seeds} seeds: mean and half of the 95 % interval; loss in nats per token: {loss}\n")
    print("\n".join(rows_of_table(report)))
    if config.output:
        Path(config.output).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
