"""Train an encoder on real text, from scratch: it learns to name words that are masked.

    python examples/pretrain_encoder.py

Under five minutes on two CPU cores, no network: the text is the documentation that comes with NumPy and Python. Leaves a run directory under
runs/ with a checkpoint, the loss curve (loss.png) and samples. Then: python examples/fill_mask.py --text "Return the [MASK] of an array"

More: --recipe bert is BERT's own model and masks 15 % of the tokens, --corpus FILE_OR_FOLDER trains on your own text, --resume RUN
continues a run that was stopped or killed, --help lists every flag.
"""

import dataclasses
import math
import time
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from autograd import backend
from tinygpt.cli import Progress, exit_if_interrupted, run, settings, table
from tinygpt.config import CorpusConfig, TrainConfig
from tinygpt.data.masking import ALL_MASKED, RATE, MaskBy, MaskedWindows, Masking
from tinygpt.data.neighbor_counts import Guess, NeighborCounts
from tinygpt.data.streaming import open_corpus, texts_for_tokenizer, token_stream
from tinygpt.data.tokenizer import encoder_tokenizer
from tinygpt.encoder_config import EncoderConfig
from tinygpt.errors import InvalidInput
from tinygpt.fields import FREE
from tinygpt.inference.fill_mask import fill_masks, measure_masked
from tinygpt.models import Encoder
from tinygpt.parallel.local import n_processes, workers_for
from tinygpt.recipes import ENCODER_MASKS, ENCODER_RECIPES
from tinygpt.runs.pretraining import begin_run, resume_from, time_note, updates_note
from tinygpt.training.arithmetic import cost_note, training_flops
from tinygpt.training.memory_budget import check as check_memory
from tinygpt.training.metrics import plot_loss
from tinygpt.training.trainer import Trainer

COUNTED_TOKENS, COUNTED_WINDOWS = 5_000_000, 1000  # of the corpus, for the baselines: all of it, unless the corpus is streamed


@dataclass(frozen=True)
class PretrainEncoderConfig(CorpusConfig):
    script: ClassVar[str] = "examples/pretrain_encoder.py"
    model: EncoderConfig
    train: TrainConfig
    recipe: Literal["tinygpt", "bert"] = "tinygpt"
    """What all other flags are unless they are given. tinygpt: the highest accuracy in the same minutes; bert: BERT's model, with AdamW."""
    mask_by: MaskBy = "word"
    """What is masked: any tokens, or all tokens of a word."""
    mask_rate: float = RATE
    """Share of the tokens that the model has to name in training; the recipes tinygpt: 0.3, bert: 0.15. In validation it is always 0.15."""
    sample: str = field(default="Return the [MASK] of an array.", metadata=FREE)
    """A text with a mask, filled before and after training."""


