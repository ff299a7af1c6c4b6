"""Talking to a model that has learned no conversations: it continues what was written, by the user and by itself."""

from collections.abc import Iterator, Sequence

from tinygpt.data.chat_templates import Message, TurnTemplate
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.errors import InvalidInput
from tinygpt.inference.chat import Chat, Piece
from tinygpt.inference.decoding import TokenIterator
from tinygpt.inference.sampling import Sampling
from tinygpt.inference.text import IncrementalDetokenizer, prompt_ids
from tinygpt.models.protocols import Decodable

_NO_MARKS = TurnTemplate(
    "continuation", "", dict.fromkeys(("system", "user", "assistant"), ""), dict.fromkeys(("system", "user", "assistant"), "")
)


class Continuation(Chat):
    """As `Chat`, without a template: the turns are one text, letter by letter, with nothing between them.

    A turn may be empty: the model continues its own text, or begins one. The context holds the last tokens of the text, in the course of a
    reply, too; `trimmed` counts the turns of which the reply saw nothing at its start.
    """

    def __init__(
        self, model: Decodable, tokenizer: Tokenizer, *, sampling: Sampling | None = None, max_tokens: int = 200, seed: int = 0,
        alternatives: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(
            model, tokenizer, _NO_MARKS, sampling=sampling, max_tokens=max_tokens, seed=seed, alternatives=alternatives
        )  # fmt: skip

    def _answer(self, history: Sequence[Message], text: str) -> Iterator[Piece]:
        turns = [*history, Message("user", text)]
        return self._stream(turns, *self.fit(turns))

    def fit(self, turns: Sequence[Message]) -> tuple[list[int], int]:
        """Ids of the text's last tokens, as many as the context holds, and how many turns are not among them."""
        ids = prompt_ids(self.tokenizer, "".join(turn.content for turn in turns))
        if not ids:
            raise InvalidInput("chat: no text, expected some: the tokenizer has no token that begins one; type a word")
        seen = ids[-self.model.config.n_positions :]
        n_characters, n_left_out = len(self.tokenizer.decode(seen)), len(turns) - 1
        while n_left_out and n_characters > len(turns[n_left_out].content):
            n_characters -= len(turns[n_left_out].content)
            n_left_out -= 1
        return seen, 0 if len(seen) == len(ids) else n_left_out

    def _stream(self, turns: list[Message], ids: list[int], n_left_out: int) -> Iterator[Piece]:
        tokens = TokenIterator(
            self.model, [ids], self.max_tokens, self.sampling, seed=self.seed + self._n_replies, eos_id=self.tokenizer.end_ids,
            alternatives=self.alternatives, n_tokens=self.tokenizer.n_vocab,
        )  # fmt: skip
        text = IncrementalDetokenizer(self.tokenizer, (), ids[-1], self.tokenizer.end_ids)
        self.trimmed, self.n_context, self.stop_reason = n_left_out, len(ids), "stopped"
        self._n_replies += 1
        try:
            for (token,) in tokens:
                new = text.add(int(token))
                if text.stop_reason == "eos":
                    break
                yield self._piece(new, tokens.infos[0][-1])
            if rest := text.finish():
                yield Piece(rest, -1, 1.0)
            self.stop_reason = "length" if text.stop_reason == "length" else "end"
        finally:
            if text.text or self.stop_reason != "stopped":
                self.messages = [*turns, Message("assistant", text.text)]
