"""Instruction tuning: pairs of instruction and answer, the prompts that they are put into, and which tokens the loss counts.

    data = load_instructions("doc-questions")                # what every installation already has; no network
    parts = split_instructions(data, seed=0)                 # parts.train, parts.validation, parts.test
    sequences = encode_instructions(parts.train, tokenizer, gpt.config.n_positions, style="alpaca")
    fit(gpt, InstructionBatches(sequences), ...)             # tinygpt.finetuning.common
    generate_answers(gpt, tokenizer, parts.test, style="alpaca")   # what the model says now; tinygpt.finetuning.scoring scores it

A pretrained model continues texts; after this it answers. What it learns is mostly the form: where the answer begins, how long it is,
and that it ends. So by default the loss counts the answer and its end token alone, and the prompt is only read.
"""

import dataclasses
import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Unpack, get_args

import numpy as np

from tinygpt.data.corpora import Document
from tinygpt.data.rows import Table, check_column, find_file, read_table, text_in
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.errors import InvalidInput
from tinygpt.finetuning.masked import Masked, MaskedBatches
from tinygpt.finetuning.rows import Data, Shares, Split, complete_rows, group_equal, plain, rows_of_docs, split_groups
from tinygpt.inference.decoding import DecodingOptions
from tinygpt.inference.sampling import Sampling
from tinygpt.inference.text import complete_all
from tinygpt.models.gpt import GPT
from tinygpt.storage.checked_json import Json

COLUMN_NAMES = {
    "instruction": ("instruction", "question", "prompt", "query"),
    "input": ("input", "context"),
    "output": ("output", "answer", "response", "completion"),
}


@dataclass(frozen=True)
class Instruction:
    """What is asked, perhaps with an input that it is about, and what to answer; place and group: `tinygpt.finetuning.rows.Located`."""

    instruction: str
    output: str
    input: str = ""
    place: str = ""
    group: int = -1


InstructionData = Data[Instruction]


def load_instructions(
    name_or_path: str | Path, *, instruction_column: str = "", input_column: str = "", output_column: str = "",
    cache: str | Path | None = None,
) -> InstructionData:  # fmt: skip
    """Reads instructions and answers. Rows without an instruction or an answer are left out, and counted in `notes`.

    name_or_path   "doc-questions", "instructions", or a file (.json, .jsonl, .csv, .tsv, .txt; see `tinygpt.data.rows`)
    *_column       names of the columns (or keys); by default guessed, and `notes` says how. The input may be missing.
    cache          folder for downloads; by default the user's cache folder
    Raises ValueError, naming file, row, field and problem; FileNotFoundError for an unknown name; ConnectionError for a failed download.
    """
    if name_or_path == "doc-questions":
        return doc_questions()
    path, source = find_file(name_or_path, ["doc-questions", "instructions"], cache=cache)
    asked = {"instruction": instruction_column, "input": input_column, "output": output_column}
    table = read_table(path, {name for names in COLUMN_NAMES.values() for name in names}, asked.values())
    columns = _choose_columns(table, asked)

    def parse(place: str, values: dict[str, Json]) -> Instruction | None:
        fields = {key: text_in(table, place, column, values) if column else "" for key, column in columns.items()}
        row = Instruction(fields["instruction"], fields["output"], fields["input"], place)
        return row if row.instruction.strip() and row.output.strip() else None

    rows = complete_rows(table, parse, "instruction and answer", "without an instruction or an answer")
    return InstructionData(str(name_or_path), group_instructions(rows), source, notes=table.notes)


def _choose_columns(table: Table, asked: dict[str, str]) -> dict[str, str]:
    """The column of each field: the requested one, else by its name; "" if there is no input column."""
    chosen = {}
    for key, name in asked.items():
        if name:
            check_column(table, name, f"--{key}-column")
        chosen[key] = name or next((c for c in table.columns if c.casefold() in COLUMN_NAMES[key] and c not in asked.values()), "")
        if not chosen[key] and key != "input":
            found = f"{table.path}: columns {', '.join(map(repr, table.columns))}"
            rule = f"to recognize the {key} by its name ({', '.join(COLUMN_NAMES[key])})"
            raise InvalidInput(f"{found}, expected {rule}; name it with --{key}-column")
    if any(name and not asked[key] for key, name in chosen.items()):
        table.notes.append("columns guessed: " + ", ".join(f"{key} in {name!r}" for key, name in chosen.items() if name))
    return chosen


def group_instructions(rows: Sequence[Instruction]) -> list[Instruction]:
    """The rows with group numbers: those that ask the same (but for case and white space) get the same."""
    return [dataclasses.replace(row, group=group) for row, group in zip(rows, group_equal(map(_asked, rows)), strict=True)]


