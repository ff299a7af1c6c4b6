"""Writes a run's model, or any checkpoint that loads here, as one GGUF file for llama.cpp and the programs built on it.

    python -m tinygpt export runs/docs-001 model.gguf
    python -c "from llama_cpp import Llama; print(Llama('model.gguf', verbose=False)('Returns the', max_tokens=20)['choices'][0]['text'])"

Which families and tokenizers, and how far the numbers agree: docs/gguf.md. Needs the extra: pip install "tinygpt[gguf]".
"""

from pathlib import Path

from tinygpt.arguments import command_parser, expand_home
from tinygpt.data.gguf_vocabulary import chat_template, pre_tokenizer, write_vocabulary
from tinygpt.runs.checkpoint import Checkpoint
from tinygpt.weights.gguf import DTYPES, library, target_of, write_gguf


def export(run: str | Path, output: str | Path, *, dtype: str = "float32", which: str = "best") -> str:
    """Writes the GGUF file; a line that says what is in it. Raises as `Checkpoint.open`, `write_gguf` and `write_vocabulary`."""
    library()  # before a large model is read
    checkpoint, output = Checkpoint.open(run, which), Path(output)
    model, tokenizer = checkpoint.language_model(), checkpoint.tokenizer()
    config = model.config
    pre, (family, target) = pre_tokenizer(tokenizer), target_of(config)
    name = (checkpoint.run or checkpoint.path).name
    n = write_gguf(output, model, lambda writer: write_vocabulary(writer, tokenizer, config.vocab_size), dtype=dtype, name=name)
    template = "with its chat template" if chat_template(tokenizer) else "no chat template"
    said = f"{output}: {family.model_type} as {target.arch.lower()}, {n} tensors, {dtype}, {output.stat().st_size:,} bytes; "
    said += f"{tokenizer.n_vocab:,} tokens cut as {pre}, {template}"
    if config.activation == "gelu_exact":
        said += "\nnote: llama.cpp computes GELU with tanh where this model has the exact one; values differ by up to 0.0005"
    if tokenizer.nfc:  # type: ignore[attr-defined]  # pre_tokenizer has seen that it is byte-level BPE
        said += "\nnote: llama.cpp does not bring text into Unicode's normal form C, as this tokenizer does; give it such text"
    return said


def main(argv: list[str] | None = None) -> int:
    """Writes the file and says what is in it; the exit code."""
    parser = command_parser("export", __doc__)
    parser.add_argument("run", help="a run, a checkpoint directory, or a name on Hugging Face's hub")
    parser.add_argument("output", help="the file to write; must not exist")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of matrices; vectors stay float32 (default: %(default)s)")
    parser.add_argument("--which", choices=("best", "last"), default="best", help="which checkpoint of a run (default: %(default)s)")
    args = parser.parse_args(argv)
    print(export(expand_home(args.run), expand_home(args.output), dtype=args.dtype, which=args.which))
    return 0
