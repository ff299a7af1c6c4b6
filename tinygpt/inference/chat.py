"""A conversation with a model: it remembers what was said, streams its replies, and says when it had to forget.

chat = Chat(model, tokenizer, chat_template("plain", tokenizer), max_tokens=60)
for piece in chat.reply("What does numpy.sort(a, axis) do?"): print(piece.text, end="")
for piece in chat.reply("And its first parameter?"): print(piece.text, end="")      # reads the turns before as well
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tinygpt.data.chat_templates import ChatTemplate, Message, prompt_ids
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.errors import InvalidInput
from tinygpt.inference.decoding import TokenInfo, TokenIterator
from tinygpt.inference.sampling import Sampling
from tinygpt.inference.text import IncrementalDetokenizer
from tinygpt.models.protocols import Decodable


@dataclass(frozen=True)
class Piece:
    """One token of a reply: the text that has become final with it (often a word, sometimes nothing), its id, the probability that the model
    gave it before temperature and such, and the likeliest (text, probability) at its position. The last piece of a reply may have no token
    (id -1, probability 1): text that was held back until it was clear that it begins no stop string."""

    text: str
    id: int
    probability: float
    alternatives: tuple[tuple[str, float], ...] = ()


class Chat:
    """A conversation with a model.

    messages      turns of user and assistant so far, without the system's; a reply joins them with the turn that it answers when it ends, or
                  when its iterator is closed after some text. May be assigned: [] starts anew
    system        what the assistant is told before everything, never left out; "": nothing
    trimmed       turns, the oldest, that did not fit into the context of the last reply: always complete exchanges
    stop_reason   how the last reply ended: "end", "length" (max_tokens or the context), or "stopped" (its iterator was closed)
    n_context     tokens that the model read before the last reply
    max_tokens    the most tokens of a reply; a quarter of the context, or these if they are fewer, is kept free for it
    alternatives  how many likeliest tokens a piece names
    seed          of the first reply; each later one, and each `regenerate`, draws anew
    """

    def __init__(
        self, model: Decodable, tokenizer: Tokenizer, template: ChatTemplate, *, system: str = "", sampling: Sampling | None = None,
        max_tokens: int = 200, seed: int = 0, alternatives: int = 0,
    ) -> None:  # fmt: skip
        if max_tokens < 1:
            raise InvalidInput(f"max_tokens: {max_tokens}, expected at least 1")
        self.model, self.tokenizer, self.template, self.system = model, tokenizer, template, system
        self.sampling, self.max_tokens, self.seed, self.alternatives = sampling or Sampling(), max_tokens, seed, alternatives
        self.messages: list[Message] = []
        self.trimmed, self.stop_reason, self.n_context, self._n_replies = 0, "", 0, 0

    def reply(self, text: str) -> Iterator[Piece]:
        """Streams the answer to the user's next turn. Raises ValueError, before anything is generated, for a turn without text or one that the
        context does not hold."""
        return self._answer(self.messages, text)

    def regenerate(self) -> Iterator[Piece]:
        """Streams another answer to the user's last turn, which replaces the one before. Raises ValueError where there is none."""
        if not self.messages:
            raise InvalidInput("regenerate: no reply yet, expected one; say something first")
        return self._answer(self.messages[:-2], self.messages[-2].content)

    def _answer(self, history: Sequence[Message], text: str) -> Iterator[Piece]:
        if not text.strip():
            raise InvalidInput("chat: a turn without text, expected some; say something")
        turns = [*history, Message("user", text)]
        ids, n_left_out = self.fit(turns)
        return self._stream(turns, ids, n_left_out)

    def fit(self, turns: Sequence[Message]) -> tuple[list[int], int]:
        """Ids of the newest turns that leave room for a reply, and how many turns are left out. Raises ValueError if the last does not fit."""
        n_positions = self.model.config.n_positions
        room = n_positions - min(self.max_tokens, n_positions // 4)
        first = [Message("system", self.system)] if self.system.strip() else []
        for n_left_out in range(0, len(turns), 2):
            ids = prompt_ids(self.template, [*first, *turns[n_left_out:]], self.tokenizer)
            if len(ids) <= room:
                return ids, n_left_out
        rule = f"at most {room} of the context's {n_positions}, so that a reply fits"
        raise InvalidInput(
            f"chat: {len(ids)} tokens in the last turn{' with the system prompt' if first else ''}, expected {rule}; shorten it"
        )

    def _stream(self, turns: list[Message], ids: list[int], n_left_out: int) -> Iterator[Piece]:
        stop = self.tokenizer.encode_array(self.template.stop, allow_special=True)
        is_token = len(stop) == 1 and int(stop[0]) in self.tokenizer.special.values()
        ends = {*self.tokenizer.end_ids, *(stop.tolist() if is_token else ())}
        tokens = TokenIterator(
            self.model, [ids], min(self.max_tokens, self.model.config.n_positions - len(ids)), self.sampling, seed=self.seed + self._n_replies,
            eos_id=ends, alternatives=self.alternatives, n_tokens=self.tokenizer.n_vocab,
        )  # fmt: skip
        text = IncrementalDetokenizer(self.tokenizer, () if is_token else (self.template.stop,), ids[-1], ends)
        self.trimmed, self.n_context, self.stop_reason = n_left_out, len(ids), "stopped"
        self._n_replies += 1
        try:
            for (token,) in tokens:
                new = text.add(int(token))
                if text.stop_reason != "eos":
                    yield self._piece(new, tokens.infos[0][-1])
                if text.stop_reason != "length":
                    break
            if rest := text.finish():
                yield Piece(rest, -1, 1.0)
            self.stop_reason = "length" if text.stop_reason == "length" else "end"
        finally:
            if text.text.strip() or self.stop_reason != "stopped":
                self.messages = [*turns, Message("assistant", text.text.strip())]

    def _piece(self, text: str, info: TokenInfo) -> Piece:
        others = tuple((self.tokenizer.decode([id]), math.exp(log_p)) for id, log_p in info.alternatives)
        return Piece(text, info.id, math.exp(info.log_prob), others)
