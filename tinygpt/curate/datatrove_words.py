"""Our words as a tokenizer of datatrove: MinhashConfig(...), MinhashDedupSignature(..., language=WORDS). Needs the extra `curate`."""

from datatrove.utils.word_tokenizers import WordTokenizer

from tinygpt.curate.words import sentence_spans, sentences, words


class Words(WordTokenizer):  # type: ignore[misc,unused-ignore]  # its library has no types
    """`tinygpt.curate.words`, under datatrove's names. Equal to every other one, so that its caches see one tokenizer in each process."""

    def __init__(self) -> None:
        super().__init__("tinygpt.curate.words")

    def word_tokenize(self, text: str) -> list[str]:
        return words(text)

    def sent_tokenize(self, text: str) -> list[str]:
        return sentences(text)

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return sentence_spans(text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Words)

    def __hash__(self) -> int:
        return hash(Words)


WORDS = Words()
