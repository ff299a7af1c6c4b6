"""The same text here and in llama.cpp: token ids under each rule that cuts words and each kind of vocabulary, and conversations under each template.

    pip install "tinygpt[gguf,tokenizers]" llama-cpp-python          # compiles llama.cpp
    python benchmarks/text_against_llama_cpp.py
    python benchmarks/text_against_llama_cpp.py --vocabularies llama.cpp/models --jinja llama.cpp/build/bin/test-chat-template

Texts are the paragraphs of the pages in docs/, strings of letters, signs and white space of all scripts drawn at random, and runs of one character.
Where ids differ, for a reason that docs/gguf.md gives or for none, is said apart. llama.cpp has templates twice: a list of known ones, written out
in C++ (llama_chat_apply_template), and an engine for Jinja, which llama-cli and llama-server use. Of the engine, llama-cpp-python compiles nothing:
in llama.cpp's own repository, `cmake --build build --target test-chat-template` makes the program that --jinja runs. There are published
vocabularies, too: of Llama 2, BERT and XLM-RoBERTa.

A minute; prints a line per rule, kind and template, writes nothing but temporary files.
"""

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np

from tinygpt import GPT, GPTConfig
from tinygpt.cli import run
from tinygpt.data.chat_templates import Message, Role, TemplateName, TurnTemplate, chat_template
from tinygpt.data.gguf_vocabulary import PRE_TOKENIZERS, vocabulary_of, write_vocabulary
from tinygpt.data.tokenizer import BPETokenizer, Tokenizer, learn_merges
from tinygpt.data.tokenizer_files import load_tokenizer
from tinygpt.weights.gguf import write_gguf

sys.path.insert(0, str(Path(__file__).parent))

from against_llama_cpp import ROOT, llama_cpp
from llama_cpp_vocabularies import KINDS, published, write, write_files

N_CONVERSATIONS = 200


def texts() -> dict[str, list[str]]:
    """By kind of text."""
    pages = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").rglob("*.md"))]
    rng, known = np.random.default_rng(0), [chr(c) for c in range(0x30000) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
    pieces = [*known[:128], *" \n\t' 's 'LL 12 345 the\u0301".split(" "), "  ", "\r\n"]
    one = lambda: (pool := known if rng.random() < 0.3 else pieces)[rng.integers(len(pool))]  # noqa: E731
    drawn = ["".join(one() for _ in range(rng.integers(1, 16))) for _ in range(1000)]
    runs = [f"a{piece * n}b" for piece in (" ", "\n", "\t", "a", "ab", "\u2581", " a") for n in range(40)]
    return {"paragraphs": "\n\n".join(pages).split("\n\n"), "drawn": drawn, "runs": runs}


Differs = Callable[[Tokenizer, str, list[int]], bool]  # given a text and llama.cpp's ids


def _bert_differs(tokenizer: Tokenizer, text: str, ids: list[int]) -> bool:
    """llama.cpp takes vertical tab and form feed for white space and U+2581 for the beginning of a word, removes enclosing and spacing marks, does
    not take Hangul apart, and knows signs and marks of newer versions of Unicode."""

    def odd(c: str) -> bool:
        new = ord(c) > 0xFFFF and unicodedata.category(c)[0] in "MPS"
        return c in "\v\f\u2581" or unicodedata.category(c) in ("Mc", "Me") or "HANGUL" in unicodedata.name(c, "") or new

    return any(map(odd, text))


def _equally_likely(tokenizer: Tokenizer, text: str, ids: list[int]) -> bool:
    """Two ways to cut a text whose scores have the same sum."""
    scores = vocabulary_of(tokenizer).scores
    assert scores is not None
    return abs(sum(scores[id] for id in ids) - sum(scores[id] for id in tokenizer.encode_wrapped(text).ids)) < 1e-3


def _names_special(tokenizer: Tokenizer, text: str, ids: list[int]) -> bool:
    """A text that spells a special token, which Hugging Face's unigram model takes for that token."""
    return any(token in text for token in tokenizer.special)


def _begins_with_blank(tokenizer: Tokenizer, text: str, ids: list[int]) -> bool:
    """Such a text gets no space in front."""
    return text.startswith((" ", "\u2581"))


def _writes_runs(tokenizer: Tokenizer, text: str, ids: list[int]) -> bool:
    """Two of the characters that stand for blanks, written as such: Gemma has a token for them."""
    return "\u2581\u2581" in text


REASONS: dict[str, Differs] = {
    "llama, later files": _begins_with_blank, "gemma": _writes_runs, "t5": _equally_likely, "t5, tokenizer.json": _names_special,
    "bert": _bert_differs, "bert, cased": _bert_differs,
}  # fmt: skip


def written(tokenizer: Tokenizer, path: Path) -> Any:
    """llama.cpp's tokenizer, from a GGUF file with a model of a few weights."""
    model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=2, n_positions=8, vocab_size=tokenizer.n_vocab))
    write_gguf(path, model, partial(write_vocabulary, tokenizer=tokenizer, n_rows=tokenizer.n_vocab))
    return llama_cpp().Llama(str(path), vocab_only=True, verbose=False)


