"""Conversations to learn from: rows of several turns, of which the loss counts what the assistant says.

    data = load_conversations("doc-conversations")          # what every installation already has; no network
    parts = split_conversations(data, seed=0)               # parts.train, parts.validation, parts.test
    sequences = encode_conversations(parts.train, tokenizer, template, gpt.config.n_positions)
    fit(gpt, MaskedBatches([sequence.masked for sequence in sequences]), ...)      # tinygpt.finetuning.common
    answer_turns(gpt, tokenizer, template, parts.test)      # what the model says at each of the assistant's turns

Three forms of rows are read, told apart by their fields: OpenAI's (messages: role, content), ShareGPT's (conversations: from, value) and
Alpaca's (instruction, input, output, and perhaps history, a list of earlier [question, answer], and system).
"""

import dataclasses
import inspect
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from tinygpt.data.chat_templates import ChatTemplate, Message, Part, Role, check_turns, encode_parts, prompt_ids
from tinygpt.data.corpora import Document
from tinygpt.data.rows import Table, find_file, read_table, unicode_in
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.errors import InvalidInput
from tinygpt.finetuning.instructions import docstring_summary
from tinygpt.finetuning.masked import Masked
from tinygpt.finetuning.rows import Data, Shares, Split, group_equal, plain, rows_of_docs, split_groups
from tinygpt.inference.sampling import Sampling
from tinygpt.inference.text import complete_all
from tinygpt.models.gpt import GPT
from tinygpt.storage.checked_json import Json

DOCS = "doc-conversations"
FORMS = {"messages": "OpenAI", "conversations": "ShareGPT", "conversation": "ShareGPT", "instruction": "Alpaca"}
ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
"""ShareGPT's names, and OpenAI's."""


@dataclass(frozen=True)
class Conversation:
    """An optional system message, then user and assistant in turn, the assistant last; place and group: `tinygpt.finetuning.rows.Located`."""

    messages: tuple[Message, ...]
    place: str = ""
    group: int = -1

    def prompts(self) -> Iterator[tuple[tuple[Message, ...], str]]:
        """(everything before, what is said) for each of the assistant's turns."""
        return ((self.messages[:i], message.content) for i, message in enumerate(self.messages) if message.role == "assistant")


ConversationData = Data[Conversation]


def load_conversations(name_or_path: str | Path, *, cache: str | Path | None = None) -> ConversationData:
    """Reads conversations: "doc-conversations", or a file (.json, .jsonl; Alpaca's also .csv, .tsv; see `tinygpt.data.rows`).

    The rows of a file may be of different forms; `notes` counts them. Raises ValueError, naming file, row, turn and problem;
    FileNotFoundError for an unknown name.
    """
    if name_or_path == DOCS:
        return doc_conversations()
    path, source = find_file(name_or_path, [DOCS], cache=cache)
    table = read_table(path, {*FORMS, "input", "output", "system"})
    forms: Counter[str] = Counter()
    rows = []
    for place, values in table.rows:
        form, messages = _messages(table, place, values)
        check_turns(messages, complete=True, where=f"{path}: {place}")
        forms[form] += 1
        rows.append(Conversation(tuple(messages), place))
    read = ", ".join(f"{n:,} in {form}'s" for form, n in forms.items())
    groups = group_equal(plain(next(m.content for m in row.messages if m.role == "user")) for row in rows)
    grouped = [dataclasses.replace(row, group=group) for row, group in zip(rows, groups, strict=True)]
    return ConversationData(str(name_or_path), grouped, source, notes=[*table.notes, f"form of the rows: {read}"])


