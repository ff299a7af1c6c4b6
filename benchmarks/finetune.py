"""Fine-tuning's speed: classification compared with PyTorch, and a LoRA step compared with a full one.

    python benchmarks/finetune.py --what classify      # seconds; needs PyTorch (extra `bench`)
    python benchmarks/finetune.py --what lora          # about three minutes, 4 GB of memory

classify   1,000 messages (of sms-spam, or of doc-sections where that is not at hand) through the same classifier with the same weights:
           4 layers, 256 channels, 4,096 tokens, batches of 32. PyTorch takes the messages as they come, each batch padded to its longest,
           as its data loaders do; and once more sorted by length, as `GPTClassifier.logits` does by itself. Each library has a process of
           its own, and they take turns; logits are compared. Tokenizing not included.
lora       one update at GPT-2's 124M shape, batch 4, context 256: every weight, and rank 8 on c_attn. Each side has a process of its own,
           and they take turns at one update each, so that both see the same machine; memory is the process's peak.

Writes a JSON report to --output.
"""

import importlib.metadata
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from turns import Side

from autograd.limits import peak_bytes
from autograd.optim import AdamW
from autograd.threads import n_threads
from tinygpt import GPT, GPTConfig
from tinygpt.arguments import parse_args
from tinygpt.cli import run, table
from tinygpt.data.corpora import load_corpus
from tinygpt.data.tokenizer import train_tokenizer
from tinygpt.data.windows import pad
from tinygpt.errors import InvalidInput
from tinygpt.fields import PathName
from tinygpt.finetuning.classifier import GPTClassifier, encode
from tinygpt.finetuning.common import n_trainable, set_trainable
from tinygpt.finetuning.labeled import load_labeled
from tinygpt.finetuning.lora import LoraConfig


@dataclass(frozen=True)
class Config:
    what: Literal["classify", "lora"] = "classify"
    """Which of the two."""
    n_texts: int = 1000
    """classify: how many messages."""
    preset: str = "gpt2"
    """lora: the shape."""
    rounds: int = 15
    """How often each side has its turn."""
    output: PathName = ""
    """File for the report as JSON."""


# ---- classification ----------------------------------------------------------------------------------------------------------------------


def classifier(data_name: str, n_texts: int) -> tuple[GPTClassifier, list[np.ndarray]]:
    """The classifier, the same in every process, and the token ids of its texts."""
    texts = [row.text for row in load_labeled(data_name).rows[:n_texts]]
    tokenizer = train_tokenizer("bpe", [document.text for document in load_corpus("docs").train], 4096)
    shape = GPTConfig(n_layer=4, n_head=4, n_embd=256, n_positions=256, vocab_size=tokenizer.n_vocab)
    return GPTClassifier(GPT(shape), tokenizer, ["ham", "spam"]), encode(texts, tokenizer, shape.n_positions, truncate=True)[0]


def logits(side: str, data_name: str, n_texts: int) -> Callable[[bool], tuple[float, np.ndarray]]:
    """Answers `in_order`, whether PyTorch's batches hold texts of similar length, with the seconds and the logits of all texts."""
    ours, sequences = classifier(data_name, n_texts)
    run = (lambda in_order: ours.logits(sequences)) if side == "ours" else torch_logits(ours, sequences)

    def answer(in_order: bool) -> tuple[float, np.ndarray]:
        started = time.perf_counter()
        found = run(in_order)
        return time.perf_counter() - started, found

    return answer


def torch_logits(ours: GPTClassifier, sequences: list[np.ndarray]) -> Callable[[bool], np.ndarray]:
    import torch
    from peers import TorchGPT

    torch.set_num_threads(n_threads())
    theirs = TorchGPT(ours.config).eval()
    copy_weights(ours.transformer, theirs)
    head = torch.from_numpy(ours.score.weight.numpy().copy())
    by_length = np.argsort([len(ids) for ids in sequences], kind="stable")

    def run(in_order: bool) -> np.ndarray:
        order = by_length if in_order else np.arange(len(sequences))
        found = np.zeros((len(sequences), 2), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(sequences), 32):
                which = order[start : start + 32]
                ids, mask = pad([sequences[i] for i in which])
                x = theirs.wte(torch.from_numpy(ids)) + theirs.wpe(torch.arange(ids.shape[1]))
                for block in theirs.h:
                    x = block(x)
                last = theirs.ln_f(x)[torch.arange(len(ids)), torch.from_numpy(mask.sum(axis=1) - 1)]
                found[which] = (last @ head.T).numpy()
        return found

    return run


