"""Turn a pretrained GPT into something to talk to: from conversations it learns to answer, to stop, and to read the turns before.

    python examples/finetune_chat.py

A few minutes on two CPU cores, no network. A conversation: "What does numpy.sort(a, axis, kind) do?", the first sentence of its
docstring, "And its last parameter?", "kind". Starts from the newest pretrained run under runs/ (python examples/pretrain.py makes one); if
there is none, a small model is pretrained first. Leaves a run directory with report.txt, answers.json, loss.png and the model. Expect
follow-up questions about functions that it has never seen to be answered far more often than before, because the answers stand in the
conversation; what an unknown function does, it has to guess. Then talk to it: python -m tinygpt chat RUN

More: --data FILE takes your own conversations (json, jsonl: messages with role and content, conversations with from and value, or
instruction, input and output); --template chatml writes turns otherwise; --trainable lora trains low-rank adapters only; --show-masked
prints what the loss counts. --help lists every flag.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from rich.text import Text

from autograd import backend
from tinygpt.cli import Progress, Report, exit_if_interrupted, run, settings, table
from tinygpt.data.chat_templates import ChatTemplate, chat_template
from tinygpt.data.jinja_templates import keep_template, saved_template
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.errors import InvalidInput
from tinygpt.fields import FREE, PathName
from tinygpt.finetuning.common import (
    FinetuneConfig,
    fingerprint,
    fit,
    length_limit,
    n_trainable,
    open_run,
    set_trainable,
    shorten,
    starting_point,
    training_plan,
)
from tinygpt.finetuning.conversations import (
    Answered,
    EncodedConversation,
    answer_turns,
    encode_conversations,
    exact_matches,
    load_conversations,
    show_turns,
    split_conversations,
)
from tinygpt.finetuning.lora import LoraConfig
from tinygpt.finetuning.masked import MaskedBatches
from tinygpt.finetuning.rows import Split
from tinygpt.training.metrics import measure, plot_loss


@dataclass(frozen=True)
class ChatConfig(FinetuneConfig):
    script: ClassVar[str] = "examples/finetune_chat.py"
    data: PathName = "doc-conversations"
    """doc-conversations (text that every installation has), or a json, jsonl, csv or tsv file."""
    template: Literal["checkpoint", "plain", "chatml", "llama3"] = "checkpoint"
    """How turns are written: the base's own template where it brings one, else plain; or plain, chatml or llama3."""
    targets: tuple[str, ...] = ("c_attn", "c_proj", "c_fc")
    """Layers that get LoRA adapters: c_attn, attn.c_proj, c_fc, mlp.c_proj; c_proj means both."""
    fractions: tuple[float, float, float] = (0.85, 0.05, 0.1)
    truncate: bool = True
    """Leave out exchanges at a conversation's end that do not fit into the context; otherwise they are errors."""
    epochs: int = field(default=3, metadata=FREE)
    batch: int = 16
    """Conversations per update, computed in micro-batches of at most four of similar lengths."""
    lr: float = 1e-3
    warmup_steps: int = 20
    test_rows: int = field(default=60, metadata=FREE)
    """Number of held-out conversations whose turns are answered before and after; 0: all."""
    max_new_tokens: int = field(default=48, metadata=FREE)
    """Longest answer."""
    show_masked: bool = field(default=False, metadata=FREE)
    """Print one training row as the loss sees it, and exit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.test_rows < 0 or self.max_new_tokens < 1:
            found = f"test_rows {self.test_rows}, max_new_tokens {self.max_new_tokens}"
            raise InvalidInput(f"{found}: expected >= 0 and >= 1; 0 answers all test rows")


def main() -> None:
    config = settings(ChatConfig(), __doc__)
    report = Report()
    print(f"backend    {backend.reason}")

    # Data, checked and split; then the model to start from, and how it writes turns down.
    data = load_conversations(config.data)
    report.say("\n           ".join([f"data       {data.source}", *data.notes]))
    parts = split_conversations(data, config.fractions, seed=config.seed)
    gpt, tokenizer, base = starting_point(config, [m.content for row in parts.train for m in row.messages], Progress)
    template = template_for(config, tokenizer)
    sequences = encoded(config, parts, tokenizer, template, gpt.config.n_positions)
    masked = picture(min(sequences.train[:4], key=lambda sequence: sequence.n_tokens))
    if config.show_masked:
        Progress(1).console.print(masked)
        return

    lora = LoraConfig(config.rank, config.alpha, config.lora_dropout, config.targets)
    adapter = set_trainable(gpt, config.trainable, lora, config.seed)
    batch = min(config.batch, len(sequences.train))
    plan = training_plan(config, len(sequences.train), batch, next(n for n in (4, 3, 2, 1) if batch % n == 0), gpt.config.n_positions)
    keep_template(tokenizer, template)
    a_run = open_run(config, base, tokenizer, adapter, fingerprint([vars(parts), template.jinja]), data_source=data.source)
    directory = a_run.path
    report.say(
        f"split by seed {config.seed}: {len(sequences.train):,} training, {len(sequences.validation):,} validation, "
        f"{len(sequences.test):,} test conversations; base {base}, template {template.name}"
    )
    report.say("one training row as the loss sees it\n" + masked.plain)

    # Before training: loss and answers on conversations that are never trained on.
    batches = {name: MaskedBatches([s.masked for s in some]) for name, some in vars(sequences).items()}
    asked = parts.test[: config.test_rows or None]

    def score() -> tuple[float, list[Answered]]:
        answers = answer_turns(gpt, tokenizer, template, asked, max_new_tokens=config.max_new_tokens)
        return measure(gpt, batches["test"], config.batch).nats, answers

    before = score()
    print(f"\nbefore     {summary(*before)}")
    print(f"\ntraining   {config.trainable}: {n_trainable(gpt):,} of {gpt.n_parameters():,} weights, {plan.steps} updates of {batch} rows")
    with Progress(plan.steps) as progress:
        result = fit(gpt, batches["train"], batches["validation"], plan, progress, a_run, config.override)
    exit_if_interrupted(result, f"no report yet; resume with: python {config.script} --resume {directory}")

    # After training: the same conversations.
    after = score()
    title = (
        f"on {len(sequences.test)} test conversations: loss in nats per token of the answers; answers that are exactly the expected ones"
    )
    report.say(table(title, {"before": summary(*before), "after": summary(*after), "loss": f"{1 - after[0] / before[0]:.0%} lower"}))
    report.say("held-out turns, before and after\n\n" + "\n\n".join(map(shown, before[1][:9], after[1])))
    rows = [vars(a) | {"before": b.said, "exact": a.exact} for b, a in zip(before[1], after[1], strict=True)]
    (directory / "answers.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    best = f"best validation loss {result.best_validation_nats:.3f} nats per token at step {result.best_step} of {result.step}"
    report.say(f"{best}; trained in {result.seconds:.0f} s")
    finish(directory, report, lambda path: plot_loss(result, path, first_guess_nats=math.log(gpt.config.vocab_size)))


def template_for(config: ChatConfig, tokenizer: Tokenizer) -> ChatTemplate:
    own = saved_template(tokenizer) if config.template == "checkpoint" else None
    return own or chat_template("plain" if config.template == "checkpoint" else config.template, tokenizer)


def encoded(config: ChatConfig, parts: Split, tokenizer: Tokenizer, template: ChatTemplate, context: int) -> Split[EncodedConversation]:
    """The conversations as tokens, as many of them as the model reads."""
    lengths = [sequence.n_tokens for sequence in encode_conversations(parts.train, tokenizer, template, 10**9)]
    limit, cut = length_limit(config, context + 1, lengths)  # the last token is only predicted
    found = {name: encode_conversations(rows, tokenizer, template, limit - 1, truncate=cut) for name, rows in vars(parts).items()}
    n_rows, n_kept = (sum(map(len, vars(each).values())) for each in (parts, Split(**found)))
    n_shorter = sum(sequence.n_left_out > 0 for some in found.values() for sequence in some)
    if n_shorter or n_kept < n_rows:
        print(f"too long   for {limit} tokens: {n_rows - n_kept:,} conversations left out, {n_shorter:,} without their last exchanges")
    return Split(**found)


def picture(sequence: EncodedConversation) -> Text:
    """A conversation in colors: what the loss counts, and what is only read; in words too, for where there are no colors."""
    colors = {"mark": "dim", "system": "dim magenta", "user": "cyan", "assistant": "green", "end": "bold red"}
    text = Text()
    for kind, part, counted in show_turns(sequence):
        text.append(f"[{kind}: {'counts' if counted else 'masked'}]\n", style="italic")
        text.append(part.strip("\n") + "\n", style=colors[kind])
    return text


def summary(nats: float, answers: list[Answered]) -> str:
    matches = exact_matches(answers)
    return ", ".join([f"{nats:.3f}", *(f"{name} {right} of {n} exact" for name, (right, n) in matches.items())])


def shown(before: Answered, after: Answered) -> str:
    lines = {"before": before.said, "after": after.said, "expected": after.expected}
    return "\n".join([f"turn {after.turn + 1}: {after.question}", *(f"    {key:<9} {shorten(text, 140)}" for key, text in lines.items())])


def finish(directory: Path, report: Report, plot) -> None:
    report.write(directory / "report.txt")
    try:
        plot(directory / "loss.png")
    except ImportError as error:
        print(f"no picture: {error}")
    print(f"\nreport     {directory / 'report.txt'}\nnext: python -m tinygpt chat {directory} --page")


if __name__ == "__main__":
    run(main)
