"""What fine-tuning a classifier and an assistant have in common: where to start from, which weights to train, and keeping the best ones."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from tinygpt.checkpoint import load, new_run, newest_run, read_json, save_checkpoint
from tinygpt.config import GPTConfig, TrainConfig
from tinygpt.corpora import load_corpus
from tinygpt.data import Windows, encode_documents
from tinygpt.lora import Adapter, LoraConfig, add_lora
from tinygpt.model import GPT
from tinygpt.tokenizer import Tokenizer, train_tokenizer
from tinygpt.train import Reporter, Result, Trainer

Trainable = Literal["head", "last-block", "all", "lora"]

# ---- batches -----------------------------------------------------------------------------------------------------------------------------


def pad(sequences: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of ids side by side, as long as the longest: ids (B, T) int64, and a mask (B, T) that is True for real tokens.

    Padding stands on the right and has id 0; any id would do, because nothing real looks at it.
    """
    lengths = np.array([len(ids) for ids in sequences])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(mask.shape, dtype=np.int64)
    ids[mask] = np.concatenate(sequences)
    return ids, mask


# ---- which weights -----------------------------------------------------------------------------------------------------------------------


def set_trainable(model: Any, which: Trainable, lora: LoraConfig | None = None, seed: int = 0) -> Adapter | None:
    """Freezes all weights but some. Call it before an optimizer is made.

    which   "head": a classifier's head alone; "last-block": also the last block and the final norm; "all": every weight;
            "lora": the head and thin matrices that are added to the layers named by `lora`, drawn by `seed`
    Returns the adapter of "lora", else None. Raises ValueError for another choice, and for the head of a model that has none.
    """
    has_head = hasattr(model, "score")
    if which not in get_args(Trainable) or (which == "head" and not has_head):
        legal = [choice for choice in get_args(Trainable) if has_head or choice != "head"]
        raise ValueError(f"trainable: {which!r}, expected one of {', '.join(legal)}; fewer weights train faster, more fit better")
    adapter = add_lora(model, lora, seed) if which == "lora" else None
    thin = () if adapter is None else tuple(adapter.layers)
    inside = "transformer." if has_head else ""
    last_block = (f"{inside}h.{model.config.n_layer - 1}.", f"{inside}ln_f.")
    prefixes = {"head": (), "last-block": last_block, "all": ("",), "lora": ()}[which]
    for name, p in model.named_parameters():
        p.requires_grad = name.startswith((*prefixes, "score.")) or (name.rpartition(".")[0] in thin and ".lora_" in name)
    return adapter


def n_trainable(model: Any) -> int:
    """How many weights are not frozen."""
    return sum(p.size for p in model.parameters() if p.requires_grad)


# ---- training ----------------------------------------------------------------------------------------------------------------------------


def fit(
    model: Any,
    train: Any,
    validation: Any,
    config: TrainConfig,
    reporter: Reporter,
    *,
    on_checkpoint: Callable[[Trainer, bool], None] | None = None,
    on_metrics: Callable[[dict[str, Any]], None] | None = None,
) -> Result:
    """Trains, and leaves the model with the weights of the best validation loss. Losses are in nats per target (a text or a token).

    train, validation   `tinygpt.train.Batches`
    config              micro_batch counts texts; `patience` stops early
    on_checkpoint       called as on_checkpoint(trainer, is_best) after each evaluation
    """
    trainer = Trainer(model, config, train, validation)
    best: list[Any] = []

    def keep(is_best: bool) -> None:
        if is_best:
            best[:] = [trainer.optimizer.weight.copy()]  # all trainable weights lie in this one array
        if on_checkpoint:
            on_checkpoint(trainer, is_best)

    result = trainer.run(reporter, keep, on_metrics)
    if best:
        trainer.optimizer.weight[...] = best[0]
    return result


# ---- the model to start from -------------------------------------------------------------------------------------------------------------


def starting_point(base: str, texts: Sequence[str], pretrain: Callable[[], Path], seed: int = 0) -> tuple[GPT, Tokenizer, str]:
    """Model, tokenizer, and where they come from.

    base       a run or checkpoint; "random": random weights, with a tokenizer trained on `texts`; "": the newest pretrained run
    pretrain   called where there is no such run yet; gives the directory of one
    """
    if base == "random":
        tokenizer = train_tokenizer("bpe", texts, 2048)
        return GPT(GPTConfig.preset("laptop", vocab_size=tokenizer.n_vocab), seed=seed), tokenizer, "random weights"
    try:
        directory = Path(base) if base else newest_run(accept=is_pretrained)
    except FileNotFoundError:
        directory = pretrain()
    return *load(directory), str(directory)


def is_pretrained(run: Path) -> bool:
    """Whether a run is no fine-tuning: those note the model that they started from."""
    return not (run / "config.json").is_file() or "base" not in read_json(run / "config.json")


def pretrain_small(steps: int, reporter: Callable[[int], Any], seed: int = 0) -> Path:
    """A minute's worth of examples/pretrain.py, where every step is explained: a small model of the default corpus. Returns its run.

    reporter   makes a context manager that gives a `Reporter`, from the number of steps
    """
    corpus = load_corpus("docs")
    texts = [document.text for document in corpus.train]
    tokenizer = train_tokenizer("bpe", texts, 2048)
    shape = GPTConfig(n_layer=4, n_head=4, n_embd=128, n_positions=128, vocab_size=tokenizer.n_vocab)
    settings = TrainConfig(steps=steps, lr=2e-3, eval_every=steps, log_every=max(steps // 10, 1), eval_batches=20, seed=seed)
    validation = Windows(encode_documents([document.text for document in corpus.validation], tokenizer), shape.n_positions)
    trainer = Trainer(GPT(shape, seed=seed), settings, Windows(encode_documents(texts, tokenizer), shape.n_positions), validation)
    directory = new_run(None, "docs-small")
    with reporter(steps) as progress:
        trainer.run(progress)
    save_checkpoint(directory, trainer.result.step, trainer.model, trainer.optimizer, tokenizer, trainer.progress(), best=True)
    return directory