def compare_rules(folder: Path) -> None:
    """For each rule that cuts words: of how many texts llama.cpp makes the same ids. The merges join bytes across words, too, so that a word cut
    otherwise has other ids."""
    print(f"{'rule':<20} texts with the same ids")
    of_kind = texts()
    uncut = Counter(text.encode() for text in of_kind["drawn"])
    merges = [pair for pair, _ in learn_merges(uncut, 600)]
    tokenizers = {name: BPETokenizer(merges, split=split) for split, name in PRE_TOKENIZERS.items()}
    for name, made in tokenizers.items():
        theirs = written(made, folder / f"{name}.gguf")
        counts = []
        for kind, some in of_kind.items():
            same = sum(theirs.tokenize(text.encode(), add_bos=False) == made.encode(text) for text in some)
            other = sum(any(made.encode(text) != another.encode(text) for another in tokenizers.values()) for text in some)
            counts.append(f"{same} of {len(some)} {kind}, of which {other} have other ids under another rule")
        print(f"{name:<20} {'; '.join(counts)}", flush=True)


def compare_vocabularies(folder: Path, models: str) -> None:
    """For each kind of vocabulary, and for the published ones, with what belongs around a text."""
    print(f"\n{'vocabulary':<20} tokens  texts with the same ids")
    of_kind = texts()
    lines = [line for text in of_kind["paragraphs"] for line in text.split("\n")]
    directories = {name: write(name, folder / name, lines) for name in KINDS}
    for name, files in (published(Path(models)) if models else {}).items():
        directories[f"published: {name}"] = write_files(folder / f"published {name}", files)
    for name, directory in directories.items():
        ours = load_tokenizer(directory)
        reason = REASONS.get({"published: t5": "t5, tokenizer.json"}.get(name, name.removeprefix("published: ")), lambda *_: False)
        theirs, counts = written(ours, folder / f"{directory.name}.gguf"), []
        for kind, some in of_kind.items():
            pairs = [(text, theirs.tokenize(text.encode(), add_bos=True, special=False)) for text in some]
            other = [(text, ids) for text, ids in pairs if ids != ours.encode_wrapped(text).ids]
            unknown = sum(not reason(ours, text, ids) for text, ids in other)
            counts.append(f"{len(some) - len(other)} of {len(some)} {kind}" + (f", {unknown} for no known reason" if unknown else ""))
        print(f"{name:<20} {ours.n_vocab:>6}  {'; '.join(counts)}  ({vocabulary_of(ours).model})", flush=True)


# ---- templates ---------------------------------------------------------------------------------------------------------------------------


