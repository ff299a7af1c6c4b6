"""Train a GPT on real text, from nothing.

    python examples/pretrain.py

Under four minutes on two CPU cores, no network: the text is the documentation that comes with NumPy and Python. Leaves a run
directory under runs/ with a checkpoint, the loss curve (loss.png) and samples. Continue with: python examples/generate.py

More: --corpus FILE_OR_FOLDER trains on your own text, --resume RUN goes on where a run was stopped or killed, --help lists every flag,
AUTOGRAD_BACKEND=cupy runs on the GPU.
"""

import dataclasses
import math
import time
from typing import Any

from autograd import backend
from tinygpt import GPT, GPTConfig, PretrainConfig, TrainConfig
from tinygpt.cli import Progress, exit_if_interrupted, run, table
from tinygpt.data.streaming import open_corpus, texts_for_tokenizer, token_stream
from tinygpt.data.tokenizer import load_tokenizer, train_tokenizer
from tinygpt.data.windows import Windows, bigram_nats
from tinygpt.errors import Diverged
from tinygpt.inference.text import complete
from tinygpt.parallel.local import n_processes, workers_for
from tinygpt.runs.checkpoint import Checkpoints, load_training, new_run
from tinygpt.runs.resume import check_data, differences, settings, starting_point
from tinygpt.storage.checked_json import to_json
from tinygpt.storage.durable import replace_file
from tinygpt.training.memory_budget import check as check_memory
from tinygpt.training.metrics import MetricsFile, bits_per_byte, plot_loss
from tinygpt.training.trainer import Trainer, check_deterministic

DEFAULT = PretrainConfig(
    model=GPTConfig.preset("laptop"), train=TrainConfig(steps=2000, lr=2e-3, warmup_steps=100, micro_batch=8, eval_every=200)
)

BIGRAM_TOKENS = 5_000_000  # of the corpus, for the baseline: all of it, unless the corpus is streamed


