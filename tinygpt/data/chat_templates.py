"""Conversations as text: who speaks, in what order, and the marks that a template puts around each turn.

    template = chat_template("plain", tokenizer)
    messages = [Message("user", "What does numpy.argsort do?"), Message("assistant", "Returns the indices that would sort an array.")]
    template.text(messages)                        # what transformers' tokenizer.apply_chat_template renders with template.jinja
    encode_parts(template.parts(messages), tokenizer)

A turn's text is encoded apart from the marks around it, and only marks may become special tokens: who types <|im_end|> has typed ten
characters, and ended nothing. `tinygpt.data.jinja_templates` applies the template that a checkpoint brings.
"""

import abc
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, cast, get_args

import numpy as np

from tinygpt.data.tokenizer import Tokenizer
from tinygpt.errors import InvalidInput, did_you_mean

Role = Literal["system", "user", "assistant"]
TemplateName = Literal["plain", "chatml", "llama3"]


@dataclass(frozen=True)
class Message:
    """One turn: who speaks, and the text."""

    role: Role
    content: str


def check_turns(messages: Sequence[Message], *, complete: bool = False, where: str = "conversation") -> None:
    """Raises ValueError, naming the turn (counted from 1), unless an optional system message is followed by user and assistant in turn.

    complete   the assistant must have the last word, as in rows to learn from; else the user, who is to be answered
    """
    turns = [(i, message.role) for i, message in enumerate(messages, start=1) if not (i == 1 and message.role == "system")]
    for number, (i, role) in enumerate(turns):
        if role not in get_args(Role):
            raise InvalidInput(
                f"{where}: turn {i}: role {role!r}, expected system, user or assistant; {did_you_mean(role, get_args(Role))}"
            )
        if role == "system":
            raise InvalidInput(f"{where}: turn {i}: a system message, expected it first or nowhere; move it to the front")
        expected = ("user", "assistant")[number % 2]
        if role != expected and number == 0:
            raise InvalidInput(f"{where}: turn {i}: begins with the assistant, expected the user; remove the turn, or make it the system's")
        if role != expected:
            raise InvalidInput(f"{where}: turn {i}: the {role} speaks twice in a row, expected the {expected}; join the two turns")
    last = "assistant" if complete else "user"
    if not turns or turns[-1][1] != last:
        found = f"turn {len(messages)}: the last is the {messages[-1].role}'s" if messages else "no turns"
        raise InvalidInput(f"{where}: {found}, expected the {last}'s; add it, or remove what follows the {last}'s last turn")


@dataclass(frozen=True)
class Part:
    """A piece of a rendered conversation. kind: "mark" (the template's), a role (that turn's text), "end" (the assistant's end of turn)."""

    kind: Literal["mark", "system", "user", "assistant", "end"]
    text: str


class ChatTemplate(abc.ABC):
    """How a conversation is written down.

    name    for settings and messages
    stop    the text with which the assistant ends a turn: a special token where the tokenizer has it, else ordinary text
    jinja   the same template in the language of transformers (tokenizer_config.json, chat_template)
    """

    name: str
    stop: str
    jinja: str

    @abc.abstractmethod
    def parts(self, messages: Sequence[Message], *, reply: bool = False) -> list[Part]:
        """The conversation piece by piece, no two marks in a row; with `reply` up to where the assistant's next turn begins.

        Texts lose the white space around them. Raises ValueError for turns out of order, as `check_turns`.
        """

    def text(self, messages: Sequence[Message], *, reply: bool = False) -> str:
        """The conversation as one text: that of `tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=reply)`."""
        return "".join(part.text for part in self.parts(messages, reply=reply))


