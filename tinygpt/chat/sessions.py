"""The conversations that a page has open: each under an id that nobody guesses, and at most one answer at a time in all of them.

conversations = Conversations()
conversations.offer(Offer("docs", "runs/docs-001", model, tokenizer, template))       # a model that the page offers
one = conversations.new(0)
with conversations.answer(one, {"text": "Hello"}) as events:
    for event in events: ...                          # what the page is told, token by token
"""

import contextlib
import math
import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

from tinygpt.chat.continuation import Continuation
from tinygpt.data.chat_templates import ChatTemplate
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.errors import InUse, InvalidInput, MissingFile
from tinygpt.inference.chat import Chat, Piece
from tinygpt.inference.decoding import generate
from tinygpt.inference.sampling import Sampling
from tinygpt.models.gpt import GPT
from tinygpt.storage.checked_json import Json

MAX_CONVERSATIONS = 100  # kept by the server; beyond that the one that was used longest ago is forgotten
MAX_TOKENS = 4096  # of one answer
N_ALTERNATIVES = 8  # likeliest tokens that the page shows of each position


@dataclass(frozen=True)
class Setting:
    """A number that the page shows and changes; the texts are what it says of it. whole: an integer."""

    name: str
    label: str
    about: str
    value: float
    step: str
    min: float
    max: float | None = None

    @property
    def whole(self) -> bool:
        return self.step == "1"

    def read(self, values: dict[str, Json]) -> float:
        """Its value among what the page sent. Raises ValueError, naming it, for what is no such number; `Sampling` checks its range."""
        found = values.get(self.name, self.value)
        if type(found) not in (int, float) or not math.isfinite(found) or (self.whole and found != int(found)):
            raise InvalidInput(f"{self.name}: {found!r}, expected {'an integer' if self.whole else 'a finite number'}")
        return int(found) if self.whole else float(found)


SETTINGS = (
    Setting(
        "temperature", "Temperature", "Below 1 likely tokens become likelier, above 1 less so; 0: always the likeliest.", 0.8, "0.05", 0
    ),
    Setting("top_k", "Top-k", "Only so many of the likeliest tokens; 0: all.", 50, "1", 0),
    Setting("top_p", "Top-p", "Only the likeliest tokens that together reach this probability; 1: all.", 1, "0.01", 0.01, 1),
    Setting("min_p", "Min-p", "Only tokens at least this fraction as likely as the likeliest; 0: all.", 0, "0.01", 0, 1),
    Setting("repetition_penalty", "Repetition penalty", "Above 1 tokens that occurred become less likely.", 1, "0.05", 0.05),
    Setting("max_tokens", "Most tokens", "Length at which an answer is cut off.", 200, "1", 1, MAX_TOKENS),
    Setting("seed", "Seed", "Of the first answer; each later one, and each regenerated one, draws anew.", 0, "1", 0),
)


@dataclass(frozen=True)
class Offer:
    """A model that the page offers. template: how it learned conversations, None for one that did not; about: where it comes from."""

    title: str
    about: str
    model: GPT
    tokenizer: Tokenizer
    template: ChatTemplate | None = None

    def chat(self) -> Chat:
        if self.template is None:
            return Continuation(self.model, self.tokenizer, alternatives=N_ALTERNATIVES)
        return Chat(self.model, self.tokenizer, self.template, alternatives=N_ALTERNATIVES)

    def shown(self) -> dict[str, Json]:
        """What the page says of it."""
        config, chats = self.model.config, self.template is not None
        mode = (
            "This model has learned no conversations. It continues the text that you type, and what you type next is added to the end. "
            f"It sees at most the last {config.n_positions} tokens. Conversations are learned with: python examples/finetune_chat.py"
        )
        return {
            "title": self.title,
            "about": self.about,
            "chat": chats,
            "mode": "" if chats else mode,
            "context": config.n_positions,
            "starts": bool(self.tokenizer.start) or self.tokenizer.eos_id is not None,
            "facts": [
                ["template", self.template.name if self.template else "none: texts are continued"],
                ["layers", f"{config.n_layer}"],
                ["heads", f"{config.n_head}"],
                ["channels", f"{config.n_embd}"],
                ["context", f"{config.n_positions:,} tokens"],
                ["vocabulary", f"{self.tokenizer.n_vocab:,} tokens, {self.tokenizer.kind}"],
                ["weights", f"{self.model.n_parameters():,}"],
            ],
        }


@dataclass
class Answer:
    """What the page shows of an answer. tokens: (text, probability, alternatives) each; why: how it ended."""

    tokens: list[Json]
    why: str = ""