def _asked(row: Instruction) -> str:
    return "\n".join(map(plain, (row.instruction, row.input)))


def doc_questions() -> InstructionData:
    """What NumPy's functions, classes and methods do: a question by name, and the docstring's first sentence. See `rows_of_docs`."""

    def parse(document: Document) -> Iterator[Instruction]:
        if summary := docstring_summary(document):
            yield Instruction(f"What does {document.name} do?", summary, "", document.name, document.group)

    what, repeated = "the first sentences of NumPy's docstrings", "rows whose answer an earlier row has"
    return InstructionData("doc-questions", *rows_of_docs(what, parse, lambda row: row.output, group_equal, repeated))


def docstring_summary(document: Document) -> str:
    """The first sentence of a NumPy docstring; "" where there is none. A ufunc's docstring begins with its signature."""
    if not document.name.startswith("numpy"):
        return ""
    for paragraph in inspect.cleandoc(document.text).split("\n\n"):
        text = " ".join(paragraph.split())
        if re.match(r"[\w.]+\(.*\)( ->.*)?$", text) or text.startswith(".."):  # a signature, or a directive
            continue
        sentence = re.split(r"(?<=[.!?]) +(?=[A-Z`])", text)[0]
        is_prose = len(sentence.split()) >= 3 and len(sentence) <= 200 and sentence[0].isupper() and "---" not in sentence
        return sentence if is_prose else ""
    return ""


def check_instructions(rows: Sequence[Instruction], lengths: Sequence[int], limit: int) -> dict[str, str]:
    """What to know before training, as lines of a table. lengths: tokens of prompt, answer and end, uncut; limit: how many fit."""
    groups: dict[str, set[str]] = {}
    for row in rows:
        groups.setdefault(_asked(row), set()).add(row.output)
    lines = {
        "rows": f"{len(rows):,}, {sum(bool(row.input.strip()) for row in rows):,} of them with an input",
        "duplicates": f"{len(rows) - len(groups):,} rows ask what an earlier one asks; copies stay on one side of the split",
    }
    if several := sum(len(outputs) > 1 for outputs in groups.values()):
        lines["conflicts"] = f"{several:,} instructions have several different answers"
    over_long = f"{sum(n > limit for n in lengths):,} rows are longer than the {limit:,} that fit"
    lines["lengths"] = f"at most {max(lengths):,} tokens with the prompt; {over_long}"
    if len(rows) < 200:
        lines["warning"] = "fewer than 200 rows: expect the form of an answer to be learned, hardly more"
    return lines


def split_instructions(data: InstructionData, fractions: Shares = (0.85, 0.05, 0.1), *, seed: int = 0) -> Split[Instruction]:
    """As `tinygpt.finetuning.rows.split_groups`; rows that ask the same stay together. Raises ValueError for fewer of them than parts."""
    n_parts, groups = 2 if data.held_out else 3, {row.group for row in data.rows}
    if len(groups) < n_parts:
        raise InvalidInput(f"split: {len(groups)} different instructions, expected at least {n_parts}, one for each part; add rows")
    return split_groups(data, fractions, seed, [groups])


Style = Literal["alpaca", "phi3"]


def prompt(row: Instruction, style: Style) -> str:
    """The text that the answer follows, ending in a line break.

    alpaca   headings in words.  Source  Taori et al. 2023, Stanford Alpaca, README, "Data release"
    phi3     marks of the speakers, far shorter.  Source  Abdin et al. 2024, Phi-3 technical report, arXiv:2404.14219, section 2
    Raises ValueError for another style.
    """
    has_input = bool(row.input.strip())
    if style == "alpaca":
        purpose = "an instruction that describes a task" + (", paired with an input that provides further context" if has_input else "")
        beginning = f"Below is {purpose}. Write a response that appropriately completes the request."
        given = f"### Input:\n{row.input}\n\n" if has_input else ""
        return f"{beginning}\n\n### Instruction:\n{row.instruction}\n\n{given}### Response:\n"
    if style == "phi3":
        given = f"\n{row.input}" if has_input else ""
        return f"<|user|>\n{row.instruction}{given}<|end|>\n<|assistant|>\n"
    raise InvalidInput(f"prompt style: {style!r}, expected one of {', '.join(get_args(Style))}; alpaca is the better known")


@dataclass(frozen=True)
class Encoded:
    """Token ids of prompt, answer and end token in a row; how many of them are the prompt's; and how many were cut off at the end."""

    ids: np.ndarray
    n_prompt: int
    n_cut: int = 0