@dataclass(frozen=True)
class TurnTemplate(ChatTemplate):
    """A template that writes each turn as head, text and tail.

    begin     in front of everything
    heads     by role, before its text
    stop      after the assistant's text;  tails: by role, after its text (and the stop)
    """

    name: str
    stop: str
    heads: Mapping[str, str]
    tails: Mapping[str, str]
    begin: str = ""

    def parts(self, messages: Sequence[Message], *, reply: bool = False) -> list[Part]:
        check_turns(messages, complete=not reply)
        found = [Part("mark", self.begin)]
        for message in messages:
            end = [Part("end", self.stop)] if message.role == "assistant" else []
            head, tail = Part("mark", self.heads[message.role]), Part("mark", self.tails[message.role])
            found += [head, Part(message.role, message.content.strip()), *end, tail]
        return joined([*found, Part("mark", self.heads["assistant"] if reply else "")])

    @property
    def jinja(self) -> str:  # type: ignore[override]
        """Written with literal texts, so that it renders the same whatever the tokenizer calls its tokens."""
        turns = [
            f"if message['role'] == '{role}' -%}}{{{{- {_quote(head)} + message['content'] | trim + "
            f"{_quote(self.stop * (role == 'assistant') + self.tails[role])} -}}}}"
            for role, head in self.heads.items()
        ]
        begin, reply = (f"{{{{- {_quote(text)} -}}}}" for text in (self.begin, self.heads["assistant"]))
        loop = f"{{%- for message in messages -%}}{{%- {'{%- el'.join(turns)}{{%- endif -%}}{{%- endfor -%}}"
        return f"{begin}{loop}{{%- if add_generation_prompt -%}}{reply}{{%- endif -%}}"


def _quote(text: str) -> str:
    """A string literal of Jinja."""
    return json.dumps(text, ensure_ascii=False)


def joined(parts: Iterable[Part]) -> list[Part]:
    """The parts without empty marks, neighboring marks as one."""
    found: list[Part] = []
    for is_mark, some in groupby(parts, key=lambda part: part.kind == "mark"):
        each = list(some)
        found += [Part("mark", "".join(part.text for part in each))] if is_mark else each
    return [part for part in found if part.text or part.kind not in ("mark", "end")]


def chat_template(name: str, tokenizer: Tokenizer) -> ChatTemplate:
    """One of the templates that need no file, for a tokenizer. Where it has no token for a mark, the mark is ordinary text.

    plain    User:, Assistant: and System: on lines of their own; the assistant ends with the tokenizer's end token
    chatml   <|im_start|>user ... <|im_end|>.  Source  OpenAI 2023, ChatML; SmolLM2, Qwen
    llama3   <|start_header_id|>user<|end_header_id|> ... <|eot_id|>.  Source  Llama 3 model card, "Prompt format"
    Raises ValueError for another name, and for plain where the tokenizer has no end token.
    """
    if name not in get_args(TemplateName):
        choices = get_args(TemplateName)
        raise InvalidInput(f"chat template: {name!r}, expected one of {', '.join(choices)}; {did_you_mean(name, choices, 'plain is ours')}")
    end = "" if tokenizer.eos_id is None else tokenizer.token_bytes(tokenizer.eos_id).decode()
    if name == "plain" and not end:
        raise InvalidInput(f"tokenizer {tokenizer.kind}: no end token, expected one to end answers with; pretrain with --tokenizer bpe")
    roles = get_args(Role)
    if name == "plain":
        start = tokenizer.decode(list(tokenizer.start))  # Llama's <|begin_of_text|>; most have none
        return TurnTemplate(name, end, {role: f"{role.capitalize()}:\n" for role in roles}, dict.fromkeys(roles, "\n"), start)
    if name == "chatml":
        tails = {role: "\n" if role == "assistant" else "<|im_end|>\n" for role in roles}
        return TurnTemplate(name, "<|im_end|>", {role: f"<|im_start|>{role}\n" for role in roles}, tails)
    heads = {role: f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in roles}
    tails = {role: "" if role == "assistant" else "<|eot_id|>" for role in roles}
    return TurnTemplate(name, "<|eot_id|>", heads, tails, "<|begin_of_text|>")


def encode_parts(parts: Sequence[Part], tokenizer: Tokenizer) -> list[np.ndarray]:
    """The ids of each part, (tokens,) int64: a turn's text never becomes a special token, a mark does where it names one."""
    own = ("mark", "end")
    return [tokenizer.encode_array(part.text, allow_special=part.kind in own).astype(np.int64) for part in parts]


def prompt_ids(template: ChatTemplate, messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """Ids of a conversation up to where the assistant's next turn begins. Raises ValueError as `ChatTemplate.parts`."""
    return cast(list[int], np.concatenate(encode_parts(template.parts(messages, reply=True), tokenizer)).tolist())
