"""The same model here and in llama.cpp: logits and greedy continuations of exported GGUF files, for a random model of each family and for runs.

    pip install "tinygpt[gguf]" llama-cpp-python          # compiles llama.cpp
    python benchmarks/against_llama_cpp.py                         # random small models of each family
    python benchmarks/against_llama_cpp.py --run runs/docs-001     # and your own

llama.cpp computes with float32 weights here, and keeps keys and values in float32, where its default is float16. Differences of logits are given
relative to their standard deviation. Expected: about 0.00001 without GELU, and about 0.001 with it, because llama.cpp looks its values up in a table
of float16: docs/gguf.md. Then the rules that cut words. Half a minute; prints a line per model and rule, writes nothing but temporary files.
"""

import argparse
import dataclasses
import importlib
import tempfile
import unicodedata
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np

from autograd import backend
from tinygpt import GPT, GPTConfig
from tinygpt.cli import run
from tinygpt.data.gguf_vocabulary import PRE_TOKENIZERS
from tinygpt.data.tokenizer import BPETokenizer, Tokenizer, learn_merges
from tinygpt.errors import MissingPackage
from tinygpt.runs.checkpoint import Checkpoint
from tinygpt.runs.export import export

ROOT = Path(__file__).parent.parent
PROMPT = "A transformer reads 1234 tokens, and then it's done:\n\n    return x + attention(x)  # café, naïve 😀\n"
SMALL = {"n_layer": 3, "n_head": 4, "n_embd": 64, "n_positions": 256, "n_inner": 96}
GROUPED = {"n_kv_head": 2, "head_size": 32}
GEMMA = {**GROUPED, "embedding_scale": 8.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
SHAPES = {
    "gpt2": ("gpt2", {}),
    "gpt2, own output, no bias": ("gpt2", {"tie_word_embeddings": False, "qkv_bias": False}),
    "gpt_neox": ("pythia-14m", {}),
    "gpt_neox, tanh, one after the other": ("pythia-14m", {"activation": "gelu", "parallel_residual": False}),
    "llama": ("smollm2-135m", {"n_kv_head": 2}),
    "llama, Llama 3.1's positions, biases": (
        "llama-3.2-1b",
        {"n_kv_head": 2, "head_size": 32, "rope_scaling": LLAMA3, "qkv_bias": True, "attention_output_bias": True, "mlp_bias": True},
    ),
    "llama, positions halved": ("smollm2-135m", {"n_kv_head": 2, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "qwen2": ("qwen2.5-0.5b", {"n_kv_head": 2}),
    "qwen3": ("qwen3-0.6b", GROUPED),
    "olmo2": ("olmo-2-1b", {}),
    "gemma": ("gemma-3-270m", {**GEMMA, "qk_norm": "none", "norm_position": "pre", "attention_scale": None, "window": None, "window_pattern": "", "rope_local_theta": None, "rope_theta": 1e4}),
    "gemma2": ("gemma-3-270m", {**GEMMA, "qk_norm": "none", "rope_local_theta": None, "attention_scale": 32**-0.5, "attention_softcap": 50.0, "logit_softcap": 30.0, "window": 7, "window_pattern": "SL"}),
    "gemma3_text": ("gemma-3-270m", {**GEMMA, "attention_scale": 32**-0.5, "window": 7, "window_pattern": "SSL"}),
}  # fmt: skip
"""What is saved as the family -> (preset, what is changed in it)."""


def random_model(preset: str, changes: dict[str, object], vocab_size: int) -> GPT:
    """Numbers as large as in trained models, so that attention, norms and biases matter."""
    model, rng = GPT(GPTConfig.preset(preset, **{**SMALL, **changes, "vocab_size": vocab_size})), np.random.default_rng(0)
    for _, p in model.named_parameters():
        spread = 0.25 if p.ndim > 1 else 0.2
        p.data = backend.to_device((rng.standard_normal(p.shape) * spread + (p.ndim == 1) * 0.5).astype(np.float32))
    return model.eval()


@dataclasses.dataclass
class Comparison:
    """ids_equal: whether both cut the prompt into the same tokens; difference: of logits, largest, in standard deviations; greedy: tokens that
    both choose before the first that differs, of how many."""

    ids_equal: bool
    difference: float
    greedy: int
    n_new: int


def compare(model: GPT, tokenizer: Tokenizer, path: Path, n_new: int) -> Comparison:
    n_ctx = model.config.n_positions
    theirs = llama_cpp().Llama(str(path), n_ctx=n_ctx, n_batch=n_ctx, logits_all=True, verbose=False, n_threads=1, type_k=0, type_v=0)
    ids = tokenizer.encode_from_start(PROMPT)
    ids_equal = theirs.tokenize(PROMPT.encode(), add_bos=True, special=False) == ids
    ids = ids[: n_ctx - n_new]
    theirs.eval(ids)
    expected = np.array(theirs.scores[: len(ids)])
    ours = backend.to_host(model(np.array([ids])).data)[0]
    difference = float(np.abs(ours - expected).max() / ours.std())
    chosen = model.generate(np.array([ids]), max_new_tokens=n_new, temperature=0.0)[0][len(ids) :]
    agreed = 0
    for id in chosen:
        if int(np.argmax(theirs.scores[theirs.n_tokens - 1])) != id:
            break
        agreed += 1
        theirs.eval([int(id)])
    return Comparison(ids_equal, difference, agreed, len(chosen))


def texts() -> dict[str, list[str]]:
    """The paragraphs of the pages in docs/, and strings of letters, signs and white space of all scripts, drawn at random."""
    pages = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").rglob("*.md"))]
    rng, known = np.random.default_rng(0), [chr(c) for c in range(0x30000) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
    pieces = [*known[:128], *" \n\t' 's 'LL 12 345 the\u0301".split(" "), "  ", "\r\n"]
    one = lambda: (pool := known if rng.random() < 0.3 else pieces)[rng.integers(len(pool))]  # noqa: E731
    drawn = ["".join(one() for _ in range(rng.integers(1, 16))) for _ in range(1000)]
    return {"paragraphs": "\n\n".join(pages).split("\n\n"), "drawn": drawn}


def compare_rules(folder: Path) -> None:
    """For each rule that cuts words: of how many texts llama.cpp makes the same ids. The merges join bytes across words, too, so that a word cut
    otherwise has other ids."""
    print(f"\n{'rule':<12} texts with the same ids")
    of_kind = texts()
    uncut = Counter(text.encode() for text in of_kind["drawn"])
    merges = [pair for pair, _ in learn_merges(uncut, 600)]
    tokenizers = {name: BPETokenizer(merges, split=split) for split, name in PRE_TOKENIZERS.items()}
    for name, made in tokenizers.items():
        random_model("gpt2", {}, made.n_vocab).save_pretrained(folder / name, made)
        export(folder / name, folder / f"{name}.gguf")
        theirs = llama_cpp().Llama(str(folder / f"{name}.gguf"), vocab_only=True, verbose=False)
        counts = []
        for kind, some in of_kind.items():
            same = sum(theirs.tokenize(text.encode(), add_bos=False) == made.encode(text) for text in some)
            other = sum(any(made.encode(text) != another.encode(text) for another in tokenizers.values()) for text in some)
            counts.append(f"{same} of {len(some)} {kind}, of which {other} have other ids under another rule")
        print(f"{name:<12} {'; '.join(counts)}", flush=True)


def llama_cpp() -> ModuleType:
    try:
        return importlib.import_module("llama_cpp")
    except ImportError as error:
        raise MissingPackage("llama_cpp: not installed, expected llama.cpp to compare with; pip install llama-cpp-python") from error


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs="*", default=[], help="runs or checkpoints to compare, in addition to the random models")
    parser.add_argument("--dtype", default="float32", help="of matrices in the file (default: %(default)s)")
    parser.add_argument("--n-new", type=int, default=24, help="tokens to continue the prompt with (default: %(default)s)")
    args = parser.parse_args(argv)
    tokenizer = BPETokenizer.train((ROOT / "docs" / "training.md").read_text(encoding="utf-8"), 500)
    print(f"{'model':<38} {'same ids':>8}  {'largest difference':>18}  greedy tokens that agree")
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, (preset, changes)) in enumerate(SHAPES.items()):
            directory = Path(folder) / str(number)
            random_model(preset, changes, tokenizer.n_vocab + 3).save_pretrained(directory, tokenizer)
            say(name, directory, Path(folder) / f"{number}.gguf", args)
        for number, path in enumerate(args.run):
            say(str(path), path, Path(folder) / f"run-{number}.gguf", args)
        compare_rules(Path(folder))


def say(name: str, source: str | Path, path: Path, args: argparse.Namespace) -> None:
    checkpoint = Checkpoint.open(source)
    export(source, path, dtype=args.dtype)
    c = compare(checkpoint.language_model().eval(), checkpoint.tokenizer(), path, args.n_new)
    print(f"{name:<38} {'yes' if c.ids_equal else 'NO':>8}  {c.difference:>18.1e}  {c.greedy} of {c.n_new}", flush=True)


if __name__ == "__main__":
    run(main)