def conversations() -> list[list[Message]]:
    """Drawn turns with what templates trip over: white space at the ends, marks as text, quotes, braces, letters of other scripts."""
    rng = np.random.default_rng(0)
    words = [
        "What does",
        "sort(a)",
        "\n",
        "\n\n",
        "  ",
        '"',
        "'",
        "\\",
        "{{ x }}",
        "{% if %}",
        "<|im_end|>",
        "<|eot_id|>",
        "User:",
        "caf\u00e9",
        "\u4e2d",
        "😀",
    ]

    def turn(role: Role) -> Message:
        return Message(role, " ".join(words[rng.integers(len(words))] for _ in range(rng.integers(1, 6))) + "?")

    found = []
    for _ in range(N_CONVERSATIONS):
        system: list[Message] = [turn("system")] if rng.random() < 0.5 else []
        turns: list[Role] = ["user", *(["assistant", "user"] * int(rng.integers(3)))]
        found.append(system + [turn(role) for role in turns])
    return found


def from_list(template: TurnTemplate, messages: list[Message]) -> str | None:
    """By llama_chat_apply_template; None where none of its known templates looks like this one."""
    c = llama_cpp()
    turns = (c.llama_chat_message * len(messages))(*(c.llama_chat_message(m.role.encode(), m.content.encode()) for m in messages))
    buffer = ctypes.create_string_buffer(100_000)
    n = c.llama_chat_apply_template(template.jinja.encode(), turns, len(messages), True, buffer, len(buffer))
    return None if n < 0 else buffer.raw[:n].decode()


def from_engine(program: str, folder: Path, template: TurnTemplate, messages: list[Message]) -> str:
    """By llama.cpp's engine for Jinja."""
    given, source, result = folder / "given.json", folder / "template.jinja", folder / "result.txt"
    turns = [{"role": m.role, "content": m.content} for m in messages]
    given.write_text(json.dumps({"messages": turns, "bos_token": "", "eos_token": "", "add_generation_prompt": True}), encoding="utf-8")
    source.write_text(template.jinja, encoding="utf-8")
    subprocess.run([program, "--no-common", "--json", given, "--output", result, source], check=True, capture_output=True)
    return result.read_bytes().decode()


def compare_templates(folder: Path, program: str) -> None:
    """Llama 3's first token is left out of the comparison with the list: there the tokenizer adds it."""
    tokenizer = BPETokenizer.train((ROOT / "docs" / "training.md").read_text(encoding="utf-8"), 300)
    turns = conversations()
    bare = [all(message.content == message.content.strip() for message in messages) for messages in turns]
    print(f"\n{'template':<20} conversations with the same text; {sum(bare)} of {len(turns)} have no white space around a turn")
    for name in get_args(TemplateName):
        template = chat_template(name, tokenizer)
        assert isinstance(template, TurnTemplate)
        ours = [template.text(messages, reply=True) for messages in turns]
        listed = [from_list(template, messages) for messages in turns]
        counts = "unknown to the list"
        if None not in listed:
            same = [our.removeprefix(template.begin) == their for our, their in zip(ours, listed, strict=True)]
            without = sum(one and plain for one, plain in zip(same, bare, strict=True))
            counts = f"{sum(same)} of {len(turns)} by the list, of those without white space {without} of {sum(bare)}"
        if program:
            found = [from_engine(program, folder, template, messages) for messages in turns]
            counts += f"; {sum(map(str.__eq__, ours, found))} of {len(turns)} by the engine"
        print(f"{name:<20} {counts}", flush=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jinja", default="", metavar="PROGRAM", help="llama.cpp's test-chat-template")
    parser.add_argument("--vocabularies", default="", metavar="FOLDER", help="models/ in llama.cpp's repository, which has published ones")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        compare_rules(Path(folder))
        compare_vocabularies(Path(folder), args.vocabularies)
        compare_templates(Path(folder), args.jinja)


if __name__ == "__main__":
    run(main)
