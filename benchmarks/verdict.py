"""The classic picture of over-fitting: GPT-2's smallest shape memorises a short story.

    python benchmarks/verdict.py                ten minutes or so, 3 GB

The Verdict with GPT-2's tokenizer, 124M shape with untied head and no qkv bias (163M weights), context 256, windows without
overlap, batch 2, 10 epochs, constant rate 4e-4, weight decay 0.1, dropout 0.1. Initial weights as PyTorch's layers draw them
(embeddings with standard deviation 1, matrices uniform within 1 / sqrt(inputs)), not GPT-2's 0.02: in 90 updates a model that
starts so small does not get around to memorising. The training loss falls below 1 while the best validation
loss stays near 6: far too many weights for five thousand tokens. GPT-2's tokenizer needs the network once, or TIKTOKEN_CACHE_DIR.
"""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autograd.backend import to_device
from tinygpt import GPT, GPTConfig, TrainConfig
from tinygpt.arguments import parse_args
from tinygpt.cli import Progress, run, table
from tinygpt.data.corpora import load_corpus
from tinygpt.data.tokenizer import gpt2_tokenizer
from tinygpt.data.windows import Windows
from tinygpt.fields import PathName
from tinygpt.inference.sampling import Sampling
from tinygpt.inference.text import complete
from tinygpt.training.metrics import measure, plot_loss
from tinygpt.training.trainer import Trainer


@dataclass(frozen=True)
class Config:
    epochs: int = 10
    """Passes over the training windows."""
    output: PathName = "benchmarks/results"
    """Directory of the report and the picture."""


def main() -> None:
    config = parse_args(Config(), __doc__)
    tokenizer = gpt2_tokenizer()
    corpus = load_corpus("the-verdict")
    ids = [tokenizer.encode_array(documents[0].text) for documents in (corpus.train, corpus.validation)]
    shape = GPTConfig.preset("gpt2", n_positions=256, dropout=0.1, tie_word_embeddings=False, qkv_bias=False)
    train, validation = (Windows(part, 256) for part in ids)
    per_epoch = len(train) // 2
    training = TrainConfig(
        steps=config.epochs * per_epoch, lr=4e-4, final_lr_fraction=1.0, warmup_steps=0, betas=(0.9, 0.999), weight_decay=0.1, max_norm=0.0, micro_batch=2,
        eval_every=per_epoch, log_every=1, seed=123,
    )  # fmt: skip
    model = GPT(shape, seed=123)
    draw_as_pytorch(model, np.random.default_rng(123))
    trainer = Trainer(model, training, train, validation)
    print(
        f"{model.n_parameters():,} weights, {len(ids[0]):,} tokens for training, {len(ids[1]):,} for validation, {per_epoch} updates an epoch"
    )
    with Progress(training.steps) as progress:
        result = trainer.run(progress)
    text = complete(model, tokenizer, "Every effort moves you", 40, Sampling(temperature=0)).text
    last_epoch = [loss for _, loss in result.train_curve[-per_epoch:]]
    report = {
        "training_nats": round(measure(model, train, 2).nats, 3),
        "training_nats_last_epoch_with_dropout": round(sum(last_epoch) / len(last_epoch), 3),
        "best_validation_nats": round(result.best_validation_nats, 3),
        "best_epoch": result.best_step / per_epoch,
        "last_validation_nats": round(result.last_validation_nats, 3),
        "minutes": round(result.seconds / 60, 1),
        "greedy_text": "Every effort moves you" + text,
        "date": time.strftime("%Y-%m-%d"),
    }
    print(table("The Verdict, 163M weights", report))
    directory = Path(config.output)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "verdict.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    plot_loss(result, directory / "verdict.png", first_guess_nats=math.log(shape.vocab_size))


def draw_as_pytorch(model: GPT, rng: np.random.Generator) -> None:
    """PyTorch's default initial weights: embeddings normal with deviation 1, linear layers uniform within 1 / sqrt(inputs), biases too."""
    for name, p in model.named_parameters():
        if name in ("wte.weight", "wpe.weight"):
            values = rng.standard_normal(p.shape, dtype=np.float32)
        elif ".ln_" in name or name.startswith("ln_f"):
            continue
        else:
            n_inputs = shape_in(model, name, p.shape)
            values = rng.uniform(-1, 1, p.shape).astype(np.float32) / math.sqrt(n_inputs)
        p.data[...] = to_device(values)


def shape_in(model: GPT, name: str, shape: tuple[int, ...]) -> int:
    """Inputs of the layer that a weight or bias belongs to; the head is stored (out, in)."""
    if name == "lm_head.weight":
        return shape[1]
    return dict(model.named_parameters())[name.removesuffix("bias").removesuffix("weight") + "weight"].shape[0]


if __name__ == "__main__":
    run(main)
