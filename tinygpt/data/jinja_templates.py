"""The chat template that a checkpoint brings, written in Jinja (whose objects are typed Json here): applied as transformers applies it, and cut into turns.

    template = saved_template(tokenizer)      # chat_template.jinja, or chat_template in tokenizer_config.json; None where there is neither

A template is a program that makes one text of all turns. Which tokens the loss counts, and which text is a turn's own, it does not say. So
it is run twice: once on the turns, and once on stand-ins that no template knows. Where the second text, with each stand-in replaced by its
turn's text, is the first, the parts are found; a template that changes texts, or drops some, is an error that names what it does.
"""

import datetime
import importlib
import json
import re
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import get_args

from tinygpt.data.chat_templates import ChatTemplate, Message, Part, TemplateName, chat_template, check_turns, joined
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.errors import InvalidInput, MissingPackage, did_you_mean
from tinygpt.storage.checked_json import Json, parse_json

TEMPLATE_FILE = "chat_template.jinja"
_STAND_IN = re.compile("\ue000aA([0-9]+)\ue001")  # private characters, which no text to learn from has, and letters, to see changes of case
_LOADERS = {"Include": "include", "Import": "import", "FromImport": "from ... import", "Extends": "extends"}


def saved_template(tokenizer: Tokenizer) -> ChatTemplate | None:
    """The template among the files that a tokenizer was read from; one of ours where it is that, so that nothing else is needed.

    Raises ValueError for a file that is none, and as `JinjaTemplate`, whose library it needs; ImportError where that is not installed.
    """
    text = template_text(tokenizer.kept)
    if text is None:
        return None
    for name in get_args(TemplateName):
        if not (name == "plain" and tokenizer.eos_id is None) and (ours := chat_template(name, tokenizer)).jinja == text:
            return ours
    return JinjaTemplate(text, tokenizer)


def template_text(files: Mapping[str, bytes]) -> str | None:
    """The template in a checkpoint's files, in the order in which transformers looks: chat_template.jinja, then the two JSON files. Of several
    named ones "default". None where there is none."""
    if TEMPLATE_FILE in files:
        return files[TEMPLATE_FILE].decode("utf-8", errors="replace")
    for file in ("chat_template.json", "tokenizer_config.json"):
        found = parse_json(files[file].decode("utf-8", errors="replace"), file, "restore the file") if file in files else {}
        text: Json = found.get("chat_template") if isinstance(found, dict) else None
        if isinstance(text, list):
            text = next((each.get("template") for each in text if isinstance(each, dict) and each.get("name") == "default"), None)
        if text is not None and not isinstance(text, str):
            raise InvalidInput(f"{file}: chat_template is a {type(text).__name__}, expected a text; restore the file")
        if text:
            return text
    return None


def keep_template(tokenizer: Tokenizer, template: ChatTemplate) -> None:
    """From now on the template is saved with the tokenizer, for `saved_template` and for transformers."""
    tokenizer.kept = {**tokenizer.files(), TEMPLATE_FILE: template.jinja.encode()}


