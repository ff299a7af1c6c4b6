"""Train a GPT on real text, from scratch.

    python examples/pretrain.py

Under four minutes on two CPU cores, no network: the text is the documentation that comes with NumPy and Python. Leaves a run
directory under runs/ with a checkpoint, the loss curve (loss.png) and samples. Continue with: python examples/generate.py

More: --corpus FILE_OR_FOLDER trains on your own text, --resume RUN continues a run that was stopped or killed, --help lists every flag,
AUTOGRAD_BACKEND=cupy runs on the GPU.
"""

import dataclasses
import math
import time

from autograd import backend
from tinygpt import GPT, PretrainConfig
from tinygpt.cli import Progress, exit_if_interrupted, run, settings, table
from tinygpt.data.streaming import open_corpus, texts_for_tokenizer, token_stream
from tinygpt.data.tokenizer import train_tokenizer
from tinygpt.data.windows import Windows, bigram_nats
from tinygpt.inference.text import complete
from tinygpt.parallel.local import n_processes, workers_for
from tinygpt.recipes import RECIPES
from tinygpt.runs.pretraining import begin_run, resume_from, time_note, updates_note
from tinygpt.training.arithmetic import cost_note, training_flops
from tinygpt.training.memory_budget import check as check_memory
from tinygpt.training.metrics import bits_per_byte, plot_loss
from tinygpt.training.trainer import Trainer
from tinygpt.weights.config_json import format_note

BIGRAM_TOKENS = 5_000_000  # of the corpus, for the baseline: all of it, unless the corpus is streamed


def main() -> None:
    # Flags from the command line; with --resume, the run's own settings are the defaults.
    recipes = {name: PretrainConfig(model, train, recipe=name) for name, (model, train) in RECIPES.items()}
    config = settings(recipes["tinygpt"], __doc__, recipes=recipes)
    print(f"backend    {backend.reason}")

    # Text, split into training and validation documents; a corpus too large for memory is read in pieces.
    corpus = open_corpus(config.corpus, validation_fraction=config.validation_fraction)
    print(f"corpus     {corpus.source}, fingerprint {corpus.fingerprint[:12]}")
    a_run, last = resume_from(config.resume)  # the run and its last checkpoint

    # Tokenizer, trained on the training part only (--tokenizer characters reads both parts: every character needs an id).
    started, texts = time.perf_counter(), texts_for_tokenizer(corpus, config.tokenizer)
    tokenizer = last.tokenizer() if last else train_tokenizer(config.tokenizer, texts, config.model.vocab_size)
    print(f"tokenizer  {tokenizer} in {time.perf_counter() - started:.1f} s")

    # One stream of ids for each part, and windows over it.
    train_ids, validation_ids = token_stream(corpus, "train", tokenizer), token_stream(corpus, "validation", tokenizer)
    n_bytes, context = corpus.n_bytes("validation"), config.model.n_positions
    train, validation = Windows(train_ids, context, config.train.stride or context), Windows(validation_ids, context)
    each = f"{n_bytes / len(validation_ids):.2f} bytes each"
    print(f"tokens     {len(train_ids):,} for training, {len(validation_ids):,} for validation, {each}")

    # Model and trainer, if they fit into memory. Several processes may share each micro-batch (tinygpt/parallel/local.py).
    shape = dataclasses.replace(config.model, vocab_size=tokenizer.n_vocab)
    processes = n_processes(config.train, shape.n_parameters(), context)
    micro, recompute = config.train.micro_batch, config.train.recompute
    kinds = {"optimizer": config.train.optimizer, "recompute": recompute, "accumulates": config.train.accumulation(context) > 1}
    print(f"memory     {check_memory(shape, micro, processes=processes, **kinds)}")
    model = GPT(shape, seed=config.train.seed).recompute_blocks(config.train.recompute)
    trainer = Trainer(model, config.train, train, validation, workers_for(model, config.train))
    size = f"{shape.n_layer} layers, {shape.n_head} heads, {shape.n_embd} channels, context {context}, vocabulary {shape.vocab_size}"
    print(f"model      {model.n_parameters():,} weights: {size}")
    if note := format_note(shape):
        print(f"note       {note}")
    print(f"updates    {updates_note(config.train, context, trainer.processes)}")
    sizes = sorted(
        {config.train.accumulation(context, 0), config.train.accumulation(context)}
    )  # micro-batches, before and after a batch ramp
    print(f"optimizer  {cost_note(trainer.optimizer, *(training_flops(shape, n * micro * context) for n in sizes))}")

    # The run's directory. A run that is resumed continues from its last checkpoint: weights, moments, random streams, position in the data.
    a_run = begin_run(config, corpus, tokenizer, trainer, a_run, corpus.name)

    def sample(title: str) -> None:
        # without an end token to start from, the text's first token
        prompt = "" if tokenizer.eos_id is not None else tokenizer.decode(train_ids[:1])
        text = complete(model, tokenizer, prompt, config.sample_tokens, seed=config.train.seed).text
        a_run.add_sample(title, text)
        print(f"--- {title}\n{text}\n---\n")

    print()
    if not last:
        sample("sample before training")
    # The loop is tinygpt/training/trainer.py, one update of it tinygpt/training/step.py.
    with Progress(config.train.steps, trainer.result.step) as progress:
        result = a_run.train(trainer, progress)
    exit_if_interrupted(result, f"resume with: python examples/pretrain.py --resume {a_run.path}")
    print()
    sample("sample after training")

    # Results: the validation loss compared with a uniform guess and a bigram model.
    bigram = bigram_nats(train_ids[:BIGRAM_TOKENS], validation_ids[:BIGRAM_TOKENS], shape.vocab_size)
    picture = a_run.path / "loss.png"
    report: dict[str, object] = {}
    for name, nats, more in (
        ("bigram model", bigram, ""),
        ("validation", result.best_validation_nats, f" (best, step {result.best_step})"),
    ):
        report[name] = f"{nats:.3f} nats per token, {bits_per_byte(nats, len(validation_ids), n_bytes):.3f} bits per byte{more}"
    report["time"] = time_note(result)
    report |= {"checkpoint": a_run.path / "checkpoints", "loss curve": picture}
    try:
        plot_loss(result, picture, first_guess_nats=math.log(shape.vocab_size), bigram_nats=bigram)
    except ImportError as error:
        report["loss curve"] = f"not drawn: {error}"
    print(f"{table('result', report)}\n\nnext: python examples/generate.py")


if __name__ == "__main__":
    run(main)
