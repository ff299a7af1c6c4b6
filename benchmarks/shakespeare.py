"""nanoGPT's laptop setting on tinyshakespeare: is the loss as good, and how long does it take compared with PyTorch?

    python benchmarks/shakespeare.py            three minutes, or five with PyTorch installed (extra `bench`)

Characters, 4 layers, 4 heads, 128 channels, context 64, batch 12. nanoGPT's recipe: 2,000 steps, no dropout, rate 1e-3 to 1e-4, warm-up
100, betas 0.9 and 0.99; its README gives 1.88 as the validation loss, estimated on 20 random batches. With PyTorch installed the same model
is trained there too, on the same batches. Then the same size with the default run's recipe (tinygpt/recipes.py: Muon, rotary positions, a
plateau with a decay), for as many updates as fit into --share of the time that PyTorch takes (without it: that this project takes) with nanoGPT's.
All take turns, so that a drifting machine moves all of them. Losses are those of the entire validation text, in nats per character.
"""

import dataclasses
import json
import platform
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from train_step import processor

from autograd.threads import n_threads
from tinygpt import GPT, GPTConfig, TrainConfig
from tinygpt.arguments import parse_args
from tinygpt.cli import run, table
from tinygpt.data.corpora import load_corpus
from tinygpt.data.tokenizer import CharacterTokenizer
from tinygpt.data.windows import BatchOrder, Windows, encode_documents
from tinygpt.fields import PathName
from tinygpt.parallel.local import workers_for
from tinygpt.recipes import RECIPES
from tinygpt.training.metrics import measure
from tinygpt.training.schedule import learning_rate
from tinygpt.training.trainer import Trainer

_ROUND = 50
"""Updates that the side with the most makes before it is the next one's turn."""


@dataclass(frozen=True)
class Config:
    steps: int = 2000
    """Updates with nanoGPT's recipe; its own are 2,000."""
    share: float = 0.55
    """Time for the project's recipe, as a share of PyTorch's."""
    seed: int = 0
    """Of weights and data order."""
    output: PathName = "benchmarks/results/shakespeare.json"
    """Where the report goes."""


class Ours:
    """A trainer, and the seconds of each of its updates."""

    def __init__(self, shape: GPTConfig, training: TrainConfig, train: Windows) -> None:
        model = GPT(shape, seed=training.seed)
        self.trainer, self.seconds = Trainer(model, training, train, None, workers_for(model, training)), list[float]()
        self.n_updates = training.steps
        model.train()

    def update(self) -> None:
        started = time.perf_counter()
        self.trainer.update()
        self.seconds.append(time.perf_counter() - started)

    def loss(self, validation: Windows) -> float:
        return measure(self.trainer.model, validation, 12).nats


class Torch:
    """The same for PyTorch, with the same batches and learning rates."""

    def __init__(self, shape: GPTConfig, training: TrainConfig, train: Windows) -> None:
        from peers import TorchTrainer

        self.torch = TorchTrainer(shape, n_threads(), training.betas, training.weight_decay, training.seed)
        self.train, self.training = train, training
        self.batches, self.seconds = BatchOrder(len(train), training.micro_batch, seed=training.seed + 1).batches(), list[float]()
        self.n_updates = training.steps

    def update(self) -> None:
        started = time.perf_counter()
        ids, targets = (np.ascontiguousarray(a) for a in self.train.batch(next(self.batches)))
        self.torch.update(ids, targets, learning_rate(self.training, len(self.seconds)))
        self.seconds.append(time.perf_counter() - started)

    def loss(self, validation: Windows) -> float:
        batches = [validation.batch(which) for which in BatchOrder(len(validation), 12, shuffle=False, drop_last=False)]
        total = sum(self.torch.loss(*map(np.ascontiguousarray, batch)) * batch[1].size for batch in batches)
        return total / sum(targets.size for _, targets in batches)


def take_turns(sides: list[Ours | Torch]) -> None:
    """Updates all sides to their end, those with more updates in longer turns."""
    rounds = -(-max(side.n_updates for side in sides) // _ROUND)
    for number in range(1, rounds + 1):
        for side in sides:
            while len(side.seconds) < side.n_updates * number // rounds:
                side.update()


def main() -> None:
    config = parse_args(Config(), __doc__)
    corpus = load_corpus("tinyshakespeare")
    train_text, validation_text = (documents[0].text for documents in (corpus.train, corpus.validation))
    tokenizer = CharacterTokenizer.train(train_text + validation_text)
    shape = GPTConfig.preset("shakespeare", vocab_size=tokenizer.n_vocab)
    theirs = TrainConfig(steps=config.steps, lr=1e-3, warmup_steps=100, betas=(0.9, 0.99), micro_batch=12, seed=config.seed)
    train = Windows(encode_documents([train_text], tokenizer), shape.n_positions, stride=1)
    validation = Windows(encode_documents([validation_text], tokenizer), shape.n_positions)

    # How many updates of the other recipe fit into the time: by 40 of each, in turns of five.
    model, training = RECIPES["tinygpt"]
    own_shape = dataclasses.replace(shape, positions=model.positions, initializer_range=model.initializer_range)
    training = dataclasses.replace(training, micro_batch=12, seed=config.seed)
    probes: list[Ours | Torch] = [Ours(own_shape, training, train)]
    try:
        probes.append(Torch(shape, theirs, train))
    except ImportError:
        probes.append(Ours(shape, theirs, train))
    for _ in range(9):
        for probe in probes:
            for _ in range(5):
                probe.update()
    fast, slow = (statistics.median(probe.seconds[5:]) for probe in probes)
    n_updates = int(config.share * config.steps * slow / fast)

    sides: dict[str, Ours | Torch] = {
        "nanogpt": Ours(shape, theirs, train),
        "recipe": Ours(own_shape, dataclasses.replace(training, steps=n_updates), train),
    }
    if isinstance(probes[1], Torch):
        sides["torch"] = Torch(shape, theirs, train)
    for probe in probes:
        if isinstance(probe, Ours):
            probe.trainer.close()
    take_turns(list(sides.values()))
    report: dict[str, object] = {}
    for name, side in sides.items():
        report |= {
            f"{name}_validation_nats": round(side.loss(validation), 4),
            f"{name}_training_s": round(sum(side.seconds), 1),
            f"{name}_step_ms": round(1000 * statistics.median(side.seconds), 1),
            f"{name}_updates": len(side.seconds),
        }
        if isinstance(side, Ours):
            side.trainer.close()
    nanogpt = sides["nanogpt"]
    assert isinstance(nanogpt, Ours)
    report["nanogpt_validation_nats_20_batches"] = round(measure(nanogpt.trainer.model, validation, 12, 20).nats, 4)
    report |= {
        "share": round(sum(sides["recipe"].seconds) / sum((sides.get("torch") or nanogpt).seconds), 3),
        "seed": config.seed,
        "machine": f"{processor()}, {n_threads()} threads, Python {platform.python_version()}, NumPy {np.__version__}",
        "date": time.strftime("%Y-%m-%d"),
    }
    print(table("tinyshakespeare, nanoGPT's laptop setting", report))
    path = Path(config.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
