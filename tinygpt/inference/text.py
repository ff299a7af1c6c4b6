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

    before    the token before the first one, if there is one: a word tokenizer puts spaces between some
    text      all text that is final
    stopped   True once a stop string has come; the text ends before it
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), before: int | None = None) -> None:
        if any(not s for s in stop):
            raise InvalidInput("stop: an empty string, expected at least one character")
        self.text, self.stopped = "", False
        self._tokenizer, self._stop, self._before = tokenizer, tuple(stop), before
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._pending = ""  # text that may turn out to begin a stop string

    def add(self, token: int) -> str:
        """The text that has become final with this token, often one word, sometimes nothing."""
        self._pending += self._decoder.decode(self._bytes(token))
        self._before = token
        end = min((i for s in self._stop if (i := self._pending.find(s)) >= 0), default=-1)
        self.stopped = end >= 0
        held = max((n for s in self._stop for n in range(1, len(s)) if self._pending.endswith(s[:n])), default=0)
        return self._release(end if self.stopped else len(self._pending) - held)

    def finish(self) -> str:
        """The remaining text, when no token follows."""
        self._pending += self._decoder.decode(b"", final=True)
        return "" if self.stopped else self._release(len(self._pending))

    def _bytes(self, token: int) -> bytes:
        """What the token adds after the one before it."""
        before = [] if self._before is None else [self._before]
        return self._tokenizer.decode_bytes([*before, token])[len(self._tokenizer.decode_bytes(before)) :]

    def _release(self, n: int) -> str:
        ready, self._pending = self._pending[:n], self._pending[n:]
        self.text += ready
        return ready


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Ids of a prompt, those that belong in front of a text included; without any it starts from <|endoftext|>, where there is that."""
    ids = tokenizer.encode_from_start(prompt)
    return [tokenizer.eos_id] if not ids and tokenizer.eos_id is not None else ids


class TextOptions(DecodingOptions, total=False):
    """Options of everything that generates text; `TextStream` says what they mean."""

    stop: Sequence[str]
    end_ids: Collection[int]


class TextStream:
    """Iterator over pieces of generated text, never half a character; afterwards `text`, `ids` and `stop_reason` are set.

    prompt       text to continue; "" starts from <|endoftext|>, where the tokenizer has it
    stop         strings that end the text (not shown themselves)
    end_ids      more tokens that end it, in addition to the tokenizer's own
    options      seed, use_cache, slide, alternatives, on_slide: see `tinygpt.inference.decoding.generate`
    infos        a TokenInfo per token, with `alternatives`
    stop_reason  "eos", "stop string" or "length"
    """

    def __init__(
        self, model: Decodable, tokenizer: Tokenizer, prompt: str, max_new_tokens: int, sampling: Sampling | None = None, *,
        stop: Sequence[str] = (), end_ids: Collection[int] = (), **options: Unpack[DecodingOptions],
    ) -> None:  # fmt: skip
        start = prompt_ids(tokenizer, prompt)
        self._detokenizer = IncrementalDetokenizer(tokenizer, stop, start[-1] if prompt and start else None)
        self.ids: list[int] = []
        self.stop_reason = "length"
        self._ends = {*tokenizer.end_ids, *end_ids}
        options["n_tokens"] = tokenizer.n_vocab
        self._tokens = TokenIterator(model, [start], max_new_tokens, sampling, eos_id=self._ends, **options)

    @property
    def text(self) -> str:
        return self._detokenizer.text

    @property
    def infos(self) -> list[TokenInfo]:
        return self._tokens.infos[0][: len(self.ids)]

    def __iter__(self) -> Iterator[str]:
        for new in self._tokens:
            token = int(new[0])
            if token in self._ends:
                self.stop_reason = "eos"
                break
            self.ids.append(token)
            if piece := self._detokenizer.add(token):
                yield piece
            if self._detokenizer.stopped:
                self.stop_reason = "stop string"
                break
        if rest := self._detokenizer.finish():
            yield rest


@dataclass(frozen=True)
class Completion:
    """A prompt's continuation. ids are without an end token; stop_reason is "eos", "stop string" or "length"."""

    text: str
    ids: list[int]
    stop_reason: str
    infos: list[TokenInfo]


def complete_all(
    model: Decodable, tokenizer: Tokenizer, prompts: Sequence[str], max_new_tokens: int, sampling: Sampling | None = None, *,
    stop: Sequence[str] = (), end_ids: Collection[int] = (), **options: Unpack[DecodingOptions],
) -> list[Completion]:  # fmt: skip
    """Continues several prompts at once, of any lengths; each ends on its own. The arguments are those of `TextStream`."""
    starts = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    ends = {*tokenizer.end_ids, *end_ids}
    options["n_tokens"] = tokenizer.n_vocab
    tokens = TokenIterator(model, starts, max_new_tokens, sampling, eos_id=ends, **options)
    texts = [IncrementalDetokenizer(tokenizer, stop, start[-1] if prompt else None) for prompt, start in zip(prompts, starts, strict=True)]
    ids: list[list[int]] = [[] for _ in prompts]
    reasons = ["length"] * len(prompts)
    for new in tokens:
        for row in [row for row, reason in enumerate(reasons) if reason == "length"]:
            token = int(new[row])
            if token in ends:
                reasons[row] = "eos"
                continue
            ids[row].append(token)
            texts[row].add(token)
            if texts[row].stopped:
                reasons[row], tokens.done[row] = "stop string", True
    for text in texts:
        text.finish()
    return [Completion(text.text, ids[row], reasons[row], tokens.infos[row][: len(ids[row])]) for row, text in enumerate(texts)]


def complete(
    model: Decodable,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    **options: Unpack[TextOptions],
) -> Completion:
    """Continues one prompt; the arguments are those of `TextStream`."""
    return complete_all(model, tokenizer, [prompt], max_new_tokens, sampling, **options)[0]
