"""Tasks that need no network: made by code, from the validation documents of the default corpus, from seeds, or from labeled rows.

    task = make_task("summary")          # a name of TASKS
    task = spam_task(load_labeled("my.csv"), "spam")

Every item has one right answer that is known. Solved examples come from the corpus's training documents, or from other draws of the seed.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np

from tinygpt.data.corpora import Corpus, Document, load_corpus
from tinygpt.errors import InvalidInput, did_you_mean
from tinygpt.evaluation.items import Item, Task
from tinygpt.finetuning.labeled import SECTIONS, LabeledData, LabeledText

N_ITEMS = 500  # of each task that could have any number
N_EXAMPLES = 64
_MOST_CHARACTERS = 240  # of a context or passage: the default model reads some 250


@cache
def _docs() -> Corpus:
    return load_corpus("docs")


def _short(text: str, n: int = _MOST_CHARACTERS) -> str:
    """Its start, to the end of a word."""
    return text if len(text) <= n else text[:n].rpartition(" ")[0] or text[:n]


def _from_docs(make: Callable[[Sequence[Document], int], Iterator[Item]], name: str, what: str, most: int = N_ITEMS) -> Task:
    corpus = _docs()
    items = _drawn(make(corpus.validation, 0), most)
    scored = {item.solved for item in items}
    examples = _drawn((item for item in make(corpus.train, 1) if item.solved not in scored), N_EXAMPLES)
    return Task(name, items, examples, what, f"made from {corpus.source}; validation documents, solved examples from training documents")


def _drawn(found: Iterator[Item], n: int) -> list[Item]:
    """n of them, none twice: docstrings repeat each other."""
    items = list({(item.contexts, item.options): item for item in found}.values())
    drawn = np.sort(np.random.default_rng([len(items), n]).permutation(len(items))[:n])
    return [items[i] for i in drawn]


def summary() -> Task:
    """After which of four first paragraphs does this docstring continue like that?"""
    return _from_docs(_summaries, "summary", "which of four summaries belongs to a function")


def _summaries(documents: Sequence[Document], seed: int) -> Iterator[Item]:
    parts = [(document, *document.text.strip().partition("\n\n")[::2]) for document in documents]
    usable = [(d, " ".join(first.split()), rest.strip()) for d, first, rest in parts if len(first) < _MOST_CHARACTERS and len(rest) > 80]
    for number, (document, first, rest) in enumerate(usable):
        rng = np.random.default_rng([seed, number])
        others = [text for other, text, _ in usable if other.group != document.group and text != first]
        drawn = dict.fromkeys(others[i] for i in rng.permutation(len(others)))  # some functions share a summary
        options = [first, *list(drawn)[:3]]
        order = rng.permutation(4).tolist()
        body = _short(rest)
        yield Item("schema", tuple(options[i] + "\n\n" for i in order), (body,), order.index(0), document.group, body)


def section() -> Task:
    """Under which of five headings does this passage stand?"""
    return _from_docs(_sections, "section", "which of five sections a passage comes from")


def _sections(documents: Sequence[Document], seed: int) -> Iterator[Item]:
    for document in documents:
        parts = re.split(r"^(\S.*)\n-{3,}[ \t]*$", document.text, flags=re.MULTILINE)  # text, name, body, name, body, ...
        for name, body in zip(parts[1::2], parts[2::2], strict=True):
            if name not in SECTIONS:
                continue
            contexts = tuple(f"{heading}\n{'-' * len(heading)}\n" for heading in SECTIONS)
            rest = body.strip("\n")
            for _ in range(4):  # a long section several times
                passage, rest = _short(rest), rest[len(_short(rest)) :].strip("\n")
                if len(passage) >= 20:
                    yield Item("schema", contexts, (passage,), SECTIONS.index(name), document.group, passage.strip())


def next_word() -> Task:
    """The last word of a sentence from a validation document, with what stands before it: LAMBADA's form (arXiv:1606.06031)."""
    return _from_docs(_last_words, "next-word", "the last word of a held-out sentence")


def _last_words(documents: Sequence[Document], seed: int) -> Iterator[Item]:
    for document in documents:
        for match in re.finditer(r"(?<=[a-z,]) ([a-z]{3,})\.(?=\s)", document.text):
            before = document.text[max(0, match.start() - 2 * _MOST_CHARACTERS) : match.start()]
            if len(before) > 60:
                yield Item("next", (before,), (f" {match[1]}",), group=document.group)


def likelihood() -> Task:
    """The validation documents themselves."""
    return _from_docs(
        lambda documents, seed: (Item("text", ("",), (d.text,), group=d.group) for d in documents), "likelihood", "validation documents"
    )


_WORDS = (
    "array axis value index shape type input output order function element number string result matrix vector sum mean size list".split()
)


def copying() -> Task:
    """Twelve random words, the same again: which comes next? A model that looks back and copies (induction: Olsson et al. 2022,
    arXiv:2209.11895) finds it; nothing else tells."""
    return _by_seed(_copied, "copying", "the next word of a repeated random sequence")