def encode_instructions(
    rows: Sequence[Instruction], tokenizer: Tokenizer, n_positions: int, *, style: Style = "alpaca", truncate: bool = False,
    places: Sequence[str] | None = None,
) -> list[Encoded]:  # fmt: skip
    """Each row as one sequence of ids.

    Prompt and answer are encoded apart, so that no token reaches over the border: the model then meets the prompt as it will when asked.
    n_positions   the model's context, or fewer; the last token is only predicted, so a sequence may be one longer
    truncate      cut answers that are too long (they lose their end token); a prompt that leaves no room is an error in any case
    Raises ValueError for a tokenizer without an end token, for sequences that do not fit, and for prompts that leave no token to train on.
    """
    end = tokenizer.eos_id
    if end is None:
        raise InvalidInput(f"tokenizer {tokenizer.kind}: no end token, expected one to end answers with; pretrain with --tokenizer bpe")
    limit, sequences, over_long = n_positions + 1, [], []
    for i, row in enumerate(rows):
        place = (places[i] if places else row.place) or f"row {i}"
        head = np.array(tokenizer.encode_from_start(prompt(row, style)))
        ids = np.concatenate([head, tokenizer.encode_array(row.output.strip()), [end]]).astype(np.int64)
        if len(head) >= n_positions:
            rule = f"fewer than the {n_positions} that are read, so that some of the answer fits (else there are zero trainable tokens)"
            fix = "shorten it, or choose --prompt-style phi3, which is shorter"
            raise InvalidInput(f"{place}: a prompt of {len(head)} tokens, expected {rule}; {fix}")
        over_long += [(place, len(ids))] if len(ids) > limit else []
        sequences.append(Encoded(ids[:limit], len(head), max(len(ids) - limit, 0)))
    if over_long and not truncate:
        place, n = over_long[0]
        others = f" (and {len(over_long) - 1} more rows)" if len(over_long) > 1 else ""
        fix = "shorten the row, choose --prompt-style phi3, or choose to cut long answers with --truncate"
        raise InvalidInput(f"{place}: {n} tokens with the prompt, expected at most {limit}, as many as the context allows{others}; {fix}")
    return sequences


class InstructionBatches(MaskedBatches):
    """Instructions as a trainer wants them; with mask_prompt the loss leaves prompts out. Raises ValueError as `MaskedBatches`."""

    def __init__(self, sequences: Sequence[Encoded], mask_prompt: bool = True) -> None:
        first = [sequence.n_prompt if mask_prompt else 1 for sequence in sequences]  # first token to be predicted
        super().__init__([Masked(s.ids, np.arange(len(s.ids)) >= n) for s, n in zip(sequences, first, strict=True)])


def show_masked(sequence: Encoded, tokenizer: Tokenizer, *, mask_prompt: bool = True, n_padding: int = 0) -> list[tuple[str, str, bool]]:
    """(kind, text, whether the loss counts it) of each part of a sequence: prompt, answer, end and padding."""
    head, rest = sequence.ids[: sequence.n_prompt], sequence.ids[sequence.n_prompt :]
    ended = len(rest) > 0 and rest[-1] == tokenizer.eos_id
    answer = rest[:-1] if ended else rest
    parts = [("prompt", tokenizer.decode(head), not mask_prompt), ("answer", tokenizer.decode(answer), True)]
    parts += [("end", tokenizer.decode(rest[-1:]), True)] if ended else []
    parts += [("padding", " ".join(["."] * n_padding), False)] if n_padding else []
    return parts


def generate_answers(
    gpt: GPT, tokenizer: Tokenizer, rows: Sequence[Instruction], *, style: Style = "alpaca", max_new_tokens: int = 64, batch_size: int = 16,
    sampling: Sampling | None = None, **options: Unpack[DecodingOptions],
) -> list[str]:  # fmt: skip
    """The model's answer to each row's prompt, without the end token; greedy by default; the options of `complete_all`.

    Answers end at the end token, after max_new_tokens, or where the context is full. Raises ValueError for a prompt that leaves no room.
    """
    n_positions, answers = gpt.config.n_positions, []
    for start in range(0, len(rows), batch_size):
        some = rows[start : start + batch_size]
        prompts = [prompt(row, style) for row in some]
        rooms = [n_positions - len(tokenizer.encode_from_start(text)) for text in prompts]
        for row, room in zip(some, rooms, strict=True):
            if room < 1:
                found = f"{row.place or 'prompt'}: {n_positions - room} tokens"
                raise InvalidInput(f"{found}, expected fewer than the context of {n_positions}; shorten it")
        n_new = min(max_new_tokens, max(rooms))
        completions = complete_all(gpt, tokenizer, prompts, n_new, sampling or Sampling(temperature=0.0), **options)
        for made, room in zip(completions, rooms, strict=True):
            answers.append((made.text if len(made.ids) <= room else tokenizer.decode(made.ids[:room])).strip())
    return answers