def _messages(table: Table, place: str, values: dict[str, Json]) -> tuple[str, list[Message]]:
    """(form, turns) of a row, told apart by its fields. Raises ValueError, naming the turn, for fields that are none of the three forms'."""
    where = f"{table.path}: {place}"
    field = next((field for field in FORMS if values.get(field) is not None), None)
    if field is None:
        rule = "messages (OpenAI), conversations (ShareGPT) or instruction and output (Alpaca)"
        raise InvalidInput(f"{where}: fields {', '.join(map(repr, values))}, expected {rule}; rename them")
    if field == "instruction":
        return "Alpaca", _alpaca(table, place, values)
    turns = values[field]
    if not isinstance(turns, list) or not turns:
        raise InvalidInput(f"{where}: {field} is {turns!r:.40}, expected a list of turns; correct or remove the row")
    found = turns_of(table, place, turns)
    return "OpenAI" if all("role" in turn for turn in turns) else "ShareGPT", found


def turns_of(table: Table, place: str, turns: Sequence[Json]) -> list[Message]:
    """A row's list of turns, OpenAI's (role, content) or ShareGPT's (from, value). Raises ValueError, naming the turn, for anything else."""
    where, found = f"{table.path}: {place}", []
    for i, turn in enumerate(turns, start=1):
        names = next((pair for pair in (("role", "content"), ("from", "value")) if isinstance(turn, dict) and {*pair} <= turn.keys()), None)
        if names is None:
            shown = ", ".join(map(repr, turn)) if isinstance(turn, dict) else f"{turn!r:.40}"
            raise InvalidInput(f"{where}: turn {i}: {shown}, expected role and content, or from and value; correct or remove the row")
        speaker = turn[names[0]]
        if not isinstance(speaker, str) or speaker not in ROLES:
            rule = f"expected one of {', '.join(ROLES)}"
            raise InvalidInput(f"{where}: turn {i}: {names[0]} {speaker!r:.40}, {rule}; correct or remove the row")
        found.append(Message(ROLES[speaker], _content(table, place, f"turn {i}: {names[1]}", turn[names[1]])))
    return found


def _content(table: Table, place: str, what: str, value: Json) -> str:
    """The text of a turn; of OpenAI's list of parts, their texts. Raises ValueError for anything else, and for no text."""
    if isinstance(value, list) and value and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in value):
        value = "".join(part["text"] for part in value)
    if not isinstance(value, str) or not value.strip():
        found = "empty" if isinstance(value, str) else f"{value!r:.40}"
        raise InvalidInput(f"{table.path}: {place}: {what} is {found}, expected a text; correct or remove the row")
    return unicode_in(table, place, what, value)


def _alpaca(table: Table, place: str, values: dict[str, Json]) -> list[Message]:
    """Source  Taori et al. 2023, Stanford Alpaca, README, "Data release"; history and system as LLaMA-Factory reads them."""

    def text(key: str) -> str:
        return _content(table, place, key, values.get(key))

    earlier = values.get("history") or []
    if not isinstance(earlier, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in earlier):
        raise InvalidInput(
            f"{table.path}: {place}: history is {earlier!r:.40}, expected a list of [question, answer]; correct or remove the row"
        )
    found = [Message("system", text("system"))] if values.get("system") else []
    for number, (question, answer) in enumerate(earlier, start=1):
        found.append(Message("user", _content(table, place, f"question {number} of history", question)))
        found.append(Message("assistant", _content(table, place, f"answer {number} of history", answer)))
    given = f"\n{text('input')}" if str(values.get("input") or "").strip() else ""
    return [*found, Message("user", text("instruction") + given), Message("assistant", text("output"))]


ORDINALS = ("first", "second", "third")
MOST_NAMES = 6  # parameters that a question names


