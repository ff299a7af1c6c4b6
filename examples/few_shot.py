"""Ask a model that was only pretrained: the prompt shows the task by examples, and the likeliest answer is taken.

    python examples/few_shot.py                  # the newest run under runs/: it has read documentation only, so do not expect much
    python examples/few_shot.py --run gpt2       # GPT-2's weights: pip install -e ".[hub]"

Seconds. Prints the prompt, how likely each answer is, and what the model writes if it is not limited to the answers; once without
examples (zero-shot), once with three (few-shot). Expected: GPT-2 needs the examples to see that the answer is one word.
"""

from dataclasses import dataclass

from tinygpt.arguments import parse_args
from tinygpt.cli import run
from tinygpt.fields import PathName
from tinygpt.inference.likelihood import choose, few_shot_prompt
from tinygpt.inference.sampling import Sampling
from tinygpt.inference.text import complete
from tinygpt.runs.checkpoint import Checkpoint
from tinygpt.runs.layout import newest_run

TASK = "Is the review good or bad?"
EXAMPLES = [
    ("I loved every minute of it.", "good"),
    ("A waste of time and money.", "bad"),
    ("The actors were wonderful.", "good"),
]
ANSWERS = ("good", "bad")


@dataclass(frozen=True)
class FewShotConfig:
    query: str = "Boring, and much too long."
    """The text to ask about."""
    run: PathName = ""
    """A run, a checkpoint directory or file, or gpt2, gpt2-medium, ...; default: the newest run below runs/."""


def main() -> None:
    config = parse_args(FewShotConfig(), __doc__)
    checkpoint = Checkpoint.open(config.run or newest_run())
    model, tokenizer = checkpoint.language_model(), checkpoint.tokenizer()
    print(f"model  {checkpoint.describe()}\n")
    for examples in ([], EXAMPLES):
        prompt = few_shot_prompt(config.query, examples, task=TASK, names=("Review", "Answer"))
        print(f"--- {'few' if examples else 'zero'}-shot, {len(examples)} examples ---\n{prompt}")
        options = [f" {answer}" for answer in ANSWERS]  # the space belongs to the word, for a byte-level tokenizer
        answer, found = choose(model, tokenizer, prompt, options)
        for option, likelihood in zip(options, found, strict=True):
            print(f"  {option.strip():<6} {likelihood.nats_per_token:.2f} nats per token")
        written = complete(model, tokenizer, prompt, 12, Sampling(0.0), stop=["\n"])
        print(f"  chosen: {answer.strip()}; written freely: {written.text.strip()!r}\n")


if __name__ == "__main__":
    run(main)