class Conversation:
    """A chat with the tokens of its answers, which `Chat` does not keep. id: the page's name for it; model: number of the offer."""

    def __init__(self, chat: Chat, model: int) -> None:
        self.id, self.model, self.chat = secrets.token_urlsafe(18), model, chat
        self.answers: list[Answer] = []

    def state(self) -> dict[str, Json]:
        """All that the page shows."""
        messages: list[Json] = [{"role": turn.role, "text": turn.content} for turn in self.chat.messages]
        for message, answer in zip(messages[1::2], self.answers, strict=True):
            message |= {"tokens": answer.tokens, "why": answer.why}
        return {"id": self.id, "model": self.model, "messages": messages, "trimmed": self.chat.trimmed if messages else 0}

    def clear(self) -> None:
        self.chat.messages, self.answers = [], []

    def configure(self, values: Json) -> None:
        """Takes over the settings that the page sent. Raises ValueError, its name in front, for one outside its rule."""
        if not isinstance(values, dict):
            raise InvalidInput(f"settings: {values!r:.50}, expected an object; reload the page")
        found = {setting.name: setting.read(values) for setting in SETTINGS}
        system, n, seed = values.get("system", ""), int(found.pop("max_tokens")), int(found.pop("seed"))
        if not isinstance(system, str):
            raise InvalidInput(f"system: {system!r:.50}, expected a text")
        if not 1 <= n <= MAX_TOKENS:
            raise InvalidInput(f"max_tokens: {n}, expected 1 to {MAX_TOKENS}")
        if seed < 0:
            raise InvalidInput(f"seed: {seed}, expected at least 0")
        top_k = int(found.pop("top_k"))
        self.chat.sampling, self.chat.max_tokens, self.chat.seed, self.chat.system = Sampling(**found, top_k=top_k), n, seed, system

    def begin(self, asked: dict[str, Json]) -> Iterator[Piece]:
        """The answer that the page asked for: to `text`; where `turn` is given, in the stead of that turn; without a text another answer.

        The chat keeps its messages until the answer ends. Raises ValueError for what it cannot answer.
        """
        before = self.chat.messages
        if asked.get("turns", len(before)) != len(before):
            raise InUse("The conversation has changed in another tab. Here it is as it is now.")
        if "text" not in asked:
            return self.chat.regenerate()
        turn = asked.get("turn", len(before))
        if type(turn) is not int or turn not in range(0, len(before) + 1, 2) or not isinstance(asked["text"], str):
            raise InvalidInput(f"turn {turn!r}: no turn of the user, expected the number of one; reload the page")
        self.chat.messages = before[:turn]
        try:
            return self.chat.reply(asked["text"])
        finally:
            self.chat.messages = before

    def stream(self, pieces: Iterator[Piece], stopped: Callable[[], bool]) -> Generator[dict[str, Json]]:
        """What the page is told: the turns left out, each token, and how the answer ended. What was said when `stopped`, or when this iterator
        is closed, is kept."""
        before, answer, started = self.chat.messages, Answer([]), time.perf_counter()
        try:
            for piece in pieces:
                if not answer.tokens:
                    yield {"trimmed": self.chat.trimmed, "read": self.chat.n_context}
                probability = None if piece.id < 0 else piece.probability
                answer.tokens.append([piece.text, probability, [list(other) for other in piece.alternatives]])
                yield {"token": answer.tokens[-1]}
                if stopped():
                    break
        finally:
            pieces.close()  # type: ignore[attr-defined]  # an iterator of `Chat` is a generator
            if kept := self.chat.messages is not before:
                self.answers = [*self.answers[: len(self.chat.messages) // 2 - 1], answer]
                n = sum(token[1] is not None for token in answer.tokens)
                answer.why = "context" if self.chat.stop_reason == "length" and n < self.chat.max_tokens else self.chat.stop_reason
        yield {"why": answer.why or "stopped", "kept": kept, "seconds": time.perf_counter() - started}


class Conversations:
    """All conversations of a server; its methods may be called from several threads."""

    def __init__(self) -> None:
        self.offers: list[Offer] = []
        self._open: dict[str, Conversation] = {}  # the one used last at the end
        self._lock, self._answering, self._stop = threading.Lock(), "", threading.Event()

    def offer(self, model: Offer) -> None:
        """One more model to choose from. Two tokens that nobody sees make its first answer fast: weights are laid out, threads started."""
        generate(model.model, [[0, 0]], 2)
        self.offers.append(model)

    def new(self, model: Json = 0) -> Conversation:
        """Raises ValueError if there is no model of that number."""
        if type(model) is not int or model not in range(len(self.offers)):
            raise InvalidInput(f"model: {model!r:.50}, expected a number below {len(self.offers)}; reload the page")
        made = Conversation(self.offers[model].chat(), model)
        with self._lock:
            self._open[made.id] = made
            for id in [id for id in self._open if id != self._answering][: max(0, len(self._open) - MAX_CONVERSATIONS)]:
                del self._open[id]
        return made

    def find(self, id: Json) -> Conversation:
        """Raises FileNotFoundError for an id that this server has not, or no longer."""
        with self._lock:
            found = self._open.pop(id, None) if isinstance(id, str) else None
            if found is None:
                raise MissingFile("The server does not have this conversation, or no longer.")
            self._open[found.id] = found
            return found

    def unless_answering(self, conversation: Conversation) -> Conversation:
        """Raises BlockingIOError while an answer in it is being made."""
        if conversation.id == self._answering:
            raise InUse("An answer in this conversation is being made. Wait for it, or stop it.")
        return conversation

    def stop(self, conversation: Conversation) -> None:
        """Ends the answer that is being made, if it is this conversation's, after its next token."""
        with self._lock:
            if conversation.id == self._answering:
                self._stop.set()

    @contextlib.contextmanager
    def answer(self, conversation: Conversation, asked: dict[str, Json]) -> Iterator[Iterator[dict[str, Json]]]:
        """An answer, as the events of `Conversation.stream`; it is made while they are read, and ends with the block.

        Raises BlockingIOError while another answer is being made, in whatever conversation; ValueError for what cannot be answered.
        """
        with self._lock:
            if self._answering:
                whose = "in this conversation" if conversation.id == self._answering else "in another tab or conversation"
                raise InUse(f"The model is giving an answer {whose}, and gives one at a time. Try again when it is done.")
            self._answering = conversation.id
            self._stop.clear()
        try:
            conversation.configure(asked.get("settings", {}))
            with contextlib.closing(conversation.stream(conversation.begin(asked), self._stop.is_set)) as events:
                yield events
        finally:
            self._answering = ""
