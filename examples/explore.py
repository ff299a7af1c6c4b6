"""Look inside a model: one prompt, one HTML page with every attention weight, prediction and gradient.

    python examples/explore.py --prompt "numpy.sort returns a sorted copy"

Seconds. Takes the newest run under runs/ (python examples/pretrain.py makes one), or the run or checkpoint directory you name, GPT-2's
included. The page needs no network and no server: open it in any browser, on a phone too.
"""

from dataclasses import dataclass
from pathlib import Path

from autograd import backend
from tinygpt.cli import flags, run
from tinygpt.inspect.explore import explore
from tinygpt.runs.checkpoint import Checkpoint
from tinygpt.runs.layout import newest_run


@dataclass(frozen=True)
class ExploreConfig:
    prompt: str = "Return a sorted copy of an array."
    """The text to look at, two tokens at least; all of it becomes part of the page."""
    run: str = ""
    """A run or checkpoint directory; default: the newest below runs/."""
    out: str = "explore.html"
    """Where the page goes."""


def main() -> None:
    config = flags(ExploreConfig(), __doc__)
    checkpoint = Checkpoint.open(config.run or newest_run())
    model, tokenizer = checkpoint.language_model(), checkpoint.tokenizer()
    print(f"backend  {backend.reason}\nmodel    {checkpoint.describe()}, {model.n_parameters():,} weights")
    data = explore(model, tokenizer, config.prompt, config.out, title=str(checkpoint.run or checkpoint.path))
    n_bytes = Path(config.out).stat().st_size
    print(f"prompt   {len(data['tokens'])} tokens, {data['loss']:.3f} nats for each that follows")
    print(f"page     {config.out}, {n_bytes / 1e6:.2f} MB: open it in a browser")


if __name__ == "__main__":
    run(main)
