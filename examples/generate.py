"""Generate text with a trained model: the newest run under runs/, or the one you name.

    python examples/generate.py --prompt "numpy.sort"              # continue a text
    echo "numpy.sort" | python examples/generate.py                # the same, from standard input
    python examples/generate.py                                    # a prompt to type at; an empty line ends it
    python examples/generate.py --run gpt2 --prompt "Once upon"    # GPT-2's weights: pip install -e ".[hub]"
    python examples/generate.py --prompt "numpy.sort" --color --alternatives 3

Seconds. Prints the text as it is generated; then, on standard error, why it stopped and how fast it was.
"""

import math
import sys
import time
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import tyro
from rich.console import Console
from rich.style import Style
from rich.text import Text

from autograd import backend
from tinygpt import GPT
from tinygpt.arguments import parse_args
from tinygpt.cli import run
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.fields import PathName
from tinygpt.inference.decoding import TokenInfo
from tinygpt.inference.sampling import Sampling
from tinygpt.inference.text import TextStream
from tinygpt.runs.checkpoint import Checkpoint
from tinygpt.runs.layout import newest_run


@dataclass(frozen=True)
class GenerateConfig:
    prompt: str | None = None
    """Text to continue; "" starts a new document. Without it: standard input, or a prompt to type at."""
    run: PathName = ""
    """A run, a checkpoint directory or file, or gpt2, gpt2-medium, ...; default: the newest run below runs/."""
    max_new_tokens: int = 200
    """The most tokens to add."""
    temperature: float = 0.8
    """Below 1 likely tokens become likelier still (predictable text), above 1 less so (varied text); 0: always the likeliest."""
    top_k: int = 50
    """Choose among the k likeliest tokens; 0: all."""
    top_p: float = 1.0
    """Choose among the fewest likeliest tokens that together reach this probability; 1: all."""
    min_p: float = 0.0
    """Choose among tokens at least this fraction as likely as the likeliest; 0: all."""
    repetition_penalty: float = 1.0
    """Above 1: tokens that occurred already become less likely."""
    stop: tuple[str, ...] = ()
    """Strings that end the text."""
    seed: int = 0
    """Another seed, another text."""
    use_cache: bool = True
    """Keep the keys and values of earlier tokens; without it the same text, slower."""
    slide: bool = True
    """Past the context, continue with its last half; without it, an error."""
    color: Annotated[bool, tyro.conf.arg(aliases=("--colour",))] = False
    """Color each token by its probability, from red (unlikely) to green."""
    alternatives: int = 0
    """Below the text, list each token with this number of the likeliest at its position."""


def main() -> None:
    config = parse_args(GenerateConfig(), __doc__)
    say = partial(print, file=sys.stderr)
    checkpoint = Checkpoint.open(config.run or newest_run(note=say))
    model, tokenizer = checkpoint.language_model(), checkpoint.tokenizer()
    say(f"backend  {backend.reason}\nmodel    {checkpoint.describe()}, {model.n_parameters():,} weights\n")
    if config.prompt is not None:
        write(model, tokenizer, config.prompt, config)
    elif not sys.stdin.isatty():
        write(model, tokenizer, sys.stdin.read().removesuffix("\n"), config)
    else:
        while prompt := ask():
            write(model, tokenizer, prompt, config)


def ask() -> str:
    try:
        return input("\nprompt> ")
    except EOFError:  # Ctrl-D
        return ""


def write(model: GPT, tokenizer: Tokenizer, prompt: str, config: GenerateConfig) -> None:
    """Streams one continuation to standard output; remarks go to standard error."""
    sampling = Sampling(config.temperature, config.top_k, config.top_p, config.min_p, config.repetition_penalty)
    options = {"stop": config.stop, "seed": config.seed, "use_cache": config.use_cache, "slide": config.slide, "on_slide": say_slide}
    shows_tokens = config.color or config.alternatives > 0
    alternatives = config.alternatives if shows_tokens else None
    stream = TextStream(model, tokenizer, prompt, config.max_new_tokens, sampling, alternatives=alternatives, **options)
    console = Console(highlight=False, soft_wrap=True)
    print(prompt, end="", flush=True)
    started = time.perf_counter()
    n_shown = 0
    for piece in stream:
        if config.color:
            new, n_shown = stream.infos[n_shown:], len(stream.infos)
            console.print(Text(piece, style=color_of(new)), end="")
        else:
            print(piece, end="", flush=True)
    seconds = time.perf_counter() - started
    print()
    if config.alternatives:
        print(f"\n{alternatives_table(tokenizer, stream.infos)}")
    speed = f"{len(stream.ids)} tokens, {len(stream.ids) / seconds:.0f} tokens/s"
    print(f"\n[{speed}, stopped by {stream.stop_reason}]", file=sys.stderr)


def say_slide(row: int, n_kept: int) -> None:
    print(f"\n[the context is full: continuing with its last {n_kept} tokens]", file=sys.stderr)


def color_of(infos: list[TokenInfo]) -> Style:
    """Red for a probability of 1 % or less, green for 100 %, by its logarithm; of several tokens, the least likely decides."""
    least = min((info.log_prob for info in infos), default=0.0)
    share = max(0.0, 1 + least / math.log(100))
    return Style(color=f"rgb({round(220 * (1 - share))},{round(180 * share)},60)")


def alternatives_table(tokenizer: Tokenizer, infos: list[TokenInfo]) -> str:
    """A line per token: the chosen one, and the likeliest at its position, each with the model's probability before temperature."""

    def shown(id: int, log_prob: float) -> str:
        return f"{math.exp(log_prob):6.1%} {tokenizer.decode([id])!r}"

    rows = [["chosen token", "likeliest tokens at its position, likeliest first"]]
    rows += [[shown(info.id, info.log_prob), *(shown(*each) for each in info.alternatives)] for info in infos]
    width = max(len(cell) for row in rows[1:] for cell in row) if infos else 0
    return "\n".join("   ".join(cell.ljust(max(width, 12)) for cell in row).rstrip() for row in rows)


if __name__ == "__main__":
    run(main, needs_reader=True)