def doc_conversations() -> ConversationData:
    """Questions and follow-up questions about NumPy's functions, five conversations for each. See `rows_of_docs` for the split.

    One begins with "What does numpy.sort(a, axis, kind) do?", answered by the docstring's first sentence: knowledge, which a model has or
    guesses. Four begin with "How many parameters does numpy.sort(kind, a) name?", some of them in any order, as keywords may stand. Then come
    follow-ups, "And its last parameter?": the answer stands in the conversation, but not in the question, so only a model that reads the turns
    before can give it. Some of them and in any order, because a fixed list is learned by heart, and a model that knows it need not look.
    """

    def parse(document: Document) -> Iterator[Conversation]:
        names, summary = parameters(document.text)[:MOST_NAMES], docstring_summary(document)
        if len(names) < 2 or not 0 < len(summary) <= 120 or len(f"{document.name}{names}") > 90:
            return
        rng = np.random.default_rng(zlib.crc32(f"{names}{summary}".encode()))  # aliases of a function get the same questions
        for number in range(5):
            some = [str(name) for name in rng.permutation(names)[: rng.integers(2, len(names) + 1)]] if number else names
            call, known = f"{document.name}({', '.join(some)})", dict(zip(ORDINALS, some, strict=False)) | {"last": some[-1]}
            turns = [Message("user", f"What does {call} do?"), Message("assistant", summary)]
            if number:
                turns = [Message("user", f"How many parameters does {call} name?"), Message("assistant", str(len(some)))]
            for which in rng.permutation(list(known))[: 3 if number else 2]:
                turns += [Message("user", f"And its {which} parameter?"), Message("assistant", known[which])]
            yield Conversation(tuple(turns), f"{document.name}, {number + 1}", document.group)

    def text(row: Conversation) -> str:
        name = row.place.rpartition(",")[0]
        return "\n".join(message.content for message in row.messages).replace(name, "")

    what, repeated = "questions and follow-up questions about NumPy's docstrings", "rows that repeat another but for the function's name"
    return ConversationData(DOCS, *rows_of_docs(what, parse, text, group_equal, repeated))


def parameters(docstring: str) -> list[str]:
    """The names in the section Parameters of a NumPy docstring, in order, without `*args` and `**kwargs`."""
    section = re.search(r"^Parameters\n-+\n(.*?)(?=\n\n[A-Z][\w ]+\n---|\Z)", inspect.cleandoc(docstring), re.MULTILINE | re.DOTALL)
    heads = re.findall(r"^(\w[\w, ]*?)(?: *:.*)?$", section[1], re.MULTILINE) if section else []
    names = [name.strip() for head in heads for name in head.split(",")]
    return names if all(name.isidentifier() for name in names) else []


def split_conversations(data: ConversationData, fractions: Shares = (0.85, 0.05, 0.1), *, seed: int = 0) -> Split[Conversation]:
    """As `tinygpt.finetuning.rows.split_groups`; conversations that begin alike stay together. Raises ValueError for fewer of them than parts."""
    n_parts, groups = 2 if data.held_out else 3, {row.group for row in data.rows}
    if len(groups) < n_parts:
        raise InvalidInput(f"split: {len(groups)} different conversations, expected at least {n_parts}, one for each part; add rows")
    return split_groups(data, fractions, seed, [groups])


@dataclass(frozen=True)
class EncodedConversation:
    """A conversation as tokens: its parts and the ids of each, and how many exchanges were left out at its end because they do not fit."""

    parts: list[Part]
    part_ids: list[np.ndarray]
    n_left_out: int = 0

    @property
    def masked(self) -> Masked:
        """The loss counts the assistant's texts and their ends."""
        counted = [np.full(len(ids), part.kind in ("assistant", "end")) for part, ids in zip(self.parts, self.part_ids, strict=True)]
        return Masked(np.concatenate(self.part_ids), np.concatenate(counted))

    @property
    def n_tokens(self) -> int:
        return sum(map(len, self.part_ids))


