"""nanoGPT's laptop setting on tinyshakespeare: is the loss as good, and how long does it take beside PyTorch?

    python benchmarks/shakespeare.py            two minutes, or four with PyTorch installed (extra `bench`)

Characters, 4 layers, 4 heads, 128 channels, context 64, batch 12, 2,000 steps, no dropout, rate 1e-3 to 1e-4, warm-up 100, betas
0.9 and 0.99. nanoGPT's README gives 1.88 as the validation loss of this setting, estimated on 20 random batches. With PyTorch
installed the same model is trained there too, on the same batches; the two take turns, so that a drifting machine moves both.
"""

import json
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autograd.kernels.cpu.parallel import n_threads
from tinygpt import GPT, GPTConfig, TrainConfig
from tinygpt.arguments import parse_args
from tinygpt.cli import run, table
from tinygpt.data.corpora import load_corpus
from tinygpt.data.tokenizer import CharacterTokenizer
from tinygpt.data.windows import BatchOrder, Windows, encode_documents
from tinygpt.fields import PathName
from tinygpt.parallel.local import workers_for
from tinygpt.training.metrics import measure
from tinygpt.training.trainer import Trainer

_ROUND = 50
"""Updates that one side makes before it is the other's turn."""


@dataclass(frozen=True)
class Config:
    steps: int = 2000
    """Updates; nanoGPT's are 2,000."""
    output: PathName = "benchmarks/results/shakespeare.json"
    """Where the report goes."""


def main() -> None:
    config = parse_args(Config(), __doc__)
    corpus = load_corpus("tinyshakespeare")
    train_text, validation_text = (documents[0].text for documents in (corpus.train, corpus.validation))
    tokenizer = CharacterTokenizer.train(train_text + validation_text)
    shape = GPTConfig.preset("shakespeare", vocab_size=tokenizer.n_vocab)
    training = TrainConfig(steps=config.steps, lr=1e-3, warmup_steps=100, betas=(0.9, 0.99), micro_batch=12)
    train = Windows(encode_documents([train_text], tokenizer), shape.n_positions, stride=1)
    validation = Windows(encode_documents([validation_text], tokenizer), shape.n_positions)
    model = GPT(shape, seed=0)
    trainer = Trainer(model, training, train, validation, workers_for(model, training))

    try:
        from peers import TorchTrainer

        torch_trainer = TorchTrainer(shape, n_threads(), training.betas, training.weight_decay)
    except ImportError:
        torch_trainer = None
    torch_batches = BatchOrder(len(train), training.micro_batch, seed=training.seed + 1).batches()
    ours_s: list[float] = []
    torch_s: list[float] = []
    while trainer.result.step < config.steps:
        rates = []
        for _ in range(min(_ROUND, config.steps - trainer.result.step)):
            started = time.perf_counter()
            trainer.update()
            ours_s.append(time.perf_counter() - started)
            rates.append(trainer.optimizer.lr)
        for lr in rates if torch_trainer else ():
            started = time.perf_counter()
            ids, targets = train.batch(next(torch_batches))
            torch_trainer.update(np.ascontiguousarray(ids), np.ascontiguousarray(targets), lr)
            torch_s.append(time.perf_counter() - started)

    def whole_loss(loss_of: Any) -> float:
        """Mean over every validation window, nats per character."""
        batches = [validation.batch(which) for which in BatchOrder(len(validation), 12, shuffle=False, drop_last=False)]
        total = sum(loss_of(np.ascontiguousarray(ids), np.ascontiguousarray(targets)) * targets.size for ids, targets in batches)
        return total / sum(targets.size for _, targets in batches)

    report = {
        "validation_nats": round(measure(trainer.model, validation, 12).nats, 4),
        "validation_nats_20_batches": round(measure(trainer.model, validation, 12, 20).nats, 4),
        "training_s": round(sum(ours_s), 1),
        "step_ms": round(1000 * statistics.median(ours_s), 1),
    }
    if torch_trainer:
        report |= {
            "torch_validation_nats": round(whole_loss(torch_trainer.loss), 4),
            "torch_training_s": round(sum(torch_s), 1),
            "torch_step_ms": round(1000 * statistics.median(torch_s), 1),
        }
    report |= {
        "steps": config.steps,
        "machine": f"{platform.machine()}, {n_threads()} threads, Python {platform.python_version()}, NumPy {np.__version__}",
        "date": time.strftime("%Y-%m-%d"),
    }
    print(table("tinyshakespeare, nanoGPT's laptop setting", report))
    path = Path(config.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
