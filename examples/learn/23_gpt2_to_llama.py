"""23. From GPT-2 to Llama, switch by switch: what each one changes in weights, arithmetic, cache, time, memory and loss.

    python examples/learn/23_gpt2_to_llama.py
    python examples/learn/23_gpt2_to_llama.py --updates 300 --rounds 7 --json switches.json    # five minutes or so: losses that mean something
    python examples/learn/23_gpt2_to_llama.py --plot switches.png                              # pictures: pip install -e ".[plot]"

Some twenty seconds. The first row is a small GPT-2; each row below adds one switch to all above it, and the last one is a Llama. All make
the same number of updates (or as many as fit into GPT-2's time) on the same batches in the same order, from one seed. Times are measured
first, in turns, row after row, several times, because machines drift; compare them within one run only.
"""

import argparse
import dataclasses
import json
import math
import time
import tracemalloc
from pathlib import Path

import numpy as np
from show import say
from train import draw, machine, smooth, train

from tinygpt import GPT, GPTConfig
from tinygpt.data.corpora import load_corpus
from tinygpt.data.tokenizer import train_tokenizer
from tinygpt.data.windows import Windows, encode_documents
from tinygpt.training.metrics import measure

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--plot", metavar="FILE", help="also draw the training losses, compared with GPT-2's, into this picture")
parser.add_argument("--json", metavar="FILE", help="also write the table and the losses into this file")
parser.add_argument("--updates", type=int, default=8, help="updates of each model (8)")
parser.add_argument("--unit", choices=("updates", "time"), default="updates", help="what each gets as much of as GPT-2 (updates)")
parser.add_argument("--rounds", type=int, default=1, help="how often the times are measured (1)")
args = parser.parse_args()

T, BATCH, NEW_TOKENS = 128, 8, 64
GPT_2 = GPTConfig.preset("laptop")  # 4 layers, 4 heads, 128 channels, context 128: that of examples/pretrain.py --recipe gpt2
SWITCHES = {
    "GPT-2": {},
    "+ RMS norm": {"norm": "rms"},
    "+ rotary positions": {"positions": "rotary"},
    "+ SiLU": {"activation": "silu"},
    "+ gated MLP": {"gated": True, "n_inner": 344},  # three matrices instead of two: 8/3 C inner channels instead of 4 C, rounded up to 8
    "+ no biases": {"qkv_bias": False, "attention_output_bias": False, "mlp_bias": False},
    "+ 2 key/value heads": {"n_kv_head": 2},
    "+ untied output": {"tie_word_embeddings": False},  # Llama 2 and 3; the small ones, Llama 3.2 and SmolLM2, stay tied
}


def flops(config):
    """Multiplications and additions of a forward pass per token: two per number of a matrix, and attention with half the context on average."""
    matrices = sum(math.prod(shape) for shape in config.block_shapes().values() if len(shape) == 2)
    attention = 2 * config.n_head * config.channels_per_head * (T + 1) // 2  # a product with each key, and one with each value
    return 2 * (config.n_layer * (matrices + attention) + config.vocab_size * config.n_embd)


def updates(model, n):
    return train(model, windows, n, batch_size=BATCH, peak=2e-3, warmup=n // 10)


def peak_megabytes(model):
    """The most that NumPy's arrays take in an update, with gradients and AdamW's moments, in addition to the weights."""
    tracemalloc.start()
    updates(model, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


corpus = load_corpus("docs")
tokenizer = train_tokenizer("bpe", [d.text for d in corpus.train], GPT_2.vocab_size)
windows, validation = (Windows(encode_documents((d.text for d in part), tokenizer), T) for part in (corpus.train, corpus.validation))
configs, curves, rows, options = {}, {}, {}, {"vocab_size": tokenizer.n_vocab}
for name, switch in SWITCHES.items():
    options |= switch
    configs[name] = dataclasses.replace(GPT_2, **options)
print("the last has Llama 2 70B's options:", configs[name].options().keys() == GPTConfig.preset("llama-2-70b").options().keys())
times, models = {name: ([], []) for name in configs}, {name: GPT(config, seed=0) for name, config in configs.items()}
for _ in range(args.rounds):
    for name, model in models.items():
        _, seconds = updates(model, 4)
        started = time.perf_counter()
        model.generate([[0] * 16], max_new_tokens=NEW_TOKENS, temperature=0.0)
        times[name][0].append(1000 * np.median(seconds))
        times[name][1].append(NEW_TOKENS / (time.perf_counter() - started))
for name, config in configs.items():
    model, (step_ms, tokens_per_s) = GPT(config, seed=0), (float(np.median(measured)) for measured in times[name])
    n = round(args.updates * np.median(times["GPT-2"][0]) / step_ms) if args.unit == "time" else args.updates
    losses, _ = updates(model, max(n, 1))
    print(f"  {name}: trained, loss of the last batch {losses[-1]:.3f}", flush=True)
    curves[name] = np.arange(1, len(losses) + 1) * args.updates / len(losses), smooth(losses, 50)
    rows[name] = {
        "weights": config.n_parameters(), "flops_per_token": flops(config), "cache_bytes_per_token": 2 * config.n_layer * config.kv_heads * config.channels_per_head * 4,
        "validation_nats": measure(model, validation, BATCH, min(args.updates, 80)).nats, "peak_mb": peak_megabytes(model),
        "step_ms": step_ms, "tokens_per_s": tokens_per_s, "updates": len(losses),
    }  # fmt: skip
print(f"\n{machine()}")
equal = f"{args.updates} updates" if args.unit == "updates" else f"as many updates as fit into the time of GPT-2's {args.updates}"
say(
    f"{equal}, {BATCH} x {T} tokens each{' (too few for the losses to mean anything)' * (args.updates < 100)}, one seed; arithmetic and cache per token; ms "
    f"an update and tokens/s of one text, medians of {args.rounds} rounds; peak memory of an update; held-out loss in nats per token"
)
print(f"\n{'':<19} {'weights':>10} {'MFLOP':>6} {'cache B':>7} {'ms':>6} {'tokens/s':>8} {'MB':>4} updates {'loss':>7} {'change':>6}")
before = next(iter(rows.values()))["validation_nats"]
for name, row in rows.items():
    nats = row["validation_nats"]
    print(
        f"{name:<19} {row['weights']:>10,} {row['flops_per_token'] / 1e6:>6.2f} {row['cache_bytes_per_token']:>7,} {row['step_ms']:>6.1f} "
        f"{row['tokens_per_s']:>8,.0f} {row['peak_mb']:>4.0f} {row['updates']:>7} {nats:>7.3f} {nats - before:>+6.3f}"
    )
    before = nats
if args.json:
    results = {"machine": machine(), "updates": args.updates, "unit": args.unit, "seed": 0, "rows": rows, "rounds": times}
    Path(args.json).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
if args.plot:
    behind = {name: (x, y - np.interp(x, *curves["GPT-2"])) for name, (x, y) in curves.items()}
    unit = "updates" if args.unit == "updates" else "updates of GPT-2 in the same time"
    draw(args.plot, behind, unit, "training loss minus GPT-2's (nats per token)", "each curve has one switch more than the one before")
