"""The same model here and in llama.cpp: logits and greedy continuations of exported GGUF files, for a random model of each family and for runs;
of encoders the vectors of tokens and texts, and a classifier's logits.

    pip install "tinygpt[gguf,tokenizers]" llama-cpp-python          # compiles llama.cpp
    python benchmarks/against_llama_cpp.py                         # random small models of each family
    python benchmarks/against_llama_cpp.py --run runs/docs-001     # and your own

llama.cpp computes with float32 weights here, and keeps keys and values in float32, where its default is float16. Differences are given relative
to the standard deviation of what is compared. Expected: about 0.00001 without GELU, and about 0.001 with it, because llama.cpp looks its values up
in a table of float16: docs/gguf.md. Half a minute; prints a line per model, writes nothing but temporary files.
"""

import argparse
import dataclasses
import importlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from autograd import backend
from tinygpt import GPT, GPTConfig
from tinygpt.cli import run
from tinygpt.data.tokenizer import BPETokenizer, Tokenizer
from tinygpt.data.tokenizer_files import load_tokenizer
from tinygpt.encoder_config import EncoderConfig
from tinygpt.errors import MissingPackage
from tinygpt.finetuning.encoder_classifier import EncoderClassifier
from tinygpt.models.encoder import Encoder
from tinygpt.models.seq2seq import Seq2Seq, translate_plain
from tinygpt.runs.checkpoint import Checkpoint
from tinygpt.runs.export import export
from tinygpt.seq2seq_config import Seq2SeqConfig

sys.path.insert(0, str(Path(__file__).parent))

from llama_cpp_vocabularies import write

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


ENCODERS = {
    "bert": ("bert-base", "bert", {}),
    "bert, GELU with tanh": ("bert-base", "bert", {"activation": "gelu"}),
    "roberta": ("roberta-base", "roberta", {}),
}
"""What is saved as the family -> (preset, vocabulary, what is changed in the preset)."""
TRANSLATORS = {"t5": ("t5-small", {}), "t5, gated, own output": ("t5-v1.1-small", {"n_decoder_layer": 2, "head_size": 24})}


def randomized(model: Any) -> Any:
    """Numbers as large as in trained models, so that attention, norms and biases matter."""
    rng = np.random.default_rng(0)
    for _, p in model.named_parameters():
        spread = 0.25 if p.ndim > 1 else 0.2
        p.data = backend.to_device((rng.standard_normal(p.shape) * spread + (p.ndim == 1) * 0.5).astype(np.float32))
    return model.eval()


def models(folder: Path) -> dict[str, Path]:
    """A random small model of each kind, with a tokenizer of that kind, saved in a directory of its own."""
    training = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    bpe = BPETokenizer.train(training, 500)
    of_kind = {kind: load_tokenizer(write(kind, folder / kind, training.split("\n"))) for kind in ("gemma", "t5", "bert")}
    found: dict[str, Path] = {}

    def add(name: str, model: Any, tokenizer: Tokenizer) -> None:
        found[name] = folder / str(len(found))
        randomized(model).save_pretrained(found[name], tokenizer)

    for name, (preset, changes) in SHAPES.items():
        tokenizer = of_kind["gemma"] if preset.startswith("gemma") else bpe
        add(name, GPT(GPTConfig.preset(preset, **{**SMALL, **changes, "vocab_size": tokenizer.n_vocab + 3})), tokenizer)
    for name, (preset, changes) in TRANSLATORS.items():
        sizes = {
            **SMALL,
            "n_embd": 64,
            "head_size": 16,
            "vocab_size": of_kind["t5"].n_vocab,
            "output_scale": 0.125 if name == "t5" else 1.0,
        }
        add(name, Seq2Seq(Seq2SeqConfig.preset(preset, **{**sizes, **changes})), of_kind["t5"])
    for name, (preset, kind, changes) in ENCODERS.items():
        tokenizer = of_kind["bert"] if kind == "bert" else roberta(folder / "roberta", training)
        config = EncoderConfig.preset(preset, **{**SMALL, **changes, "vocab_size": tokenizer.n_vocab})
        add(name, Encoder(config), tokenizer)
        if not changes:
            add(f"{name}, classifier", EncoderClassifier(Encoder(config), tokenizer, ["no", "perhaps", "yes"]), tokenizer)
    return found


def roberta(directory: Path, text: str) -> Tokenizer:
    """Byte-level BPE with RoBERTa's special tokens around a text."""
    made = BPETokenizer.train(text, 500)
    tokens = [*"<s> <pad> </s> <unk> <mask>".split(), *(made.token_bytes(id) for id in range(made.n_vocab) if id != made.eos_id)]
    special = {token: id for id, token in enumerate(tokens) if isinstance(token, str)}
    ids = {token: id for id, token in enumerate(tokens) if isinstance(token, bytes)}
    BPETokenizer(made.merges, ids=ids, special=special, eos="</s>").save(directory)
    (directory / "config.json").write_text('{"model_type": "roberta"}', encoding="utf-8")
    return load_tokenizer(directory)


@dataclasses.dataclass
class Comparison:
    """ids_equal: whether both cut the prompt into the same tokens; difference: the largest, in standard deviations of what is compared; greedy:
    tokens that both choose before the first that differs, of how many; 0 of 0 for an encoder."""

    ids_equal: bool
    difference: float
    greedy: int = 0
    n_new: int = 0


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / ours.std())


def compare(model: Any, tokenizer: Tokenizer, path: Path, n_new: int) -> Comparison:
    if isinstance(model, GPT):
        return compare_decoder(model, tokenizer, path, n_new)
    return compare_translator(model, tokenizer, path, n_new) if isinstance(model, Seq2Seq) else compare_encoder(model, tokenizer, path)