def encode_conversations(
    rows: Sequence[Conversation], tokenizer: Tokenizer, template: ChatTemplate, n_positions: int, *, truncate: bool = False
) -> list[EncodedConversation]:
    """Each row as one sequence of ids, up to its last end of turn.

    n_positions   the model's context, or fewer; the last token is only predicted, so a sequence may be one longer
    truncate      leave out exchanges at the end that do not fit, and rows whose first exchange does not: no turn is ever cut. Else that is an error
    Raises ValueError for rows that do not fit, and if none is left.
    """
    limit, found = n_positions + 1, []
    for i, row in enumerate(rows):
        place, n_turns = row.place or f"row {i}", len(row.messages)
        shortest = 2 + (row.messages[0].role == "system")
        for n in range(n_turns, shortest - 1, -2):
            encoded = _encoded(row.messages[:n], tokenizer, template, (n_turns - n) // 2)
            if encoded.n_tokens <= limit:
                found.append(encoded)
                break
            if not truncate:
                rule, fix = f"at most {limit}, as many as the context allows", "shorten it, or leave out its last exchanges with --truncate"
                raise InvalidInput(f"{place}: {encoded.n_tokens} tokens in {n_turns} turns, expected {rule}; {fix}")
    if not found:
        fix = "choose a model with a longer context"
        raise InvalidInput(f"conversations: none whose first exchange fits into {limit} tokens, expected some; {fix}")
    return found


def _encoded(messages: Sequence[Message], tokenizer: Tokenizer, template: ChatTemplate, n_left_out: int) -> EncodedConversation:
    parts = template.parts(messages)
    parts = parts[: 1 + max(i for i, part in enumerate(parts) if part.kind == "end")]
    return EncodedConversation(parts, encode_parts(parts, tokenizer), n_left_out)


def show_turns(sequence: EncodedConversation) -> list[tuple[str, str, bool]]:
    """(kind, text, whether the loss counts it) of each part: marks, the turns by role, and ends."""
    return [(part.kind, part.text, part.kind in ("assistant", "end")) for part in sequence.parts]


@dataclass(frozen=True)
class Answered:
    """One of the assistant's turns: its number among them (0: the first), the question before it, what was expected, and what the model said."""

    turn: int
    question: str
    expected: str
    said: str

    @property
    def exact(self) -> bool:
        """Whether both are the same but for case and white space."""
        return plain(self.said) == plain(self.expected)


def answer_turns(
    gpt: GPT, tokenizer: Tokenizer, template: ChatTemplate, rows: Sequence[Conversation], *, max_new_tokens: int = 48, batch_size: int = 16,
    history: bool = True,
) -> list[Answered]:  # fmt: skip
    """The likeliest answer at each of the assistant's turns, the turns before being the row's own; without `history` the question alone.

    Turns whose prompt leaves no room in the context are left out; answers end with the context.
    """
    n_positions = gpt.config.n_positions
    asked = []
    for row in rows:
        for number, (before, expected) in enumerate(row.prompts()):
            ids = prompt_ids(template, before if history else before[-1:], tokenizer)
            if len(ids) < n_positions:
                asked.append((ids, Answered(number, before[-1].content, expected, "")))
    stop = tokenizer.encode(template.stop, allow_special=True)
    options = {"end_ids": stop} if len(stop) == 1 else {"stop": [template.stop]}
    found = []
    for start in range(0, len(asked), batch_size):
        some = asked[start : start + batch_size]
        rooms = [n_positions - len(ids) for ids, _ in some]
        prompts = cast(list[Sequence[int]], [ids for ids, _ in some])
        completions = complete_all(gpt, tokenizer, prompts, min(max_new_tokens, max(rooms)), Sampling(temperature=0.0), **options)  # type: ignore[arg-type]
        for (_, answer), made, room in zip(some, completions, rooms, strict=True):
            said = made.text if len(made.ids) <= room else tokenizer.decode(made.ids[:room])
            found.append(dataclasses.replace(answer, said=said.strip()))
    return found


def exact_matches(answers: Sequence[Answered]) -> dict[str, tuple[int, int]]:
    """(right, asked) of the first answers and of the answers to follow-ups."""
    sides = {"first answers": [a for a in answers if a.turn == 0], "follow-ups": [a for a in answers if a.turn > 0]}
    return {name: (sum(answer.exact for answer in some), len(some)) for name, some in sides.items()}