def main() -> None:
    # Flags from the command line; with --resume, the run's own settings are the defaults.
    recipes = {name: PretrainEncoderConfig(*parts, name, *ENCODER_MASKS[name]) for name, parts in ENCODER_RECIPES.items()}
    config = settings(recipes["tinygpt"], __doc__, recipes=recipes)
    print(f"backend    {backend.reason}")

    # Text, split into training and validation documents; a byte-level BPE with [PAD], [CLS], [SEP] and [MASK], trained on the first.
    corpus = open_corpus(config.corpus, validation_fraction=config.validation_fraction)
    print(f"corpus     {corpus.source}, fingerprint {corpus.fingerprint[:12]}")
    a_run, last = resume_from(config.resume)  # the run and its last checkpoint
    started, texts = time.perf_counter(), texts_for_tokenizer(corpus, "bpe")
    tokenizer = last.tokenizer() if last else encoder_tokenizer(texts, config.model.vocab_size)
    print(f"tokenizer  {tokenizer} in {time.perf_counter() - started:.1f} s")

    # One stream of ids for each part, and windows over it: [CLS] tokens [SEP], some of the tokens masked. The masks of training are other ones
    # in every epoch, and of ten chosen tokens one is shown as another, one as it is; validation shows [MASK] for each, as fill_mask.py does.
    train_ids, validation_ids = token_stream(corpus, "train", tokenizer), token_stream(corpus, "validation", tokenizer)
    context, seed = config.model.n_positions, config.train.seed
    masking = Masking(tokenizer, by=config.mask_by, rate=config.mask_rate)
    train = MaskedWindows(train_ids, context, tokenizer, masking, stride=config.train.stride, seed=seed)
    validation = MaskedWindows(validation_ids, context, tokenizer, Masking(tokenizer, by=config.mask_by, shown=ALL_MASKED))
    print(
        f"tokens     {len(train_ids):,} for training, {len(validation_ids):,} for validation; masked: {config.mask_rate:.0%}, by {config.mask_by}"
    )

    # Model and trainer, if they fit into memory. Several processes may share each micro-batch (tinygpt/parallel/local.py).
    shape = dataclasses.replace(config.model, vocab_size=tokenizer.n_vocab, pad_id=tokenizer.pad_id)
    processes = n_processes(config.train, shape.n_parameters(), context)
    micro, recompute = config.train.micro_batch, config.train.recompute
    kinds = {"optimizer": config.train.optimizer, "recompute": recompute, "accumulates": config.train.accumulation(context) > 1}
    print(f"memory     {check_memory(shape, micro, processes=processes, masked=config.mask_rate, **kinds)}")
    model = Encoder(shape, seed=seed).recompute_blocks(recompute)
    trainer = Trainer(model, config.train, train, validation, workers_for(model, config.train))
    size = f"{shape.n_layer} layers, {shape.n_head} heads, {shape.n_embd} channels, context {context}, vocabulary {shape.vocab_size}"
    print(f"model      {model.n_parameters():,} weights: {size}")
    print(f"updates    {updates_note(config.train, context, trainer.processes)}")
    tokens = [n * micro * context for n in sorted({config.train.accumulation(context, 0), config.train.accumulation(context)})]
    print(f"optimizer  {cost_note(trainer.optimizer, *(training_flops(shape, n, masked=config.mask_rate) for n in tokens))}")
    a_run = begin_run(config, corpus, tokenizer, trainer, a_run, f"{corpus.name}-encoder")

    def sample(title: str) -> None:
        try:
            masks = fill_masks(model, tokenizer, config.sample)
        except InvalidInput as error:
            print(f"--- {title}: {error}\n")
            return
        lines = [f"mask {n}: " + ", ".join(f"{c.text!r} {c.probability:.1%}" for c in mask) for n, mask in enumerate(masks, start=1)]
        a_run.add_sample(title, text := "\n".join([config.sample, *lines]))
        print(f"--- {title}\n{text}\n---\n")

    print()
    if not last:
        sample("sample before training")
    with Progress(config.train.steps, trainer.result.step, unit="nats per masked token") as progress:
        result = a_run.train(trainer, progress)
    exit_if_interrupted(result, f"resume with: python {config.script} --resume {a_run.path}")
    print()
    sample("sample after training")

    # Results: the best checkpoint's guesses at the masked tokens of the validation windows, and what counts of their neighbors make of the same.
    a_run.restore_best(trainer)
    some = np.arange(min(len(validation), COUNTED_WINDOWS))
    guesses = NeighborCounts(train_ids[:COUNTED_TOKENS], shape.vocab_size).guess(*validation.batch(some), unknown=[tokenizer.mask_id])
    better = max(guess.accuracy for guess in guesses.values())
    ours = measure_masked(model, validation)
    report: dict[str, object] = {name: shown(guess) for name, guess in guesses.items()}
    report["encoder"] = f"{shown(ours)}  ({ours.accuracy / max(better, 1e-9):.2f} x the better of both; step {result.best_step})"
    report["time"] = time_note(result)
    picture = a_run.path / "loss.png"
    report |= {"checkpoint": a_run.path / "checkpoints", "loss curve": picture}
    try:
        first, unit = math.log(shape.vocab_size), "nats per masked token"
        plot_loss(result, picture, first_guess_nats=first, bigram_nats=guesses["bigram"].nats, unit=unit)
    except ImportError as error:
        report["loss curve"] = f"not drawn: {error}"
    more = f'next: python examples/fill_mask.py --text "{config.sample}"'
    print(f"{table('result: accuracy and loss at masked tokens of validation text', report)}\n\n{more}")


def shown(guess: Guess) -> str:
    return f"{guess.accuracy:.1%}  {guess.nats:.3f} nats per masked token"


if __name__ == "__main__":
    run(main)