def compare_decoder(model: GPT, tokenizer: Tokenizer, path: Path, n_new: int) -> Comparison:
    n_ctx = model.config.n_positions
    theirs = llama_cpp().Llama(str(path), n_ctx=n_ctx, n_batch=n_ctx, logits_all=True, verbose=False, n_threads=1, type_k=0, type_v=0)
    ids = tokenizer.encode_from_start(PROMPT)
    ids_equal = theirs.tokenize(PROMPT.encode(), add_bos=True, special=False) == ids
    ids = ids[: n_ctx - n_new]
    theirs.eval(ids)
    expected = np.array(theirs.scores[: len(ids)])
    ours = backend.to_host(model(np.array([ids])).data)[0]
    chosen = model.generate(np.array([ids]), max_new_tokens=n_new, temperature=0.0)[0][len(ids) :]
    agreed = 0
    for id in chosen:
        if int(np.argmax(theirs.scores[theirs.n_tokens - 1])) != id:
            break
        agreed += 1
        theirs.eval([int(id)])
    return Comparison(ids_equal, difference(ours, expected), agreed, len(chosen))


def compare_translator(model: Seq2Seq, tokenizer: Tokenizer, path: Path, n_new: int) -> Comparison:
    """llama.cpp reads the source with llama_encode, and the target, which begins with the decoder's start token, with llama_decode."""
    c, n_ctx = llama_cpp(), model.config.n_positions
    theirs = c.Llama(str(path), n_ctx=n_ctx, n_batch=n_ctx, n_ubatch=n_ctx, verbose=False, n_threads=1, type_k=0, type_v=0)
    context, source = theirs._ctx.ctx, tokenizer.encode_wrapped(PROMPT).ids  # its class has no encoder
    ids_equal = theirs.tokenize(PROMPT.encode(), add_bos=True, special=False) == source
    assert c.llama_encode(context, batch(source)) == 0
    chosen = translate_plain(model, source, n_new)
    target, largest, agreed, equal = [c.llama_model_decoder_start_token(theirs.model)], 0.0, 0, True
    for id in chosen:
        assert c.llama_decode(context, batch(target[-1:])) == 0
        expected = np.ctypeslib.as_array(c.llama_get_logits_ith(context, -1), (model.config.vocab_size,))
        largest = max(largest, difference(backend.to_host(model([source], [target]).data)[0, -1], expected))
        equal = equal and int(expected.argmax()) == id
        agreed += equal
        target.append(id)
    return Comparison(ids_equal, largest, agreed, len(chosen))


def compare_encoder(model: Encoder | EncoderClassifier, tokenizer: Tokenizer, path: Path) -> Comparison:
    """The vectors of all tokens, their mean, and the first one; of a classifier its logits."""
    c, n_ctx = llama_cpp(), model.config.n_positions
    ids = tokenizer.encode_wrapped(PROMPT).ids[:n_ctx]
    hidden = None if isinstance(model, EncoderClassifier) else backend.to_host(model.hidden([ids]).data)[0]  # (T, C)
    if hidden is None:
        wanted = {c.LLAMA_POOLING_TYPE_RANK: backend.to_host(model(np.array([ids])).data)}
    else:
        wanted = {c.LLAMA_POOLING_TYPE_NONE: hidden, c.LLAMA_POOLING_TYPE_MEAN: hidden.mean(axis=0, keepdims=True)}
        wanted[c.LLAMA_POOLING_TYPE_CLS] = hidden[:1]
    largest, ids_equal = 0.0, True
    for pooling, ours in wanted.items():
        theirs = c.Llama(
            str(path), embedding=True, pooling_type=pooling, n_ctx=n_ctx, n_batch=n_ctx, n_ubatch=n_ctx, verbose=False, n_threads=1
        )
        ids_equal = theirs.tokenize(PROMPT.encode(), add_bos=True, special=False) == ids
        assert c.llama_encode(theirs._ctx.ctx, batch(ids)) == 0
        if pooling == c.LLAMA_POOLING_TYPE_NONE:
            found = c.llama_get_embeddings(theirs._ctx.ctx)
        else:
            found = c.llama_get_embeddings_seq(theirs._ctx.ctx, 0)
        largest = max(largest, difference(ours, np.ctypeslib.as_array(found, ours.shape)))
    return Comparison(ids_equal, largest)


def batch(ids: Sequence[int]) -> Any:
    c = llama_cpp()
    tokens = (c.llama_token * len(ids))(*ids)
    made = c.llama_batch_get_one(tokens, len(ids))
    made.kept = tokens  # llama.cpp has a pointer to them
    return made


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
    print(f"{'model':<38} {'same ids':>8}  {'largest difference':>18}  greedy tokens that agree")
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, path) in enumerate({**models(Path(folder)), **{path: Path(path) for path in args.run}}.items()):
            say(name, path, Path(folder) / f"{number}.gguf", args)


def say(name: str, source: Path, path: Path, args: argparse.Namespace) -> None:
    checkpoint = Checkpoint.open(source)
    export(source, path, dtype=args.dtype)
    c = compare(checkpoint.model().eval(), checkpoint.tokenizer(), path, args.n_new)
    greedy = f"{c.greedy} of {c.n_new}" if c.n_new else "-"
    print(f"{name:<38} {'yes' if c.ids_equal else 'NO':>8}  {c.difference:>18.1e}  {greedy}", flush=True)


if __name__ == "__main__":
    run(main)
