"""Train a GPT on real text, from nothing.

    python examples/pretrain.py

Under four minutes on two CPU cores, no network: the text is the documentation that comes with NumPy and Python. Leaves a run
directory under runs/ with a checkpoint, the loss curve (loss.png) and samples. Continue with: python examples/generate.py

More: --corpus FILE_OR_FOLDER trains on your own text, --help lists every flag, AUTOGRAD_BACKEND=cupy runs on the GPU.
"""

import dataclasses
import json
import math
import time

from autograd import backend
from tinygpt import GPT, GPTConfig, PretrainConfig, TrainConfig
from tinygpt.checkpoint import new_run, save_checkpoint
from tinygpt.cli import Progress, flags, run, table
from tinygpt.corpora import load_corpus
from tinygpt.data import Windows, bigram_nats, encode_documents
from tinygpt.generate import complete
from tinygpt.tokenizer import train_tokenizer
from tinygpt.train import MetricsFile, Trainer, bits_per_byte, plot_loss

DEFAULT = PretrainConfig(
    model=GPTConfig.preset("laptop"), train=TrainConfig(steps=2000, lr=2e-3, warmup_steps=100, micro_batch=8, eval_every=200)
)


def main() -> None:
    config = flags(DEFAULT, __doc__)
    print(f"backend    {backend.reason}")

    # Text, split into training and validation documents.
    corpus = load_corpus(config.corpus, validation_fraction=config.validation_fraction)
    print(f"corpus     {corpus.source}, fingerprint {corpus.fingerprint[:12]}")

    # Tokenizer, trained on the training part only (but an alphabet needs every character there is).
    started = time.perf_counter()
    texts = [document.text for document in corpus.train]
    validation_texts = [document.text for document in corpus.validation]
    seen = texts + validation_texts if config.tokenizer == "characters" else texts
    tokenizer = train_tokenizer(config.tokenizer, seen, config.model.vocab_size)
    print(f"tokenizer  {tokenizer} in {time.perf_counter() - started:.1f} s")

    # One stream of ids for each part, and windows over it.
    train_ids = encode_documents(texts, tokenizer)
    validation_ids = encode_documents(validation_texts, tokenizer)
    bytes_per_token = corpus.n_bytes("validation") / len(validation_ids)
    context = config.model.n_positions
    train_windows = Windows(train_ids, context, config.train.stride or context)
    validation_windows = Windows(validation_ids, context)
    print(f"tokens     {len(train_ids):,} for training, {len(validation_ids):,} for validation, {bytes_per_token:.2f} bytes each")

    # Model and trainer.
    shape = dataclasses.replace(config.model, vocab_size=tokenizer.n_vocab)
    model = GPT(shape, seed=config.train.seed).recompute_blocks(config.train.recompute)
    trainer = Trainer(model, config.train, train_windows, validation_windows)
    directory = new_run(config.run, corpus.name)
    print(
        f"model      {model.n_parameters():,} weights: {shape.n_layer} layers, {shape.n_head} heads, {shape.n_embd} channels, "
        f"context {context}, vocabulary {shape.vocab_size}"
    )
    print(
        f"updates    {config.train.steps}, each micro-batch {config.train.micro_batch} x accumulation {trainer.accumulation} x "
        f"context {context} = {trainer.tokens_per_update:,} tokens"
    )
    print(f"run        {directory}\n")
    settings = dataclasses.asdict(config) | {"corpus_fingerprint": corpus.fingerprint, "corpus_source": corpus.source}
    (directory / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def sample(title: str) -> str:
        prompt = "" if tokenizer.eos_id is not None else texts[0][:1]
        text = complete(model, tokenizer, prompt, config.sample_tokens, seed=config.train.seed).text
        with (directory / "samples.txt").open("a", encoding="utf-8") as file:
            file.write(f"=== {title}\n{text}\n\n")
        return f"--- {title}\n{text}\n---\n"

    def checkpoint(best: bool) -> None:
        progress = trainer.progress() | {"corpus_fingerprint": corpus.fingerprint}
        save_checkpoint(directory, trainer.result.step, model, trainer.optimizer, tokenizer, progress, best=best)

    print(sample("sample before training"))
    metrics = MetricsFile(directory / "metrics.jsonl")
    with Progress(config.train.steps) as progress:
        result = trainer.run(progress, checkpoint, metrics.write)

    # What came of it.
    even_guess, bigram = math.log(shape.vocab_size), bigram_nats(train_ids, validation_ids, shape.vocab_size)
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
