"""Talk to a model: a conversation in the terminal, or on a page in the browser, that remembers what was said.

    python -m tinygpt chat                          the newest run that has learned conversations
    python -m tinygpt chat RUN --page               a page on this machine: settings, several conversations, probabilities of tokens
    python -m tinygpt chat RUN --system "Be brief." --temperature 0
    printf 'What does numpy.sort(a, axis) do?\\nAnd its last parameter?\\n' | python -m tinygpt chat RUN

Each line is a turn; an empty line, or the end of the input, ends the conversation. Lines that begin with a slash are commands: /again gives
another reply to the last turn, /new starts anew, /system TEXT sets the system prompt (without a text: removes it), /help lists them. Ctrl-C
ends a reply early. When the conversation is longer than the model's context, the oldest exchanges are left out, and a line says so.

A run of examples/finetune_chat.py has a chat template, and so have published assistants; a model that has learned no conversations needs
--template, and continues texts all the same. On the page it needs none: there it continues what is typed, and the page says so.
"""

import contextlib
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Literal

import tyro

from autograd import backend
from tinygpt.arguments import parse_args
from tinygpt.chat.server import ChatServer
from tinygpt.chat.sessions import Offer
from tinygpt.cli import prompt_lines
from tinygpt.data.chat_templates import ChatTemplate, TemplateName, chat_template
from tinygpt.data.jinja_templates import TEMPLATE_FILE, saved_template
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.errors import InvalidInput, MissingFile, UserError, did_you_mean
from tinygpt.fields import PathName, check_fields
from tinygpt.inference.chat import Chat, Piece
from tinygpt.inference.sampling import Sampling
from tinygpt.runs.checkpoint import Checkpoint
from tinygpt.runs.layout import RUNS, is_pretraining_run, newest_run, read_pointer

COMMANDS = {
    "/again": "another reply to your last turn",
    "/new": "forget the conversation",
    "/system": "set the system prompt to the text that follows, or remove it, and start anew",
    "/help": "this list",
}


FINETUNE = "python examples/finetune_chat.py"
BOTH = f"train first: python examples/pretrain.py, then {FINETUNE}"
NO_TEMPLATE = f"no chat template: it continues texts; {FINETUNE} teaches it conversations"


@dataclass(frozen=True)
class ChatConfig:
    run: Annotated[PathName, tyro.conf.Positional] = ""
    """A run, a checkpoint directory, or a name on the hub; default: the newest run that has learned conversations."""
    template: Literal["checkpoint", "plain", "chatml", "llama3"] = "checkpoint"
    """How turns are written: as the checkpoint says, or plain, chatml or llama3."""
    system: str = ""
    """System prompt: what the model is told before the first turn; it is never left out."""
    max_tokens: int = 200
    """The most tokens of a reply."""
    temperature: float = 0.8
    """Below 1 likely tokens become likelier still (predictable replies), above 1 less so (varied replies); 0: always the likeliest."""
    top_k: int = 50
    """Choose among the k likeliest tokens; 0: all."""
    top_p: float = 1.0
    """Choose among the fewest likeliest tokens that together reach this probability; 1: all."""
    min_p: float = 0.0
    """Choose among tokens at least this fraction as likely as the likeliest; 0: all."""
    repetition_penalty: float = 1.0
    """Above 1: tokens that occurred already become less likely."""
    seed: int = 0
    """Another seed, other replies."""
    page: bool = False
    """Serve a page to talk on, for browsers on this machine, until Ctrl-C; the flags above are what its settings start with."""
    port: int = 8000
    """Where the page is: http://127.0.0.1:PORT/; 0: any port that is free."""
    also: tuple[PathName, ...] = ()
    """More runs, checkpoint directories or names on the hub that the page offers."""

    def __post_init__(self) -> None:
        check_fields(self, {0: "seed", 1: "max_tokens"})


def main(argv: list[str] | None = None) -> None:
    """The command `chat`."""
    config = parse_args(ChatConfig(), __doc__, argv, prog="python -m tinygpt chat")
    sampling = Sampling(config.temperature, config.top_k, config.top_p, config.min_p, config.repetition_penalty)
    if config.page:
        serve_page(config, sys.argv[2:] if argv is None else argv)
        return
    checkpoint = Checkpoint.open(config.run or newest_chat_run())
    model, tokenizer = checkpoint.language_model(), checkpoint.tokenizer()
    template = template_of(checkpoint.path, tokenizer, config.template)
    say(
        f"backend  {backend.reason}\nmodel    {checkpoint.describe()}, {model.n_parameters():,} weights, context {model.config.n_positions}"
    )
    say(f"template {template.name}\nType a turn; /help lists commands, an empty line ends.\n")
    chat = Chat(model, tokenizer, template, system=config.system, sampling=sampling, max_tokens=config.max_tokens, seed=config.seed)
    for line in prompt_lines() if sys.stdin.isatty() else takewhile(bool, map(str.strip, sys.stdin)):  # a file or a pipe gets no prompt
        try:
            pieces = answer_to(chat, line)
            if pieces is not None:
                show(chat, pieces)
        except UserError as error:
            say(f"error: {error}")