def _copied(rng: np.random.Generator) -> Item:
    words = [_WORDS[i] for i in rng.permutation(len(_WORDS))[:12]]
    asked = int(rng.integers(4, 12))
    text = " ".join([*words, *words[:asked]])
    options = [words[asked], *(words[i] for i in rng.permutation([i for i in range(12) if i != asked])[:3])]
    order = rng.permutation(4).tolist()
    return Item("choice", (text,), tuple(f" {options[i]}" for i in order), order.index(0), passage=" ".join(words))


def arithmetic() -> Task:
    """Sums and differences of numbers of up to three digits, four results to choose from."""
    return _by_seed(_sums, "arithmetic", "sums and differences up to three digits")


def _sums(rng: np.random.Generator) -> Item:
    a, b = (int(rng.integers(1, 10 ** int(rng.integers(1, 4)))) for _ in range(2))
    sign = "+" if rng.random() < 0.5 else "-"
    a, b = (a, b) if sign == "+" else (max(a, b), min(a, b))
    right = a + b if sign == "+" else a - b
    near = [n for n in (right - 10, right - 2, right - 1, right + 1, right + 2, right + 10, right + 100) if n >= 0]
    options = [right, *(near[i] for i in rng.permutation(len(near))[:3])]
    order = rng.permutation(4).tolist()
    return Item("choice", (f"{a} {sign} {b} =",), tuple(f" {options[i]}" for i in order), order.index(0))


def _by_seed(make: Callable[[np.random.Generator], Item], name: str, what: str) -> Task:
    """N_ITEMS different items, and other ones as examples; item n shares no document with another."""
    made: dict[str, Item] = {}
    for number in range(4 * (N_ITEMS + N_EXAMPLES)):
        item = make(np.random.default_rng([7, number]))
        made.setdefault(item.contexts[0], item)
        if len(made) == N_ITEMS + N_EXAMPLES:
            break
    items = [Item(i.kind, i.contexts, i.options, i.right, group, i.passage) for group, i in enumerate(made.values())]
    return Task(name, items[:-N_EXAMPLES], items[-N_EXAMPLES:], what, "made by code from a fixed seed")


def asked_label(labels: Sequence[str]) -> str:
    """The label that is asked for where nobody says: spam. Raises ValueError, naming the labels, where there is none of that name."""
    if found := [label for label in labels if label.casefold() == "spam"]:
        return found[0]
    raise InvalidInput(
        f"--label: labels {', '.join(labels)}, expected the one that is asked for, because none is spam; --label {labels[0]}"
    )


def label_task(data: LabeledData, label: str) -> Task:
    """Labeled rows as a question that a prompt asks: "Is the following text 'spam'? Answer with 'yes' or 'no'."

    Items are N_ITEMS rows at most, as many with the label as without, drawn by a fixed seed, from the data's held-out rows where it has them;
    solved examples are other rows. Equal texts count once.
    Raises ValueError for a label that the rows do not have, and for one that all of them have.
    """
    if label not in data.labels:
        raise InvalidInput(f"label {label!r}: no row has it, expected one of {', '.join(data.labels)}; {did_you_mean(label, data.labels)}")
    items = _yes_or_no(data.held_out or data.rows, label)
    if not items:
        raise InvalidInput(f"label {label!r}: all rows that could be asked of have it, or none, expected both; add rows of the other kind")
    if data.held_out:
        scored, taken = items[:N_ITEMS], _yes_or_no(data.rows, label)[:N_EXAMPLES]
    else:
        n_examples = min(N_EXAMPLES, len(items) // 4)
        scored, taken = items[n_examples : n_examples + N_ITEMS], items[:n_examples]
    asked = {item.contexts for item in scored}
    return Task(f"is {label}", scored, [e for e in taken if e.contexts not in asked], f"yes or no: is a text {label}", data.source)


def _yes_or_no(rows: Sequence[LabeledText], label: str) -> list[Item]:
    """Rows with the label and without, in turn, as many of each; of equal texts one."""
    rng = np.random.default_rng([3, len(rows)])
    drawn = [rows[i] for i in rng.permutation(len(rows))]
    different = {row.group if row.group >= 0 else -2 - i: row for i, row in enumerate(drawn)}
    halves = [[(group, row) for group, row in different.items() if (row.label == label) is wanted] for wanted in (True, False)]
    items = []
    for group, row in (each for pair in zip(*halves, strict=False) for each in pair):
        question = f"Is the following text '{label}'? Answer with 'yes' or 'no'.\n\nText: {_short(row.text)}\nAnswer:"
        items.append(Item("choice", (question,), (" yes", " no"), 0 if row.label == label else 1, group, _short(row.text)))
    return items


TASKS: dict[str, Callable[[], Task]] = {
    "likelihood": likelihood, "next-word": next_word, "section": section, "summary": summary, "copying": copying, "arithmetic": arithmetic,
}  # fmt: skip
"""By name; each takes about two seconds, most of it for reading the corpus once."""


def make_task(name: str) -> Task:
    """Raises ValueError for an unknown name, with the nearest one."""
    if name not in TASKS:
        raise InvalidInput(f"task {name!r}: unknown, expected one of {', '.join(TASKS)}, or --task-file FILE; {did_you_mean(name, TASKS)}")
    return TASKS[name]()
