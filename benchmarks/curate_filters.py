"""What curation's rules, language step and classifier do to clean text and to dirt: the tables of docs/curation.md.

    python benchmarks/curate_filters.py rules         # limits of the code and of the papers; the share that each profile keeps
    python benchmarks/curate_filters.py language      # the share of the default corpus that is kept, by confidence
    python benchmarks/curate_filters.py classifier --perplexity runs/docs-001      # AUC by kind of dirt, of classifier and GPT
    python benchmarks/curate_filters.py speed         # CPU time per document of each profile, and of datatrove's filters

Clean text: the default corpus, and Python's standard library for `code`. Dirt: `tinygpt.curate.dirt`, made from the validation texts of the
default corpus. Needs the extras curate and classify.
"""

import argparse
import random
import re
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from curation import prose

from tinygpt.curate.dirt import MAKERS, soiled
from tinygpt.curate.language import languages
from tinygpt.curate.perplexity import second_opinion
from tinygpt.curate.quality import examples, fit, report
from tinygpt.curate.rules import PAPERS, PROFILES, check
from tinygpt.data.corpora import load_corpus
from tinygpt.fields import Json

SHOWN = ("docs", "code", "prose", "web")


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A Markdown table."""
    for row in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row) + " |")


def corpora() -> dict[str, list[str]]:
    """Texts by what they are."""
    corpus = load_corpus("docs")
    library = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    held_out = [document.text for document in corpus.validation]
    found = {"default corpus": held_out + [document.text for document in corpus.train]}
    found["Python's library"] = [path.read_text(encoding="utf-8") for path in library]
    return found | {kind: [soiled(text, kind) for text in held_out] for kind in MAKERS}


def rules() -> None:
    published = ("gopher-quality", "gopher-repetition", "c4", "fineweb")
    papers = {(difference.profile, difference.rule): difference.paper for difference in PAPERS}
    own = {name: PROFILES[name].in_effect() for name in SHOWN}
    rows = []
    for profile in published:
        for rule, limit in PROFILES[profile].in_effect().items():
            values = ["on" if rule.startswith("drop") and rule in own[name] else own[name].get(rule, "") for name in SHOWN]
            rows.append([profile, rule, "on" if rule.startswith("drop") else limit, papers.get((profile, rule), "the same"), *values])
    known = {row[1] for row in rows}
    rows += [["", rule, "", "", *(own[name].get(rule, "") for name in SHOWN)] for rule in PROFILES["code"].in_effect() if rule not in known]
    table(["set", "rule", "published code", "paper", *SHOWN], rows)
    print()
    shares: list[list[object]] = []
    for name, texts in corpora().items():
        verdicts = {profile: [check(text, PROFILES[profile]).rule for text in texts] for profile in SHOWN}
        shares.append([name, len(texts), *(found.count("") / len(texts) for found in verdicts.values())])
    table(["text", "documents", *SHOWN], shares)


def language() -> None:
    texts = corpora()["default corpus"]
    found = [languages(text) for text in texts]
    likeliest = sum(next(iter(each), "") == "en" for each in found)
    print(f"{len(texts)} documents, English is the likeliest language of {likeliest}")
    for least in (0.65, 0.5, 0.3, 0.2):
        n = sum(each.get("en", 0) >= least for each in found)
        print(f"confidence at least {least}: {n} kept, {n / len(texts):.3f}")


def classifier(run: str) -> None:
    rows = examples()
    model = fit(rows)
    found = report(model, rows)
    other: Json = second_opinion(run, model, rows, [])["kinds"] if run else {}
    print(f"threshold {model.threshold:.3f} keeps {found['good_kept']:.3f} of the good texts of the last part")
    for name, curve in found["roc"].items():
        print(f"AUC of {name}: {interval(curve['auc'])}")
    table(
        ["dirt", "in training", "AUC, classifier", "removed", "AUC, perplexity"],
        [
            [
                kind,
                "yes" if v["in_training"] else "no",
                interval(v["auc"]),
                v["removed"],
                interval(other[kind]["perplexity"]) if run else "",
            ]
            for kind, v in found["kinds"].items()
        ],
    )


def interval(auc: Json) -> str:
    return f"{auc['mean']:.3f} ({auc['low']:.3f} to {auc['high']:.3f})"


def speed() -> None:
    from datatrove.data import Document
    from datatrove.pipeline import filters

    from tinygpt.curate.datatrove_words import WORDS

    theirs = {
        "gopher-quality": filters.GopherQualityFilter, "gopher-repetition": filters.GopherRepetitionFilter,
        "c4": filters.C4QualityFilter, "fineweb": filters.FineWebQualityFilter,
    }  # fmt: skip
    texts = corpora()["default corpus"]
    words = [word for text in texts for word in re.findall("[a-z]{2,}", text)]
    rng = random.Random(0)
    made = [prose(rng.choices(words, k=250)) for _ in texts]  # no rule removes it, so it goes through all of them
    rows = []
    for name, limits in PROFILES.items():
        ours = [microseconds(lambda text, limits=limits: check(text, limits), some) for some in (texts, made)]  # type: ignore[misc]
        other = ""
        if name in theirs:
            step = theirs[name](language=WORDS)
            other = f"{microseconds(lambda text, step=step: step.filter(Document(text=text, id='')), texts):.0f}"  # type: ignore[misc]
        rows.append([name, *(f"{n:.0f}" for n in ours), f"{1e6 / max(ours):,.0f}", other])
    head = [
        "default corpus",
        "text that no rule removes",
        "documents per CPU second, at least",
        "datatrove's filter, with the same words, default corpus",
    ]
    table(["CPU microseconds per 1,700 characters", *head], rows)


def microseconds(function: Callable[[str], object], texts: Sequence[str]) -> float:
    """CPU time per 1,700 characters; the least of three, because other work on the machine only adds to it."""
    seconds = []
    for _ in range(3):
        started = time.process_time()
        for text in texts:
            function(text)
        seconds.append(time.process_time() - started)
    return min(seconds) * 1700 / sum(map(len, texts)) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rules", "language", "classifier", "speed"))
    parser.add_argument("--perplexity", default="", help="a run whose GPT gives a second opinion")
    args = parser.parse_args()
    {"rules": rules, "language": language, "speed": speed}.get(args.what, lambda: classifier(args.perplexity))()


if __name__ == "__main__":
    main()
