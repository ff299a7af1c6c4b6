"""Write text with a trained model: the newest run under runs/, or the one you name.

    python examples/generate.py --prompt "numpy.sort"

Seconds. Streams the text as it is made, then says why it stopped and how fast it was.
"""

import time
from dataclasses import dataclass

from autograd import backend
from tinygpt.checkpoint import load, newest_run
from tinygpt.cli import flags, run
from tinygpt.generate import Sampling, TextStream


@dataclass(frozen=True)
class GenerateConfig:
    prompt: str = ""
    """Text to continue; empty starts a new document."""
    run: str = ""
    """A run or checkpoint directory; default: the newest below runs/."""
    max_new_tokens: int = 200
    """The most tokens to add."""
    temperature: float = 0.8
    """Below 1 bolder, above 1 more even, 0 always the likeliest token."""
    top_k: int = 50
    """Choose among the k likeliest tokens; 0: all."""
    top_p: float = 1.0
    """Choose among the likeliest tokens that reach this probability together."""
    stop: tuple[str, ...] = ()
    """Strings that end the text."""
    seed: int = 0
    """Another seed, another text."""


def main() -> None:
    config = flags(GenerateConfig(), __doc__)
    directory = config.run or newest_run()
    model, tokenizer = load(directory)
    print(f"backend  {backend.reason}\nmodel    {directory}, {model.n_parameters():,} weights\n")

    sampling = Sampling(config.temperature, config.top_k, config.top_p)
    stream = TextStream(model, tokenizer, config.prompt, config.max_new_tokens, sampling, stop=config.stop, seed=config.seed)
    print(config.prompt, end="", flush=True)
    started = time.perf_counter()
    for piece in stream:
        print(piece, end="", flush=True)
    seconds = time.perf_counter() - started
    print(f"\n\n[{len(stream.ids)} tokens, {len(stream.ids) / seconds:.0f} tokens/s, stopped by {stream.stop_reason}]")


if __name__ == "__main__":
    run(main)
