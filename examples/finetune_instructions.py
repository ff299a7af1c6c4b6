"""Turn a pretrained GPT into an assistant: from questions and answers it learns to answer, and to stop.

    python examples/finetune_instructions.py

About two minutes on two CPU cores, no network. A row: "What does numpy.argsort do?", and the first sentence of its docstring. Starts
from the newest pretrained run under runs/ (python examples/pretrain.py makes one); if there is none, a small model is pretrained first,
which takes about a minute of it. Leaves a run directory with report.txt, answers.json, loss.png and the model. Expect a lower loss on
answers that it has never seen, and answers in the right form; what an unknown function does, it has to guess.

More: --data FILE takes your own instructions (json, jsonl, csv, tsv, txt with instruction, perhaps input, and output), --data instructions
1,100 of all kinds; --trainable lora trains low-rank adapters only; --show-masked prints what the loss counts; --ask RUN talks to a trained
model; --scores FILE --run RUN reads a judge's scores of RUN/answers.json; python -m tinygpt judge trains a judge of its own, and makes a
score sheet for people. --help lists every flag.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from autograd import backend
from tinygpt.cli import Progress, Report, exit_if_interrupted, prompt_lines, run, settings, table
from tinygpt.errors import InvalidInput, MissingFile
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
from tinygpt.finetuning.instructions import (
    Instruction,
    InstructionBatches,
    Style,
    check_instructions,
    encode_instructions,
    generate_answers,
    load_instructions,
    show_masked,
    split_instructions,
)
from tinygpt.finetuning.lora import LoraConfig
from tinygpt.finetuning.scoring import read_answers, read_scores, score_answers, token_f1, write_answers
from tinygpt.runs.checkpoint import Checkpoint
from tinygpt.storage.checked_json import read_json_object
from tinygpt.training.metrics import measure, plot_loss


@dataclass(frozen=True)
class InstructConfig(FinetuneConfig):
    script: ClassVar[str] = "examples/finetune_instructions.py"
    data: PathName = "doc-questions"
    """doc-questions (text that every installation has), instructions, or a json, jsonl, csv, tsv or txt file."""
    instruction_column: str = ""
    """Column of the instructions; by default guessed and reported."""
    input_column: str = ""
    """Column of the inputs, if there is one."""
    output_column: str = ""
    """Column of the answers."""
    prompt_style: Style = "phi3"
    """Prompt template: phi3 is short, alpaca is longer."""
    mask_prompt: bool = True
    """Count only answers in the loss, not prompts."""
    targets: tuple[str, ...] = ("c_attn", "c_proj", "c_fc")
    """Layers that get LoRA adapters: c_attn, attn.c_proj, c_fc, mlp.c_proj; c_proj means both."""
    fractions: tuple[float, float, float] = (0.85, 0.05, 0.1)
    truncate: bool = False
    """Cut answers that do not fit into the context; otherwise they are errors."""
    epochs: int = 4
    batch: int = 16
    """Rows per update, computed in micro-batches of at most four rows of similar lengths."""
    lr: float = 1e-3
    warmup_steps: int = 20
    test_answers: int = field(default=40, metadata=FREE)
    """Number of held-out prompts that are answered before and after; 0: all."""
    max_new_tokens: int = field(default=64, metadata=FREE)
    """Longest answer."""
    show_masked: bool = field(default=False, metadata=FREE)
    """Print one training row as the loss sees it, and exit."""
    ask: PathName = field(default="", metadata=FREE)
    """An assistant's run: type instructions and read answers, no training."""
    scores: PathName = field(default="", metadata=FREE)
    """A judge's scores of the answers in --run; no training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.test_answers < 0 or self.max_new_tokens < 1:
            raise InvalidInput(
                f"test_answers {self.test_answers}, max_new_tokens {self.max_new_tokens}: expected >= 0 and >= 1; 0 answers all test rows"
            )


def main() -> None:
    config = settings(InstructConfig(), __doc__)
    if config.ask:
        ask(Path(config.ask), config)
        return
    if config.scores:
        judged(config)
        return
    report = Report()
    print(f"backend    {backend.reason}")

    # Data, checked and split; then the model to start from.
    data = load_instructions(
        config.data,
        instruction_column=config.instruction_column,
        input_column=config.input_column,
        output_column=config.output_column,
    )
    report.say("\n           ".join([f"data       {data.source}", *data.notes]))
    parts = split_instructions(data, config.fractions, seed=config.seed)
    texts = [f"{row.instruction}\n{row.input}\n{row.output}" for row in parts.train]
    gpt, tokenizer, base = starting_point(config, texts, Progress)
    context = gpt.config.n_positions

    # As many tokens of each row as the model reads; padded to the longest of each batch.
    style, places = config.prompt_style, {name: [f"{config.data}: {row.place}" for row in rows] for name, rows in vars(parts).items()}
    training = encode_instructions(parts.train, tokenizer, context, style=style, truncate=True, places=places["train"])
    limit, cut = length_limit(config, context + 1, [len(row.ids) + row.n_cut for row in training])  # the last token is only predicted
    sequences = {
        name: encode_instructions(rows, tokenizer, limit - 1, style=style, truncate=cut, places=places[name])
        for name, rows in vars(parts).items()
    }
    every_sequence = [sequence for some in sequences.values() for sequence in some]
    lengths = [len(sequence.ids) + sequence.n_cut for sequence in every_sequence]
    report.say(table("data", check_instructions(parts.train + parts.validation + parts.test, lengths, context + 1)))
    masked = picture(sequences["train"][:4], tokenizer, config.mask_prompt)
    if config.show_masked:
        Progress(1).console.print(masked)
        return
    lora = LoraConfig(config.rank, config.alpha, config.lora_dropout, config.targets)
    adapter = set_trainable(gpt, config.trainable, lora, config.seed)
    batch = min(config.batch, len(parts.train))
    micro_batch = next(n for n in (4, 3, 2, 1) if batch % n == 0)
    plan = training_plan(config, len(parts.train), batch, micro_batch, context)
    a_run = open_run(config, base, tokenizer, adapter, fingerprint(vars(parts)), data_source=data.source)
    directory = a_run.path
    report.say(
        f"split by seed {config.seed}: {len(parts.train):,} training, {len(parts.validation):,} validation, {len(parts.test):,} test rows; "
        f"{sum(sequence.n_cut > 0 for sequence in every_sequence)} answers cut at {limit} tokens; base {base}"
    )
    report.say("one training row as the loss sees it\n" + masked.plain)

    # Before training: loss and answers on rows that are never trained on.
    train, validation, test = (InstructionBatches(sequences[name], config.mask_prompt) for name in ("train", "validation", "test"))
    drawn = np.random.default_rng(config.seed).permutation(len(parts.test))[: config.test_answers or None]
    asked = [parts.test[i] for i in sorted(drawn)]
    expected = [row.output for row in asked]

    def score() -> tuple[float, list[str]]:
        replies = generate_answers(gpt, tokenizer, asked, style=config.prompt_style, max_new_tokens=config.max_new_tokens)
        return measure(gpt, test, config.batch).nats, replies

    loss_before, before = score()
    print(f"\nbefore     held-out loss {loss_before:.3f} nats per token; {score_answers(before, expected)}")

    # Training.
    print(f"\ntraining   {config.trainable}: {n_trainable(gpt):,} of {gpt.n_parameters():,} weights, {plan.steps} updates of {batch} rows")

    with Progress(plan.steps) as progress:
        result = fit(gpt, train, validation, plan, progress, a_run, config.override)
    exit_if_interrupted(result, f"no report yet; resume with: python {config.script} --resume {directory}")

    # After training: the same rows.
    loss_after, after = score()
    write_answers(directory / "answers.json", asked, before, after)
    report.say(
        table(
            f"on {len(parts.test)} test rows: loss in nats per token of the answers; scores of {len(asked)} answers",
            {
                "before": f"{loss_before:.3f}  {score_answers(before, expected)}",
                "after": f"{loss_after:.3f}  {score_answers(after, expected)}",
                "loss": f"{1 - loss_after / loss_before:.0%} lower",
            },
        )
    )
    shown = [
        f"{row.instruction}{f' [{shorten(row.input, 160)}]' if row.input.strip() else ''}\n    before    {shorten(old, 160)}\n"
        f"    after     {shorten(new, 160)}\n    expected  {shorten(row.output, 160)}\n    token F1  {token_f1(new, row.output):.2f}"
        for row, old, new in list(zip(asked, before, after, strict=True))[:8]
    ]
    report.say("held-out prompts, before and after\n\n" + "\n\n".join(shown))
    report.say(
        f"best validation loss {result.best_validation_nats:.3f} nats per token at step {result.best_step} of {result.step}; trained in "
        f"{result.seconds:.0f} s"
    )
    report.write(directory / "report.txt")
    try:
        plot_loss(result, directory / "loss.png", first_guess_nats=math.log(gpt.config.vocab_size))
    except ImportError as error:
        print(f"no picture: {error}")
    print(f"\nreport     {directory / 'report.txt'}\nnext: python examples/finetune_instructions.py --ask {directory}")


def picture(sequences: list, tokenizer, mask_prompt: bool):
    """The shortest sequence in colors, padded to the longest of them; in words too, for where there are no colors."""
    from rich.text import Text

    colors = {"prompt": "dim", "answer": "green", "end": "bold red", "padding": "dim magenta"}
    first, *_, longest = sorted([sequences[0], *sequences], key=lambda sequence: len(sequence.ids))
    n_padding = len(longest.ids) - len(first.ids)
    text = Text()
    for kind, part, counted in show_masked(first, tokenizer, mask_prompt=mask_prompt, n_padding=n_padding):
        text.append(f"[{kind}: {'counts' if counted else 'masked'}]\n", style="italic")
        text.append(part.rstrip("\n") + "\n", style=colors[kind])
    return text


def judged(config: InstructConfig) -> None:
    """What a judge gave for the answers of a run."""
    if not config.run:
        raise MissingFile("--scores: no --run, expected the answers that were judged; name their run with --run")
    answers = read_answers(config.run)
    scores = read_scores(config.scores, len(answers))
    ranked = sorted(scores, key=scores.__getitem__)
    print(f"mean score {sum(scores.values()) / len(scores):.1f} of 100 over {len(scores)} of {len(answers)} answers")
    for title, ids in (("worst", ranked[:3]), ("best", ranked[-3:][::-1])):
        print(f"\n{title}")
        for i in ids:
            print(f"  {scores[i]:5.1f}  {shorten(answers[i].row.instruction, 80)}\n         {shorten(answers[i].after, 120)}")
    print(f"\nnext: python -m tinygpt judge score {config.run} --outside {config.scores}")


def ask(directory: Path, config: InstructConfig) -> None:
    """Answers each instruction typed in, until an empty line."""
    checkpoint = Checkpoint.open(directory)
    gpt, tokenizer = checkpoint.language_model(), checkpoint.tokenizer()
    style = read_json_object(directory / "config.json").get("prompt_style")
    if style is None:
        raise InvalidInput(f"{directory}: no prompt_style in config.json, expected an assistant's run; train one without --ask")
    print("Type an instruction; an empty line ends.")
    for line in prompt_lines():
        try:
            print(" ", generate_answers(gpt, tokenizer, [Instruction(line, "")], style=style, max_new_tokens=config.max_new_tokens)[0])
        except ValueError as error:
            print(f"error: {error}")


if __name__ == "__main__":
    run(main)
