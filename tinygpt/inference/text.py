"""From a prompt to generated text: detokenizing token by token, stop strings, many prompts at once.

for piece in TextStream(model, tokenizer, "The answer", 50): print(piece, end="")   # text as it is generated
complete(model, tokenizer, "The answer", 50, stop=["\\n"]).text
"""

import codecs
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Unpack

from tinygpt.data.tokenizer import Tokenizer
from tinygpt.errors import InvalidInput
from tinygpt.inference.decoding import DecodingOptions, TokenInfo, TokenIterator
from tinygpt.inference.sampling import Sampling
from tinygpt.models.protocols import Decodable


class IncrementalDetokenizer:
    """Turns token ids into text: never half a character, never a part of what may become a stop string.

    before        the token before the first one, if there is one: a word tokenizer puts spaces between some
    text, ids     all text that is final, and the tokens, without an end token
    stop_reason   "eos" after an end token, "stop string" after one, which is not part of the text; else "length"
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), before: int | None = None, end_ids: Collection[int] = ()) -> None:
        if any(not s for s in stop):
            raise InvalidInput("stop: an empty string, expected at least one character")
        self.text, self.stop_reason = "", "length"
        self.ids: list[int] = []
        self._before = [] if before is None else [before]
        self._tokenizer, self._stop, self._end_ids = tokenizer, tuple(stop), end_ids
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._pending = ""  # text that may turn out to begin a stop string

    def add(self, token: int) -> str:
        """The text that has become final with this token, often one word, sometimes nothing."""
        if token in self._end_ids:
            self.stop_reason = "eos"
            return ""
        self.ids.append(token)
        n_before = len(self._tokenizer.decode_bytes(self._before))
        self._pending += self._decoder.decode(self._tokenizer.decode_bytes([*self._before, token])[n_before:])
        self._before = [token]
        if found := [i for s in self._stop if (i := self._pending.find(s)) >= 0]:
            self.stop_reason = "stop string"
            return self._release(min(found))
        held = max((n for s in self._stop for n in range(1, len(s)) if self._pending.endswith(s[:n])), default=0)
        return self._release(len(self._pending) - held)

    def finish(self) -> str:
        """The remaining text, when no token follows."""
        self._pending += self._decoder.decode(b"", final=True)
        return "" if self.stop_reason == "stop string" else self._release(len(self._pending))

    def _release(self, n: int) -> str:
        ready, self._pending = self._pending[:n], self._pending[n:]
        self.text += ready
        return ready


def prompt_ids(tokenizer: Tokenizer, prompt: str | Sequence[int]) -> list[int]:
    """Ids of a prompt, those that belong in front of a text included; without any it starts from <|endoftext|>, where there is that. A prompt of
    ids is taken as it is."""
    if not isinstance(prompt, str):
        return list(prompt)
    ids = tokenizer.encode_from_start(prompt)
    return [tokenizer.eos_id] if not ids and tokenizer.eos_id is not None else ids


class TextOptions(DecodingOptions, total=False):
    """Options of everything that generates text; `TextStream` says what they mean."""

    stop: Sequence[str]
    end_ids: Collection[int]


class TextStream(IncrementalDetokenizer):
    """Iterator over pieces of generated text, never half a character; afterwards `text`, `ids` and `stop_reason` say what came of it.

    prompt       text to continue; "" starts from <|endoftext|>, where the tokenizer has it
    stop         strings that end the text (not shown themselves)
    end_ids      more tokens that end it, in addition to the tokenizer's own
    options      seed, use_cache, slide, alternatives, on_slide: see `tinygpt.inference.decoding.generate`
    infos        a TokenInfo per token, with `alternatives`
    """

    def __init__(
        self, model: Decodable, tokenizer: Tokenizer, prompt: str, max_new_tokens: int, sampling: Sampling | None = None, *,
        stop: Sequence[str] = (), end_ids: Collection[int] = (), **options: Unpack[DecodingOptions],
    ) -> None:  # fmt: skip
        start, ends = prompt_ids(tokenizer, prompt), {*tokenizer.end_ids, *end_ids}
        super().__init__(tokenizer, stop, start[-1] if prompt and start else None, ends)
        options["n_tokens"] = tokenizer.n_vocab
        self._tokens = TokenIterator(model, [start], max_new_tokens, sampling, eos_id=ends, **options)

    @property
    def infos(self) -> list[TokenInfo]:
        return self._tokens.infos[0][: len(self.ids)]

    def __iter__(self) -> Iterator[str]:
        for (token,) in self._tokens:
            if piece := self.add(int(token)):
                yield piece
            if self.stop_reason != "length":
                break
        if rest := self.finish():
            yield rest


@dataclass(frozen=True)
class Completion:
    """A prompt's continuation: text, ids and stop_reason as `IncrementalDetokenizer` has them."""

    text: str
    ids: list[int]
    stop_reason: str
    infos: list[TokenInfo]


def complete_all(
    model: Decodable, tokenizer: Tokenizer, prompts: Sequence[str | Sequence[int]], max_new_tokens: int,
    sampling: Sampling | None = None, *, stop: Sequence[str] = (), end_ids: Collection[int] = (), **options: Unpack[DecodingOptions],
) -> list[Completion]:  # fmt: skip
    """Continues several prompts at once, texts or ids, of any lengths; each ends on its own. The arguments are those of `TextStream`."""
    starts, ends = [prompt_ids(tokenizer, prompt) for prompt in prompts], {*tokenizer.end_ids, *end_ids}
    options["n_tokens"] = tokenizer.n_vocab
    tokens = TokenIterator(model, starts, max_new_tokens, sampling, eos_id=ends, **options)
    before = [start[-1] if prompt else None for prompt, start in zip(prompts, starts, strict=True)]
    texts = [IncrementalDetokenizer(tokenizer, stop, last, ends) for last in before]
    for new in tokens:
        for row, text in enumerate(texts):
            if text.stop_reason == "length":
                text.add(int(new[row]))
                tokens.done[row] = text.stop_reason != "length"
    for text in texts:
        text.finish()
    return [Completion(t.text, t.ids, t.stop_reason, infos[: len(t.ids)]) for t, infos in zip(texts, tokens.infos, strict=True)]


def complete(
    model: Decodable, tokenizer: Tokenizer, prompt: str, max_new_tokens: int, sampling: Sampling | None = None,
    **options: Unpack[TextOptions],
) -> Completion:  # fmt: skip
    """Continues one prompt; the arguments are those of `TextStream`."""
    return complete_all(model, tokenizer, [prompt], max_new_tokens, sampling, **options)[0]