def main() -> None:
    config = settings(DEFAULT, __doc__)
    print(f"backend    {backend.reason}")

    # Text, split into training and validation documents; what is too large for memory is read piece by piece.
    corpus = open_corpus(config.corpus, validation_fraction=config.validation_fraction)
    print(f"corpus     {corpus.source}, fingerprint {corpus.fingerprint[:12]}")
    directory, start = starting_point(config) if config.resume else (None, None)

    # Tokenizer, trained on the training part only (but an alphabet needs every character there is).
    started = time.perf_counter()
    tokenizer = (
        load_tokenizer(start)
        if start
        else train_tokenizer(config.tokenizer, texts_for_tokenizer(corpus, config.tokenizer), config.model.vocab_size)
    )
    print(f"tokenizer  {tokenizer} in {time.perf_counter() - started:.1f} s")

    # One stream of ids for each part, and windows over it.
    train_ids, validation_ids = token_stream(corpus, "train", tokenizer), token_stream(corpus, "validation", tokenizer)
    bytes_per_token = corpus.n_bytes("validation") / len(validation_ids)
    context = config.model.n_positions
    train_windows = Windows(train_ids, context, config.train.stride or context)
    validation_windows = Windows(validation_ids, context)
    print(f"tokens     {len(train_ids):,} for training, {len(validation_ids):,} for validation, {bytes_per_token:.2f} bytes each")

    # Model and trainer, if they fit into memory.
    shape = dataclasses.replace(config.model, vocab_size=tokenizer.n_vocab)
    processes = n_processes(config.train, shape.n_parameters(), context)
    print(f"memory     {check_memory(shape, config.train.micro_batch, recompute=config.train.recompute, processes=processes)}")
    model = GPT(shape, seed=config.train.seed).recompute_blocks(config.train.recompute)
    trainer = Trainer(model, config.train, train_windows, validation_windows, workers_for(model, config.train))
    print(
        f"model      {model.n_parameters():,} weights: {shape.n_layer} layers, {shape.n_head} heads, {shape.n_embd} channels, "
        f"context {context}, vocabulary {shape.vocab_size}"
    )
    print(
        f"updates    {config.train.steps}, each micro-batch {config.train.micro_batch} x accumulation {trainer.accumulation} x "
        f"context {context} = {trainer.tokens_per_update:,} tokens" + (f", shared by {processes} processes" if processes > 1 else "")
    )
    directory = directory or new_run(config.run, corpus.name)
    print(f"run        {directory}")
    metrics = MetricsFile(directory / "metrics.jsonl")

    def go_on_from(checkpoint: Any) -> dict[str, Any]:
        """Puts trainer and metrics where a checkpoint was saved."""
        training = load_training(checkpoint, trainer, other_data=config.override and bool(config.resume))
        metrics.go_back(trainer.result.step, trainer.result)
        return training

    # A resumed run goes on from its last whole checkpoint: weights, moments, random streams, position in the data, best score.
    if start:
        training = go_on_from(start)
        check_data(config, training, corpus.fingerprint, start)
        print(
            f"resume     from {start}, step {trainer.result.step:,} of {config.train.steps:,}, {trainer.result.tokens_seen:,} tokens seen"
        )
        if changed := differences(training, trainer.processes):
            print(f"           not bit for bit, because this is another environment: {changed}")
    record = dataclasses.asdict(config) | {"corpus_fingerprint": corpus.fingerprint, "corpus_source": corpus.source}
    replace_file(directory / "config.json", to_json(record))
    if config.deterministic_check:
        print(f"bits       {check_deterministic(trainer)}")
    print()

    def sample(title: str) -> str:
        prompt = "" if tokenizer.eos_id is not None else tokenizer.decode(train_ids[:1])
        text = complete(model, tokenizer, prompt, config.sample_tokens, seed=config.train.seed).text
        with (directory / "samples.txt").open("a", encoding="utf-8") as file:
            file.write(f"=== {title}\n{text}\n\n")
        return f"--- {title}\n{text}\n---\n"

    if not start:
        print(sample("sample before training"))
    with Progress(config.train.steps, trainer.result.step) as progress:
        checkpoints = Checkpoints(directory, keep=config.train.keep, note=progress.note)

        class Record:  # where the trainer's metrics and checkpoints go
            def log(self, values: dict[str, Any]) -> None:
                metrics.write(values)

            def save(self, trainer: Trainer, *, best: bool) -> None:
                state = trainer.state_dict() | {
                    "corpus_fingerprint": corpus.fingerprint,
                    "tokenizer_fingerprint": tokenizer.fingerprint(),
                }
                checkpoints.save(trainer.result.step, model, trainer.optimizer, tokenizer, state, best=best)

            def roll_back(self, trainer: Trainer) -> str:
                checkpoints.wait()
                if checkpoints.last_written is None:
                    raise Diverged("rollback: no checkpoint yet, expected one to go back to; lower --lr, or --save-every fewer updates")
                go_on_from(checkpoints.last_written)
                return str(checkpoints.last_written)

        with checkpoints.named_in_errors():
            result = trainer.run(progress, Record())
        checkpoints.finish()
    exit_if_interrupted(result, f"go on with: python examples/pretrain.py --resume {directory}")

    # What came of it.
    even_guess, bigram = (
        math.log(shape.vocab_size),
        bigram_nats(train_ids[:BIGRAM_TOKENS], validation_ids[:BIGRAM_TOKENS], shape.vocab_size),
    )
    print("\n" + sample("sample after training"))
    n_bytes = corpus.n_bytes("validation")
    report = {
        "bigram model": f"{bigram:.3f} nats per token, {bits_per_byte(bigram, len(validation_ids), n_bytes):.3f} bits per byte",
        "validation": f"{result.best_validation_nats:.3f} nats per token, "
        f"{bits_per_byte(result.best_validation_nats, len(validation_ids), n_bytes):.3f} bits per byte (best, step {result.best_step})",
        "time": f"{result.seconds / 60:.1f} minutes, {result.tokens_seen / result.seconds:,.0f} tokens/s, evaluation and saving included",
        "checkpoint": directory / "checkpoints",
    }
    try:
        plot_loss(result, directory / "loss.png", first_guess_nats=even_guess, bigram_nats=bigram)
        report["loss curve"] = directory / "loss.png"
    except ImportError as error:
        report["loss curve"] = f"not drawn: {error}"
    print(table("result", report))
    print("\nnext: python examples/generate.py")


if __name__ == "__main__":
    run(main)
