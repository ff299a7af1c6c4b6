"""Writes a run's model, or any checkpoint that loads here, as one GGUF file for llama.cpp and the programs built on it, or as a directory of
safetensors files in another dtype.

    python -m tinygpt export runs/docs-001 model.gguf
    python -c "from llama_cpp import Llama; print(Llama('model.gguf', verbose=False)('Returns the', max_tokens=20)['choices'][0]['text'])"
    python -m tinygpt export runs/docs-001 model --format safetensors --dtype bfloat16 --max-shard-size 5GB

Which families and tokenizers, and how far the numbers agree: docs/gguf.md. GGUF needs the extra: pip install "tinygpt[gguf]".
"""

from functools import partial
from pathlib import Path

from tinygpt.arguments import command_parser, expand_home
from tinygpt.data.gguf_vocabulary import chat_template, vocabulary_of, write_vocabulary
from tinygpt.errors import InvalidInput, PathExists
from tinygpt.runs.checkpoint import Checkpoint
from tinygpt.storage.checked_json import Json, read_json_object
from tinygpt.storage.safetensors import DTYPES
from tinygpt.weights.config_json import ENCODER, ENCODER_CLASSIFIER, ENCODER_DECODER, LANGUAGE_MODEL, another_kind
from tinygpt.weights.gguf import POOLINGS, library, write_gguf
from tinygpt.weights.gguf_targets import target_of

KNOWN = (LANGUAGE_MODEL, ENCODER, ENCODER_CLASSIFIER, ENCODER_DECODER)
"""Kinds of models that llama.cpp has."""


def export(run: str | Path, output: str | Path, *, dtype: str = "float32", which: str = "best", pooling: str = "mean") -> str:
    """Writes the GGUF file; a line that says what is in it. Raises as `Checkpoint.open`, `write_gguf` and `write_vocabulary`."""
    library()  # before a large model is read
    checkpoint, output = Checkpoint.open(run, which), Path(output)
    if checkpoint.kind not in KNOWN:
        raise another_kind(checkpoint.path, checkpoint.kind, *KNOWN)
    family, target = target_of(checkpoint.config, checkpoint.kind)
    model: Json = checkpoint.model()  # of one of KNOWN's kinds
    tokenizer = checkpoint.tokenizer()
    if checkpoint.kind == ENCODER_CLASSIFIER and model.pooling != "first":
        found, fix = f"a classifier that looks at the {model.pooling} of all tokens", "train it with --pooling first"
        raise InvalidInput(f"export: {found}, expected the first one, [CLS]; llama.cpp has no other for {family.model_type}: {fix}")
    vocabulary = vocabulary_of(tokenizer)
    name = (checkpoint.run or checkpoint.path).name
    write = partial(write_vocabulary, tokenizer=tokenizer, n_rows=checkpoint.config.vocab_size)
    n = write_gguf(output, model, write, dtype=dtype, name=name, pooling=pooling)
    cut = {"gpt2": vocabulary.pre, "llama": "SentencePiece's BPE", "t5": "T5's unigram model", "bert": "word pieces"}[vocabulary.model]
    template = "with its chat template" if chat_template(tokenizer) else "no chat template"
    said = f"{output}: {family.model_type} as {target.arch.lower()}, {n} tensors, {dtype}, {output.stat().st_size:,} bytes; "
    said += f"{tokenizer.n_vocab:,} tokens cut as {cut}, {template}"
    notes = list(vocabulary.notes)
    if getattr(checkpoint.config, "activation", "") == "gelu_exact":
        notes.insert(0, "llama.cpp computes GELU with tanh where this model has the exact one; values differ by up to 0.0005")
    return "\n".join([said, *(f"note: {note}" for note in notes)])


def export_directory(
    run: str | Path, output: str | Path, *, dtype: str = "float32", max_shard_size: int | str | None = None, which: str = "best"
) -> str:
    """Writes a new directory as `save_pretrained` does, of a model of any kind; a line that says what is in it. Raises as it does, and as
    `Checkpoint.open`."""
    checkpoint, output = Checkpoint.open(run, which), Path(output)
    if output.exists():
        raise PathExists(f"{output}: exists, expected a new directory; delete it, or choose another name")
    model: Json = checkpoint.model()
    model.save_pretrained(output, checkpoint.tokenizer(), dtype=dtype, max_shard_size=max_shard_size)
    sizes = [path.stat().st_size for path in output.glob("*.safetensors")]
    family = read_json_object(output / "config.json")["model_type"]
    return f"{output}: {family}, {dtype}, {sum(sizes):,} bytes of weights in {len(sizes)} file{'s' if len(sizes) > 1 else ''}"


def main(argv: list[str] | None = None) -> int:
    """Writes the file or directory and says what is in it; the exit code."""
    parser = command_parser("export", __doc__)
    parser.add_argument("run", help="a run, a checkpoint directory, or a name on Hugging Face's hub")
    parser.add_argument("output", help="the file or directory to write; must not exist")
    parser.add_argument(
        "--format",
        choices=("gguf", "safetensors"),
        default="gguf",
        help="a file, or a directory as save_pretrained writes it (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="of all weights; in GGUF of matrices, vectors stay float32 (default: %(default)s)",
    )
    parser.add_argument("--max-shard-size", help="with safetensors: several files where there are more bytes than this; for instance 5GB")
    parser.add_argument("--which", choices=("best", "last"), default="best", help="which checkpoint of a run (default: %(default)s)")
    parser.add_argument(
        "--pooling",
        choices=POOLINGS,
        default="mean",
        help="an encoder's vector of a text: of its tokens' vectors the mean, the first, or none, which leaves one per token (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    run, output = expand_home(args.run), expand_home(args.output)
    if args.format == "safetensors":
        said = export_directory(run, output, dtype=args.dtype, max_shard_size=args.max_shard_size, which=args.which)
    elif args.max_shard_size is not None:
        parser.error(f"--max-shard-size {args.max_shard_size}, expected it with --format safetensors; a GGUF file is one")
    else:
        said = export(run, output, dtype=args.dtype, which=args.which, pooling=args.pooling)
    print(said)
    return 0
