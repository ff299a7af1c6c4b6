"""Fill in masked words with an encoder: the newest run under runs/, or the one you name.

    python examples/fill_mask.py --text "Return the [MASK] of an array"
    python examples/fill_mask.py --text "The [MASK] of the [MASK] is not changed" --top-k 3
    python examples/fill_mask.py --run FacebookAI/roberta-base --text "Paris is the <mask> of France"   # pip install -e ".[hub]"

Seconds. The first needs a run: python examples/pretrain_encoder.py makes one. Prints the likeliest tokens for each mask, with their
probabilities, and the text with the likeliest of each. Published checkpoints of BERT and RoBERTa work, too: names on the hub, or directories.
BERT's vocabulary needs a library: pip install -e ".[hub,tokenizers]".
"""

import sys
from dataclasses import dataclass
from functools import partial

from autograd import backend
from tinygpt.arguments import parse_args
from tinygpt.cli import run
from tinygpt.fields import PathName
from tinygpt.inference.fill_mask import fill_in, fill_masks
from tinygpt.runs.checkpoint import Checkpoint
from tinygpt.runs.layout import newest_run
from tinygpt.weights.config_json import ENCODER, another_kind


@dataclass(frozen=True)
class FillConfig:
    text: str = ""
    """Text with a mask token for each missing word: [MASK] for our own runs and for BERT, <mask> for RoBERTa."""
    run: PathName = ""
    """A run, a checkpoint directory, or a name on the hub such as google-bert/bert-base-uncased; default: the newest encoder's run."""
    top_k: int = 5
    """How many candidates to show for each mask."""


def main() -> None:
    config = parse_args(FillConfig(), __doc__)
    say = partial(print, file=sys.stderr)
    checkpoint = Checkpoint.open(config.run or newest_run(architecture=ENCODER, note=say))
    if checkpoint.kind != ENCODER:
        raise another_kind(checkpoint.path, checkpoint.kind, ENCODER)
    model, tokenizer = checkpoint.model(), checkpoint.tokenizer()
    say(f"backend  {backend.reason}\nmodel    {checkpoint.describe()}, {model.n_parameters():,} weights\n")
    masks = fill_masks(model, tokenizer, config.text, config.top_k)
    for number, mask in enumerate(masks, start=1):
        print(f"mask {number}" if len(masks) > 1 else "mask")
        for candidate in mask:
            print(f"  {candidate.probability:6.1%}  {candidate.text!r}")
    print(fill_in(tokenizer, config.text, [mask[0] for mask in masks]))


if __name__ == "__main__":
    run(main, needs_reader=True)
