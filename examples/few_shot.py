"""Ask a model that was only pretrained: a prompt shows what is wanted by examples, and the likeliest answer is taken.

    python examples/few_shot.py                  # the newest run under runs/: it has read documentation, so do not hope for much
    python examples/few_shot.py --run gpt2       # GPT-2's weights: pip install -e ".[hub]"

Seconds. Prints the prompt, how likely each answer is, and what the model writes when it may write freely; once without examples
(zero-shot), once with three (few-shot). Expected: GPT-2 needs the examples to see that one word is wanted.
"""

from dataclasses import dataclass

from tinygpt.cli import parse_args, run
from tinygpt.config import PathName
from tinygpt.inference.likelihood import choose, few_shot_prompt
from tinygpt.inference.sampling import Sampling
from tinygpt.inference.text import complete
from tinygpt.runs.checkpoint import load, newest_run

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
    model, tokenizer = load(config.run or newest_run())
    for examples in ([], EXAMPLES):
        prompt = few_shot_prompt(config.query, examples, task=TASK, names=("Review", "Answer"))
        print(f"--- {'few' if examples else 'zero'}-shot, {len(examples)} examples ---\n{prompt}")
        options = [f" {answer}" for answer in ANSWERS]  # the blank belongs to the word, for a byte-level tokenizer
        answer, found = choose(model, tokenizer, prompt, options)
        for option, likelihood in zip(options, found, strict=True):
            print(f"  {option.strip():<6} {likelihood.nats_per_token:.2f} nats per token")
        written = complete(model, tokenizer, prompt, 12, Sampling(0.0), stop=["\n"])
        print(f"  chosen: {answer.strip()}; written freely: {written.text.strip()!r}\n")


if __name__ == "__main__":
    run(main)
