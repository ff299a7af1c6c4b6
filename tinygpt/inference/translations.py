"""Texts translated, many at once, and how good translations are: exact match, BLEU and chrF, for all texts and for each kind of them.

    given = translate_texts(model, tokenizer, texts, n_beams=4)
    print(scores_table(kinds, given, expected))

Exact match is the share of translations that equal the reference: right for numbers and dates, where there is one answer, and too strict for
sentences that can be said in several ways. BLEU counts runs of one to four words that both have, chrF runs of one to six characters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tinygpt.data.tokenizer import Tokenizer
from tinygpt.errors import InvalidInput
from tinygpt.models.seq2seq import Seq2Seq


def translate_texts(
    model: Seq2Seq, tokenizer: Tokenizer, texts: Sequence[str], *, n_beams: int = 1, length_penalty: float = 1.0, batch_size: int = 50
) -> list[str]:
    """The translation of each text, at most ten tokens longer than twice the longest source; the options are those of
    `tinygpt.inference.translate.search`. Raises ValueError for a text longer than the model's context."""
    end = model.config.eos_id
    sources = [[*tokenizer.encode(text), end] for text in texts]
    most = min(2 * max(map(len, sources), default=0) + 10, model.config.n_positions)
    targets = model.translate(
        sources, most, n_beams=n_beams, length_penalty=length_penalty, batch_size=batch_size, n_tokens=tokenizer.target.n_vocab
    )
    kept = [[id for id in target if id not in (end, model.config.pad_id)] for target in targets]
    return [tokenizer.target.decode(ids) for ids in kept]


@dataclass(frozen=True)
class TranslationScores:
    """n translations; the share of exact matches (0 to 1); BLEU and chrF (0 to 100) as sacrebleu has them by default, of all texts together.
    None without sacrebleu; BLEU also where no reference has four words.

    Source  Papineni et al. 2002, BLEU; Popovic 2015, chrF; Post 2018, A call for clarity in reporting BLEU scores, arXiv:1804.08771
    """

    n: int
    exact_match: float
    bleu: float | None
    chrf: float | None

    def cells(self) -> list[str]:
        """For a table: texts, exact match, BLEU, chrF."""
        return [f"{self.n:,}", f"{self.exact_match:.1%}", *("-" if x is None else f"{x:.1f}" for x in (self.bleu, self.chrf))]


def score_translations(given: Sequence[str], expected: Sequence[str]) -> TranslationScores:
    """All scores of translations against their references. Raises ValueError if there are none, or not as many."""
    if not given or len(given) != len(expected):
        rule = "expected as many, and at least one"
        raise InvalidInput(f"score_translations: {len(given)} translations and {len(expected)} references, {rule}")
    bleu = chrf = None
    try:
        import sacrebleu

        words = sacrebleu.corpus_bleu(list(given), [list(expected)])
        bleu = float(words.score) if any(len(text.split()) >= 4 for text in expected) else None
        chrf = float(sacrebleu.corpus_chrf(list(given), [list(expected)]).score)
    except ImportError:
        pass
    return TranslationScores(len(given), sum(map(str.__eq__, given, expected)) / len(given), bleu, chrf)


def scores_table(kinds: Sequence[str], given: Sequence[str], expected: Sequence[str]) -> str:
    """The scores of each kind of text, in the order in which kinds appear, and of all."""
    rows = [["", "texts", "exact match", "BLEU", "chrF"]]
    for kind in [*dict.fromkeys(kinds), ""]:
        which = [i for i, each in enumerate(kinds) if kind in (each, "")]
        rows.append([kind or "all", *score_translations([given[i] for i in which], [expected[i] for i in which]).cells()])
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table of text: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [[row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))] for row in rows]
    return "\n".join("  ".join(line).rstrip() for line in lines)