def classify(config: Config) -> dict[str, Any]:
    try:
        data_name = load_labeled("sms-spam").name
    except ConnectionError:
        data_name = "doc-sections"
    processes = {name: Side(name, logits, name, data_name, config.n_texts) for name in ("ours", "torch")}
    sides = {"ours": ("ours", False), "torch": ("torch", False), "torch_sorted": ("torch", True)}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    _, expected = processes["ours"].ask(False)
    for process, in_order in sides.values():  # the first round warms up
        np.testing.assert_allclose(processes[process].ask(in_order)[1], expected, atol=1e-4, err_msg=process)
    for _ in range(config.rounds):
        for name, (process, in_order) in sides.items():
            seconds[name].append(processes[process].ask(in_order)[0])
    for side in processes.values():
        side.close()
    rates = {name: len(expected) / statistics.median(values) for name, values in seconds.items()}
    return {
        "data": data_name,
        "texts": len(expected),
        **{f"{name}_texts_per_s": round(rate, 1) for name, rate in rates.items()},
        "ratio": round(rates["ours"] / rates["torch"], 2),
        "ratio_sorted": round(rates["ours"] / rates["torch_sorted"], 2),
        "torch": importlib.metadata.version("torch"),
    }


def copy_weights(gpt: GPT, theirs: Any) -> None:
    """Ours into peers.TorchGPT, whose linear layers are (out, in)."""
    import torch

    names = {"attn.c_attn": "c_attn", "attn.c_proj": "c_proj", "mlp.c_fc": "c_fc", "mlp.c_proj": "mlp_proj"}
    target = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, p in gpt.named_parameters():
            array = p.numpy()
            for old, new in names.items():
                if old in name:
                    name, array = name.replace(old, new), array.T
            target[name].copy_(torch.from_numpy(array.copy()))


# ---- LoRA --------------------------------------------------------------------------------------------------------------------------------


def updates(side: str, preset: str) -> Callable[[int | None], Any]:
    """Answers a number n with the seconds of n updates, and None with what the process has held."""
    gpt = GPT(GPTConfig.preset(preset))
    set_trainable(gpt, "all" if side == "full" else "lora", LoraConfig(rank=8))
    optimizer = AdamW(gpt, lr=1e-4)
    ids = np.random.default_rng(0).integers(0, gpt.config.vocab_size, (4, min(256, gpt.config.n_positions) + 1))

    def answer(n: int | None) -> Any:
        if n is None:
            return {"peak_mb": peak_bytes() / 2**20, "trainable": n_trainable(gpt), "weights": gpt.n_parameters()}
        seconds = []
        for _ in range(n):
            started = time.perf_counter()
            optimizer.zero_grad()
            gpt.loss(ids[:, :-1], ids[:, 1:]).backward()
            float(optimizer.step(max_norm=1.0))
            seconds.append(time.perf_counter() - started)
        return seconds

    return answer


def lora(config: Config) -> dict[str, Any]:
    if config.rounds < 2:
        raise InvalidInput(f"rounds: {config.rounds}, expected at least 2; a spread needs several")
    sides = {name: Side(name, updates, name, config.preset) for name in ("full", "lora")}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side.ask(2)  # the first ones fill caches and find the buffers
    for _ in range(config.rounds):
        for name, side in sides.items():
            seconds[name] += side.ask(1)
    full, thin = (side.ask(None) for side in sides.values())
    for side in sides.values():
        side.close()
    full_s, lora_s = (statistics.median(values) for values in seconds.values())
    quarters = statistics.quantiles([b / a for a, b in zip(seconds["full"], seconds["lora"], strict=True)])
    return {
        "shape": config.preset,
        "rounds": config.rounds,
        "trainable_share": round(thin["trainable"] / thin["weights"], 5),
        "full_s": round(full_s, 3),
        "lora_s": round(lora_s, 3),
        "time_ratio": round(lora_s / full_s, 3),
        "time_ratio_of_rounds": {"median": round(quarters[1], 3), "middle_half": [round(quarters[0], 3), round(quarters[2], 3)]},
        "full_peak_mb": round(full["peak_mb"]),
        "lora_peak_mb": round(thin["peak_mb"]),
        "memory_ratio": round(thin["peak_mb"] / full["peak_mb"], 3),
    }


def main() -> None:
    config = parse_args(Config(), __doc__)
    report = classify(config) if config.what == "classify" else lora(config)
    report |= {
        "machine": f"{platform.machine()}, {n_threads()} threads, Python {platform.python_version()}, NumPy {np.__version__}",
        "date": time.strftime("%Y-%m-%d"),
    }
    print(table(config.what, report))
    if config.output:
        Path(config.output).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
