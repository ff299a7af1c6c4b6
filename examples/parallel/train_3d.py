"""Train a GPT on real text with data, tensor and pipeline parallelism together.

    mpiexec -n 8 python -m mpi4py examples/parallel/train_3d.py --mesh data=2,tensor=2,pipeline=2   # pip install -e ".[mpi]"

The flags are those of examples/pretrain.py, and so are the run, its losses and its checkpoints: every command reads them. --resume RUN
continues it, on another --mesh, too. A pipeline needs several micro-batches an update: --tokens-per-update, a multiple of micro-batch x context.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from autograd import backend
from tinygpt import PretrainConfig
from tinygpt.cli import Progress, exit_if_interrupted, run, settings, table
from tinygpt.data.streaming import open_corpus, texts_for_tokenizer, token_stream
from tinygpt.data.tokenizer import train_tokenizer
from tinygpt.data.windows import Windows
from tinygpt.fields import FREE
from tinygpt.inference.text import complete
from tinygpt.parallel.communicator import world
from tinygpt.parallel.divided import MeshWorkers, make_divided
from tinygpt.parallel.mesh import Mesh, Shape, parse
from tinygpt.parallel.pipeline import bubble
from tinygpt.recipes import RECIPES
from tinygpt.runs.pretraining import begin_run, resume_from, time_note, updates_note
from tinygpt.training.metrics import bits_per_byte, plot_loss
from tinygpt.training.trainer import Trainer


@dataclass(frozen=True)
class Train3DConfig(PretrainConfig):
    """Settings of this script: those of pretraining, and the mesh."""

    script: ClassVar[str] = "examples/parallel/train_3d.py"
    mesh: str = field(default="", metadata=FREE)
    """How many ranks there are along each axis, as data=2,tensor=2,pipeline=2; together as many as mpiexec starts. Default: all along data."""
    order: Literal["1f1b", "gpipe"] = field(default="1f1b", metadata=FREE)
    """In which order a stage of the pipeline computes; 1f1b holds the activations of fewer micro-batches. The numbers are the same."""


def main() -> None:
    recipes = {name: Train3DConfig(model=model, train=train, recipe=name) for name, (model, train) in RECIPES.items()}
    config = settings(recipes["tinygpt"], __doc__, recipes=recipes)
    print(f"backend    {backend.reason}")
    mesh = Mesh(parse(config.mesh) if config.mesh else Shape(data=world().size), world())

    # Text, tokenizer and windows: the same on all ranks. Which rows of a batch a rank computes is decided in each update.
    corpus = open_corpus(config.corpus, validation_fraction=config.validation_fraction)
    a_run, last = resume_from(config.resume)
    texts = texts_for_tokenizer(corpus, config.tokenizer)
    tokenizer = last.tokenizer() if last else train_tokenizer(config.tokenizer, texts, config.model.vocab_size)
    train_ids, validation_ids = (token_stream(corpus, part, tokenizer) for part in ("train", "validation"))
    context, stride = config.model.n_positions, config.train.stride
    train, validation = Windows(train_ids, context, stride or context), Windows(validation_ids, context)
    print(f"corpus     {corpus.source}: {len(train_ids):,} tokens for training, {len(validation_ids):,} for validation")

    # Each rank makes its part of the model of one process.
    shape = dataclasses.replace(config.model, vocab_size=tokenizer.n_vocab)
    model = make_divided(shape, config.train.seed, mesh).recompute_blocks(config.train.recompute)
    workers = MeshWorkers(model, mesh, config.train.micro_batch, order=config.order, shard=config.train.shard_optimizer)
    trainer = Trainer(model, config.train, train, validation, workers)
    print(f"model      {shape.n_parameters():,} weights, {model.n_parameters():,} of them on the first rank")
    print(f"mesh       {mesh.shape}")
    waits = bubble(mesh.shape.pipeline, trainer.accumulation)
    print(f"pipeline   {trainer.accumulation} micro-batches an update, so a stage waits for at least {waits:.0%} of the time")
    print(f"updates    {updates_note(config.train, context, trainer.processes)}")

    a_run = begin_run(config, corpus, tokenizer, trainer, a_run, corpus.name)
    before = last.training.get("mesh", "one process") if last else str(mesh.shape)
    if before != str(mesh.shape):
        print(f"           on {mesh.shape} instead of {before}: the same updates, up to rounding")
    a_run.facts["mesh"] = str(mesh.shape)

    print()
    with Progress(config.train.steps, trainer.result.step) as progress:
        result = a_run.train(trainer, progress)
    joined = None if result.interrupted else model.complete()  # all ranks send their parts to the first
    exit_if_interrupted(result, f"resume with the command that started it and --resume {a_run.path}")
    assert joined is not None, "the other ranks have ended"

    prompt = "" if tokenizer.eos_id is not None else tokenizer.decode(train_ids[:1])
    text = complete(joined, tokenizer, prompt, config.sample_tokens, seed=config.train.seed).text
    a_run.add_sample("sample after training", text)
    print(f"\n--- sample after training\n{text}\n---\n")
    nats, picture = result.best_validation_nats, a_run.path / "loss.png"
    per_byte = bits_per_byte(nats, len(validation_ids), corpus.n_bytes("validation"))
    report = {
        "validation": f"{nats:.3f} nats per token, {per_byte:.3f} bits per byte (best, step {result.best_step})",
        "time": time_note(result), "checkpoint": a_run.path / "checkpoints", "loss curve": picture,
    }  # fmt: skip
    try:
        plot_loss(result, picture, first_guess_nats=math.log(shape.vocab_size))
    except ImportError as error:
        report["loss curve"] = f"not drawn: {error}"
    print(f"{table('result', report)}\n\nnext: python examples/generate.py")


if __name__ == "__main__":
    run(main)
