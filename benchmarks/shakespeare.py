"""nanoGPT's laptop setting on tinyshakespeare: is the loss as good, and how long does it take beside PyTorch?

    python benchmarks/shakespeare.py            two minutes, or four with PyTorch installed (extra `bench`)

Characters, 4 layers, 4 heads, 128 channels, context 64, batch 12, 2,000 steps, no dropout, rate 1e-3 to 1e-4, warm-up 100, betas
0.9 and 0.99. nanoGPT's README gives 1.88 as the validation loss of this setting. Ours and PyTorch's steps are timed in turn, in
rounds, so that a drifting machine moves both.
"""

import json
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autograd.kernels.cpu.parallel import n_threads
from tinygpt import GPT, GPTConfig, TrainConfig
from tinygpt.cli import flags, run, table
from tinygpt.corpora import load_corpus
from tinygpt.data import Windows, encode_documents
from tinygpt.tokenizer import CharacterTokenizer
from tinygpt.train import Trainer, evaluate


@dataclass(frozen=True)
class Config:
    steps: int = 2000
    """Updates; nanoGPT's are 2,000."""
    output: str = "benchmarks/results/shakespeare.json"
    """Where the report goes."""


def main() -> None:
    config = flags(Config(), __doc__)
    corpus = load_corpus("tinyshakespeare")
    train_text, validation_text = (documents[0].text for documents in (corpus.train, corpus.validation))
    tokenizer = CharacterTokenizer.train(train_text + validation_text)
    shape = GPTConfig.preset("shakespeare", vocab_size=tokenizer.n_vocab)
    training = TrainConfig(steps=config.steps, lr=1e-3, warmup_steps=100, betas=(0.9, 0.99), micro_batch=12)
    train = Windows(encode_documents([train_text], tokenizer), shape.n_positions, stride=1)
    validation = Windows(encode_documents([validation_text], tokenizer), shape.n_positions)
    trainer = Trainer(GPT(shape, seed=0), training, train, validation)

    try:
        from peers import training_step

        torch_step = training_step(shape, n_threads())
    except ImportError:
        torch_step = None
    ours_s: list[float] = []
    torch_s: list[float] = []
    rng = np.random.default_rng(0)
    while trainer.result.step < config.steps:
        for _ in range(min(100, config.steps - trainer.result.step)):
            started = time.perf_counter()
            trainer.update()
            ours_s.append(time.perf_counter() - started)
        if torch_step:
            for _ in range(20):
                batch = train.batch(rng.integers(0, len(train), 12))
                started = time.perf_counter()
                torch_step(*map(np.ascontiguousarray, batch))
                torch_s.append(time.perf_counter() - started)
    started = time.perf_counter()
    loss = evaluate(trainer.model, validation, 12)
    evaluation_s = time.perf_counter() - started

    report = {
        "validation_nats": round(loss, 4),
        "validation_batches": -(-len(validation) // 12),
        "steps": config.steps,
        "training_s": round(sum(ours_s), 1),
        "evaluation_s": round(evaluation_s, 1),
        "step_ms": round(1000 * statistics.median(ours_s), 1),
        "torch_step_ms": round(1000 * statistics.median(torch_s), 1) if torch_s else None,
        "torch_training_s": round(config.steps * statistics.median(torch_s), 1) if torch_s else None,
        "machine": f"{platform.machine()}, {n_threads()} threads, Python {platform.python_version()}, NumPy {np.__version__}",
        "date": time.strftime("%Y-%m-%d"),
    }
    print(table("tinyshakespeare, nanoGPT's laptop setting", report))
    path = Path(config.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