class JinjaTemplate(ChatTemplate):
    """A checkpoint's own template. Raises ValueError, naming the construct and its line, for what cannot be run here: other files (include,
    import, extends), unknown functions, filters, tests and tags; for one that writes turns in an order of its own, or does not say where the
    assistant's turn ends. Raises ImportError without the library jinja2."""

    def __init__(self, text: str, tokenizer: Tokenizer) -> None:
        self.name, self.jinja = "checkpoint", text
        self._library = _library()
        self._program, self._tree = _compiled(self._library, text)
        known = tokenizer.roles or ({} if tokenizer.eos_id is None else {"eos_token": tokenizer.token_bytes(tokenizer.eos_id).decode()})
        self._names = {"bos_token": "", "eos_token": "", "tools": None, "documents": None, **known}
        ask, answer = Message("user", "Why?"), Message("assistant", "So.")
        tails = [text for kind, text in self._pieces([ask, answer], reply=False)[1:] if kind < 0]
        tail = tails[-1] if tails else ""
        special = [token for token in tokenizer.special if token in tail]
        first = min(special, key=lambda token: (tail.index(token), -len(token)), default=tail.strip())
        if not first:
            raise InvalidInput(
                "chat template: nothing after the assistant's turn, expected a mark that ends it; choose another with --template"
            )
        self.stop = first
        self._end = tail[: tail.index(first) + len(first)]  # with the white space in front of it

    def parts(self, messages: Sequence[Message], *, reply: bool = False) -> list[Part]:
        check_turns(messages, complete=not reply)
        found, after = [], -1
        for turn, text in self._pieces(messages, reply=reply):
            if turn >= 0:
                found.append(Part(messages[turn].role, text))
                after = turn
            elif after >= 0 and messages[after].role == "assistant":
                if not text.startswith(self._end):
                    raise InvalidInput(
                        f"chat template: {text[:20]!r} after turn {after + 1}, expected {self._end!r} as at the end; not supported"
                    )
                found += [Part("end", self._end), Part("mark", text[len(self._end) :])]
            else:
                found.append(Part("mark", text))
        return joined(found)

    def _pieces(self, messages: Sequence[Message], *, reply: bool) -> list[tuple[int, str]]:
        """(number of the turn, its text), and (-1, text) for what stands around and between them."""
        real = [Message(message.role, message.content.strip()) for message in messages]
        standing = [Message(message.role, f"\ue000aA{i}\ue001") for i, message in enumerate(real)]
        text, marked = self._render(real, reply), self._render(standing, reply)
        cut = _STAND_IN.split(marked)  # text, number, text, ...
        order = [int(number) for number in cut[1::2]]
        if order != list(range(len(real))):
            lost = next((i for i in range(len(real)) if order.count(i) != 1), 0)
            found = (
                f"writes turn {lost + 1}, the {real[lost].role}'s, {order.count(lost)} times"
                if order.count(lost) != 1
                else "reorders turns"
            )
            raise InvalidInput(f"chat template: {found}, expected each once and in order{self._culprit()}; choose another with --template")
        pieces = [(int(each), real[int(each)].content) if i % 2 else (-1, each) for i, each in enumerate(cut)]
        if "".join(piece for _, piece in pieces) != text:
            rule = "expected one that writes them as they are"
            raise InvalidInput(f"chat template: changes the texts of turns{self._culprit()}, {rule}; choose another with --template")
        return pieces

    def _render(self, messages: Sequence[Message], reply: bool) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text: str = self._program.render(messages=turns, add_generation_prompt=reply, **self._names)
        except (self._library.exceptions.TemplateError, TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
            raise InvalidInput(f"chat template: {error}, expected one that renders these turns; choose another with --template") from None
        return text

    def _culprit(self) -> str:
        """What the template does to the texts of turns, as far as its source shows."""
        nodes, found = self._library.nodes, []
        for node in self._tree.find_all((nodes.Filter, nodes.Call, nodes.Getitem, nodes.Compare)):
            name = getattr(node, "name", None) or getattr(getattr(node, "node", None), "attr", None) or type(node).__name__.lower()
            uses = any(
                getattr(each, "attr", getattr(each, "value", None)) == "content" for each in node.find_all((nodes.Getattr, nodes.Const))
            )
            if uses and name not in ("trim", "strip", "getitem"):
                found.append(f"{name} in line {node.lineno}")
        return f" ({', '.join(dict.fromkeys(found))})" if found else ""


def _library() -> ModuleType:
    try:
        importlib.import_module("jinja2.sandbox")
        importlib.import_module("jinja2.ext")
        return importlib.import_module("jinja2")
    except ImportError:
        rule = "jinja2, which runs the chat template that the checkpoint brings"
        raise MissingPackage(
            f'chat template: jinja2 is not installed, expected {rule}; pip install "tinygpt[chat]", or choose --template'
        ) from None


def _compiled(library: ModuleType, text: str) -> tuple[Json, Json]:
    """(template, syntax tree), in the surroundings that transformers gives templates: no access to Python's own objects, nothing to load."""
    environment = library.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[library.ext.loopcontrols, _generation_tag(library)]
    )

    def raise_exception(message: str) -> None:
        raise library.exceptions.TemplateError(message)

    def strftime_now(form: str) -> str:
        return datetime.datetime.now().astimezone().strftime(form)

    environment.filters["tojson"] = lambda value, **options: json.dumps(value, **({"ensure_ascii": False} | options))
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    try:
        tree = environment.parse(text)
        _check_constructs(library, environment, tree)
        return environment.from_string(tree), tree
    except library.exceptions.TemplateSyntaxError as error:  # unknown tags, missing ends
        raise InvalidInput(f"chat template: line {error.lineno}: {error.message}, expected what transformers runs; not supported") from None


def _check_constructs(library: ModuleType, environment: Json, tree: Json) -> None:
    """Raises ValueError for the first construct that nothing here runs, also in a branch that these turns would not reach."""
    nodes = library.nodes
    for node in tree.find_all(tuple(getattr(nodes, name) for name in _LOADERS)):
        found = f"{{% {_LOADERS[type(node).__name__]} %}}"
        raise InvalidInput(f"chat template: line {node.lineno}: {found}, expected a template in one file; not supported")
    functions = {*environment.globals, *_defined(library, tree)}
    for kind, known in ((nodes.Filter, environment.filters), (nodes.Test, environment.tests), (nodes.Call, functions)):
        for node in tree.find_all(kind):
            name = node.name if kind is not nodes.Call else node.node.name if isinstance(node.node, nodes.Name) else None
            if name is not None and name not in known:
                what = "function" if kind is nodes.Call else kind.__name__.lower()
                rule = f"expected one that transformers has; {did_you_mean(name, known, 'not supported')}"
                raise InvalidInput(f"chat template: line {node.lineno}: {what} {name}, {rule}")


def _defined(library: ModuleType, tree: Json) -> set[str]:
    """Names that the template gives to macros, their arguments and variables."""
    macros = {node.name for node in tree.find_all(library.nodes.Macro)}
    return macros | {node.name for node in tree.find_all(library.nodes.Name) if node.ctx in ("store", "param")} | {"caller"}


def _generation_tag(library: ModuleType) -> type:
    """transformers' {% generation %} ... {% endgeneration %}, which only marks what the assistant said: the text within it."""

    class Generation(library.ext.Extension):  # type: ignore[name-defined, misc]
        tags = {"generation"}  # noqa: RUF012 (as the library declares it)

        def parse(self, parser: Json) -> Json:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return library.nodes.Scope(body, lineno=line)

    return Generation