def serve_page(config: ChatConfig, argv: list[str]) -> None:
    """The page, until Ctrl-C. The port is taken before the models are read, which may take longer."""
    with ChatServer(config.port, defaults=asdict(config), command=shlex.join(["python", "-m", "tinygpt", "chat", *argv])) as server:
        say(f"backend  {backend.reason}")
        for name in dict.fromkeys([config.run or newest_to_talk_to(), *config.also]):
            checkpoint = Checkpoint.open(name)
            model, tokenizer = checkpoint.language_model(), checkpoint.tokenizer()
            template = saved_template(tokenizer) if config.template == "checkpoint" else chat_template(config.template, tokenizer)
            title = (checkpoint.run or checkpoint.path).name
            server.conversations.offer(Offer(title, checkpoint.describe(), model, tokenizer, template))
            say(f"model    {checkpoint.describe()}, {'template ' + template.name if template else NO_TEMPLATE}")
        server.serve()


def answer_to(chat: Chat, line: str) -> Iterator[Piece] | None:
    """The reply that a line calls for; None after a command that needs none. Raises ValueError for an unknown command."""
    name, _, rest = line.partition(" ")
    if not name.startswith("/"):
        return chat.reply(line)
    if name not in COMMANDS:
        raise InvalidInput(f"{name}: no such command, expected one of {', '.join(COMMANDS)}; {did_you_mean(name, COMMANDS)}")
    if name == "/again":
        if chat.sampling.temperature == 0:
            say("[at temperature 0 each reply to the same turns is the same]")
        return chat.regenerate()
    if name == "/help":
        say("\n".join(f"{command:<8} {purpose}" for command, purpose in COMMANDS.items()))
        return None
    if name == "/system":
        chat.system = rest.strip()
        say("[system prompt set; a new conversation]" if chat.system else "[no system prompt; a new conversation]")
    else:
        say("[a new conversation]")
    chat.messages = []
    return None


def show(chat: Chat, pieces: Iterator[Piece]) -> None:
    """Prints a reply as it is generated; what was left out, and why it ended, goes to standard error. Ctrl-C ends it, and what was said stays."""
    begun = False
    try:
        for piece in pieces:
            if not begun and (n := chat.trimmed // 2):
                say(f"[the context is full: left out {'the first exchange' if n == 1 else f'the first {n} exchanges'}]")
            text = piece.text if begun else piece.text.lstrip()
            begun = begun or bool(text)
            print(text, end="", flush=True)
    except KeyboardInterrupt:
        pieces.close()  # type: ignore[attr-defined]  # a generator
    print(flush=True)
    if chat.stop_reason != "end":
        say(f"[{'stopped' if chat.stop_reason == 'stopped' else 'cut off: --max-tokens or the context is reached'}]")


def say(text: str) -> None:
    """To standard error: standard output has the replies alone."""
    print(text, file=sys.stderr, flush=True)


def template_of(path: Path, tokenizer: Tokenizer, name: Literal["checkpoint"] | TemplateName = "checkpoint") -> ChatTemplate:
    """The template of a checkpoint, or the named one. Raises FileNotFoundError where the checkpoint brings none."""
    found = saved_template(tokenizer) if name == "checkpoint" else chat_template(name, tokenizer)
    if found is None:
        fix = f"train it with {FINETUNE}, or choose one with --template"
        raise MissingFile(f"{path}: no chat template, expected a model that has learned conversations; {fix}")
    return found


def newest_chat_run() -> Path:
    """The newest run that has learned conversations. Raises FileNotFoundError, naming the commands that are still to be run, if there is none."""
    with contextlib.suppress(MissingFile):
        return newest_run(accept=has_template, note=say)
    pretrained = None
    with contextlib.suppress(MissingFile):
        pretrained = newest_run(accept=is_pretraining_run, note=lambda text: None)
    if pretrained is None:
        raise MissingFile(f"{RUNS}: no run with a checkpoint, expected one that has learned conversations; {BOTH}")
    rule = f"expected one; {pretrained} is pretrained: train it on with {FINETUNE}"
    raise MissingFile(f"{RUNS}: no run that has learned conversations, {rule}, or name it and choose a --template")


def newest_to_talk_to() -> Path:
    """The newest run that has learned conversations, else the newest of any language model. Raises FileNotFoundError, naming the commands to
    run, if there is none."""
    try:
        return newest_run(accept=has_template, note=say)
    except MissingFile:
        with contextlib.suppress(MissingFile):
            return newest_run(note=say)
        raise MissingFile(f"{RUNS}: no run with a checkpoint, expected one to talk to; {BOTH}") from None


def has_template(run: Path) -> bool:
    """Whether the last checkpoint of a run says how turns are written."""
    return (run / "checkpoints" / read_pointer(run, "last") / TEMPLATE_FILE).is_file()
