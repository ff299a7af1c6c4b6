"""What curation costs, what it survives and what it is worth.

    python benchmarks/curation.py speed                    100 MB, 63,000 documents with planted copies, through all steps
    python benchmarks/curation.py speed --near exact       the same with the exact index instead of MinHash
    python benchmarks/curation.py speed --mb 1000          memory at ten times the size
    python benchmarks/curation.py kills                    10 kills at random instants: the same output as without
    python benchmarks/curation.py size                     what the extras take on the disk, in this environment
    python benchmarks/curation.py opinion --run runs/docs-001   what classifier and GPT say of a dirty corpus, by the command; needs the
                                                           extra classify, and those of the next line
    python benchmarks/curation.py worth                    a small model on a dirty corpus after each step, three seeds; can be stopped; needs
                                                           num2words and babel: pip install "tinygpt[curate,translate]"
    python benchmarks/curation.py tables                   those of docs/curation.md, from the results
    python benchmarks/curation.py --help

Results go to benchmarks/results/curation.json; those of other parts that it holds stay. The tests run shorter forms of the same functions.
"""

import dataclasses
import gzip
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parent))

from ablations import Side, Text
from train_step import processor

from tinygpt.arguments import parse_args
from tinygpt.cli import run
from tinygpt.curate.command import Rows
from tinygpt.curate.documents import Document, read_shard, write_shard
from tinygpt.curate.executors import Executor
from tinygpt.curate.language import Language
from tinygpt.curate.pipeline import Stage, Steps, run_stages
from tinygpt.curate.rules import Rules
from tinygpt.curate.sources import SourceSpec, open_sources
from tinygpt.curate.stages import ExactCopies, NearCopies, Reading, RepeatedText
from tinygpt.data.corpora import load_corpus
from tinygpt.data.tokenizer import BPETokenizer, train_tokenizer
from tinygpt.data.windows import encode_documents
from tinygpt.errors import ProcessFailed
from tinygpt.fields import PathName
from tinygpt.inference.sampling import Sampling
from tinygpt.inference.text import complete_all
from tinygpt.recipes import RECIPES
from tinygpt.storage.durable import replace_file
from tinygpt.training.metrics import bits_per_byte

ROOT = Path(__file__).parent.parent

# ---- a corpus with planted copies --------------------------------------------------------------------------------------------------------

FRESH, EXACT = 0.799, 0.101  # shares of documents; the rest are near copies


def make_corpus(folder: Path, n_bytes: int, seed: int = 0, n_files: int = 4) -> Counter[str]:
    """Writes about n_bytes of documents into n_files JSONL files, and returns how many of each kind there are.

    A fresh document is sentences of words drawn as often as the default corpus has them; their ids say what the others are: exact-N and
    near-N are copies of fresh-N, the near ones with two words replaced.
    """
    rng = np.random.default_rng(seed)
    counts = Counter(word for d in load_corpus("docs").train for word in re.findall(r"[a-z]{1,15}", d.text.lower()))
    words = np.array([word for word, n in counts.items() if n > 1])
    share = np.array([counts[word] for word in words], dtype=float)
    cumulative = np.cumsum(share / share.sum())
    folder.mkdir(parents=True)
    made: Counter[str] = Counter()
    kept: list[tuple[int, list[str]]] = []  # some fresh ones, from all over, to copy
    size, files = 0, [(folder / f"{i}.jsonl").open("w", encoding="utf-8") for i in range(n_files)]
    while size < n_bytes:
        kind = "fresh" if len(kept) < 100 else rng.choice(["fresh", "exact", "near"], p=[FRESH, EXACT, 1 - FRESH - EXACT])
        if kind == "fresh":
            tokens = words[np.searchsorted(cumulative, rng.random(int(rng.lognormal(5.274, 0.5)) + 60))].tolist()
            number = made[kind]
            kept = [*kept[-999:], (number, tokens)]
        else:
            number, tokens = kept.pop(int(rng.integers(len(kept))))  # each is copied once at most
            if kind == "near":
                tokens = list(tokens)
                for at in rng.integers(len(tokens), size=2):
                    tokens[at] = str(words[rng.integers(len(words))])
        text = prose(tokens)
        files[int(rng.integers(n_files))].write(json.dumps({"id": f"{kind}-{number}", "text": text}) + "\n")
        made[str(kind)] += 1
        size += len(text)
    for file in files:
        file.close()
    return made


def prose(words: Sequence[str]) -> str:
    """Words as sentences of 14 and paragraphs of five."""
    sentences = [" ".join(words[i : i + 14]).capitalize() + "." for i in range(0, len(words), 14)]
    return "\n\n".join(" ".join(sentences[i : i + 5]) for i in range(0, len(sentences), 5))


# ---- time and memory ---------------------------------------------------------------------------------------------------------------------


class Memory(threading.Thread):
    """Follows a process and all below it: peak of the largest one, and of their sum with shared pages counted once (PSS)."""

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self.process, self.largest, self.sum, self.ended = process, 0, 0, threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.25):
            found = [kilobytes(process) for process in tree(self.process)]
            self.largest = max([self.largest, *(rss for rss, _ in found)])
            self.sum = max(self.sum, sum(pss for _, pss in found))


def tree(process: int) -> list[int]:
    """A process and those below it."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text(encoding="utf-8").rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [process]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found


def kilobytes(process: int) -> tuple[int, int]:
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8")
    except OSError:
        return 0, 0
    found = dict(re.findall(r"^(Rss|Pss): +(\d+)", text, flags=re.MULTILINE))
    return int(found.get("Rss", 0)), int(found.get("Pss", 0))


def command(inputs: Sequence[str], output: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "tinygpt", "curate", *inputs, "--output", str(output), *flags]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "AUTOGRAD_BACKEND": "numpy"}


def measure_speed(folder: Path, mb: int, near: str, workers: int, flags: Sequence[str] = ()) -> dict[str, Any]:
    """Makes a corpus, curates it in a process of its own; seconds, peak memory, and documents found and expected."""
    made = make_corpus(folder / "corpus", mb * 10**6)
    started = time.perf_counter()
    asked = command([f"{folder / 'corpus'},id=id"], folder / "out", "--near", near, "--workers", str(workers), *flags)
    with subprocess.Popen(asked, env=environment(), cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        memory = Memory(process.pid)
        memory.start()
        assert process.stdout is not None
        printed = process.stdout.read()
    memory.ended.set()
    if process.returncode:
        raise ProcessFailed(f"curate: exit code {process.returncode}, expected 0\n{printed}")
    seconds = time.perf_counter() - started
    kinds = Counter(d.id.rpartition("/")[2].partition("-")[0] for d in output_documents(folder / "out"))
    return {
        "mb": mb, "near": near, "workers": workers, "documents": dict(made), "kept": sum(kinds.values()), "fresh": made["fresh"],
        "seconds": round(seconds, 1), "largest_mb": memory.largest // 1000, "sum_mb": memory.sum // 1000, "processor": processor(), "printed": printed,
    }  # fmt: skip


def output_documents(output: Path) -> Iterator[Document]:
    for path in sorted(output.glob("*/*.jsonl.*")):
        yield from read_shard(path)


# ---- kills -------------------------------------------------------------------------------------------------------------------------------


@dataclass
class Kills:
    """What came of killing a curation: equal if the output is that of one that nobody killed, byte for byte once decompressed."""

    kills: int = 0
    equal: bool = False
    seconds_undisturbed: float = 0.0
    at: list[float] = field(default_factory=list)
    finished_before: int = 0


def kill_and_continue(folder: Path, inputs: Sequence[str], n_kills: int, seed: int = 0, flags: Sequence[str] = ()) -> Kills:
    """Curates once undisturbed; then again, killed with SIGKILL at random instants and started again until it has been killed n_kills times.

    Half of the kills hit the main process alone, half all its processes. An instant that comes after the end counts as no kill: the folder
    is then deleted and the run begins anew.
    """
    report, rng = Kills(), random.Random(seed)
    started = time.perf_counter()
    subprocess.run(
        command(inputs, folder / "undisturbed" / "corpus", *flags), env=environment(), check=True, stdout=subprocess.DEVNULL, cwd=folder
    )
    report.seconds_undisturbed = round(time.perf_counter() - started, 2)
    longest = report.seconds_undisturbed
    output = folder / "killed" / "corpus"  # the manifest holds the folder's name
    while True:
        last = report.kills == n_kills
        asked = command(inputs, output, *flags)
        with subprocess.Popen(asked, env=environment(), stdout=subprocess.DEVNULL, start_new_session=True, cwd=folder) as process:
            began, wait = time.perf_counter(), rng.uniform(0.3, longest)
            try:
                code = process.wait(None if last else wait)
                if code:
                    raise ProcessFailed(
                        f"kills: exit code {code} after {report.kills} kills, expected the run to continue; see the message above"
                    )
                if last:
                    break
                report.finished_before += 1
                longest = min(longest, time.perf_counter() - began)
                shutil.rmtree(output)
            except subprocess.TimeoutExpired:
                if report.kills % 2:
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    process.kill()
                report.kills += 1
                report.at.append(round(wait, 2))
    report.equal = contents(output) == contents(folder / "undisturbed" / "corpus")
    return report


def contents(output: Path) -> dict[str, str]:
    """sha256 of every file of an output, decompressed."""
    found = {}
    for path in sorted(path for path in output.rglob("*") if path.is_file() and path.name not in ("lock",)):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        found[str(path.relative_to(output))] = hashlib.sha256(data).hexdigest()
    return found


# ---- what the extras take ----------------------------------------------------------------------------------------------------------------


def required(requirements: Sequence[str]) -> set[str]:
    """The distributions that requirements need in this environment, with all that these need. Raises PackageNotFoundError if one is missing."""
    from packaging.requirements import Requirement  # datatrove needs it, too

    todo, seen, found = [Requirement(text) for text in requirements], set(), set()
    for requirement in todo:
        extras = requirement.extras or {""}
        if (key := (requirement.name.lower(), *sorted(extras))) in seen:
            continue
        seen.add(key)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            distribution = metadata.distribution(requirement.name)
            found.add(distribution.metadata["Name"])
            for inner in map(Requirement, distribution.requires or ()):
                if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in {"", *extras}):
                    inner.marker = None
                    todo.append(inner)
    return found


def installed_mb(names: set[str]) -> float:
    """Size of all files that were installed with them, those that Python compiled among them."""
    files = {Path(str(file.locate())) for name in names for file in metadata.files(name) or ()}
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def measure_size(extras: Sequence[str] = ("curate", "curate-web", "classify")) -> dict[str, Any]:
    """What the core takes, and what each extra adds to it and to the extras in front of it, those that are not installed left out. alone_mb:
    all that it needs, NumPy and what else the core has among it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    known = required(project["dependencies"])
    found: dict[str, Any] = {"core": {"mb": round(installed_mb(known), 1), "packages": sorted(known)}}
    for extra in extras:
        try:
            needed = required(project["optional-dependencies"][extra])
        except metadata.PackageNotFoundError:
            continue
        new = needed - known
        found[extra] = {"mb": round(installed_mb(new), 1), "alone_mb": round(installed_mb(needed), 1), "packages": sorted(new)}
        known |= new
    return found


# ---- what classifier and GPT say ---------------------------------------------------------------------------------------------------------


def measure_opinion(folder: Path, model: str, workers: int) -> dict[str, Any]:
    """Curates the dirty corpus by the command, with the classifier and a GPT's opinion: what each source lost to the classifier, and the notes
    of the report on the GPT."""
    sources: defaultdict[str, list[Document]] = defaultdict(list)
    for document in dirty_corpus():
        sources[document.source].append(document)
    for name, documents in sources.items():
        write_shard(folder / f"{name}.jsonl", documents)
    flags = ["--profile", "docs", "--no-exact", "--near", "none", "--lines", "0", "--paragraphs", "0", "--workers", str(workers)]
    asked = command([f"{name}={folder / name}.jsonl,id=id" for name in sorted(sources)], folder / "out", *flags)
    subprocess.run([*asked, "--classifier", "--opinion", str(Path(model).resolve())], env=environment(), check=True, cwd=folder)
    steps = json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))["steps"]
    (step,) = (step for step in steps if step["name"] == "classifier")
    (said,) = (note for note in step["notes"] if "documents" in note)
    flows = {name: {"in": flow["documents_in"], "out": flow["documents_out"]} for name, flow in step["flows"].items()}
    return {"sources": flows, "notes": {k: v for k, v in said.items() if k != "opinion of"}}


# ---- what it is worth --------------------------------------------------------------------------------------------------------------------

PROMPTS, PROMPT_CHARACTERS, COPIED = 200, 120, 50  # of what is continued; a copy is as many characters as the last

_MENU = ("Home", "News", "Shop", "Login", "Register", "Contact", "About us", "Terms", "Privacy", "Help", "Search", "Cart", "Share", "Print")
_BOILERPLATE = (
    "This website uses cookies to improve your experience. By continuing to browse the site you agree to our use of cookies and to our terms.",
    "All rights reserved. No part of this page may be reproduced in any form without permission in writing from the publisher of this page.",
    "Sign up for our newsletter to receive the latest updates, special offers and tips from our editors, every week in your inbox, for free.",
)
_SENTENCES = {  # with numbers in words and dates in full, other texts than English in any amount
    "de": ("Am {date} wurden in der Stadt {number} neue Wohnungen gebaut.", "Der Verein hat seit dem {date} {number} Mitglieder, die meisten davon jung.",
           "Die Regierung will bis zum {date} {number} Schulen erneuern.", "Auf der Straße nach Norden fuhren am {date} {number} Wagen."),
    "fr": ("Le {date}, la ville a construit {number} nouveaux logements.", "Depuis le {date}, le club compte {number} membres, jeunes pour la plupart.",
           "Le gouvernement veut rénover {number} écoles avant le {date}.", "Sur la route du nord, {number} voitures ont circulé le {date}."),
    "es": ("El {date} se construyeron {number} viviendas nuevas en la ciudad.", "Desde el {date} el club tiene {number} socios, casi todos jóvenes.",
           "El gobierno quiere renovar {number} escuelas antes del {date}.", "Por la carretera del norte pasaron {number} coches el {date}."),
}  # fmt: skip


def dirty_corpus(seed: int = 0, n_clean: int | None = None) -> list[Document]:
    """The training side of the default corpus (or its first n_clean documents), with dirt: boilerplate in a third of its documents; copies of a
    fifth of them, exact ones (2 to 20 each) and near ones (two words changed, up to 5 each); as many documents of junk, and of other
    languages, as a third of the clean."""
    rng = np.random.default_rng(seed)
    clean = load_corpus("docs").train[:n_clean]
    found = []
    for d in clean:
        text = d.text if rng.random() > 1 / 3 else "\n\n".join([d.text, *rng.permutation(_BOILERPLATE)[:2].tolist()])
        found.append(Document(f"clean/{d.name}", text, "clean"))
    for number in rng.permutation(len(clean))[: len(clean) // 5].tolist():
        original = found[number]
        found += [
            dataclasses.replace(original, id=f"exact-{i}/{clean[number].name}", source="copies") for i in range(int(rng.integers(2, 21)))
        ]
        for i in range(int(rng.integers(1, 6))):
            words = original.text.split(" ")
            for at in rng.integers(len(words), size=2):
                words[at] = words[int(rng.integers(len(words)))]
            found.append(Document(f"near-{i}/{clean[number].name}", " ".join(words), "copies"))
    vocabulary = [word for d in clean for word in d.text.split()]
    for i in range(len(clean) // 3):
        found.append(Document(f"junk/{i}", JUNK[i % len(JUNK)](rng, vocabulary), "junk"))
        found.append(Document(f"foreign/{i}", foreign(rng, list(_SENTENCES)[i % len(_SENTENCES)]), "foreign"))
    return [found[i] for i in rng.permutation(len(found))]


def foreign(rng: np.random.Generator, language: str) -> str:
    """30 sentences with numbers and dates in words."""
    from babel.dates import format_date
    from num2words import num2words

    def sentence() -> str:
        date = np.datetime64("1900-01-01") + int(rng.integers(45_000))
        number = num2words(int(rng.integers(2, 10_000)), lang=language)
        return _SENTENCES[language][int(rng.integers(4))].format(date=format_date(date.item(), "long", locale=language), number=number)

    return "\n\n".join(" ".join(sentence() for _ in range(6)) for _ in range(5))


def _shuffled(rng: np.random.Generator, vocabulary: Sequence[str]) -> str:
    return " ".join(vocabulary[i] for i in rng.integers(len(vocabulary), size=250))


def _hexadecimal(rng: np.random.Generator, vocabulary: Sequence[str]) -> str:
    return "\n".join(" ".join(f"{n:04x}" for n in rng.integers(1 << 16, size=12)) for _ in range(25))


def _menus(rng: np.random.Generator, vocabulary: Sequence[str]) -> str:
    return "\n".join(" | ".join(rng.permutation(_MENU)[: int(rng.integers(3, 9))]) for _ in range(30))


def _repeated(rng: np.random.Generator, vocabulary: Sequence[str]) -> str:
    words = [vocabulary[i] for i in rng.integers(len(vocabulary), size=6)]
    return "\n".join([" ".join(words)] * 40)


JUNK: tuple[Callable[[np.random.Generator, Sequence[str]], str], ...] = (_shuffled, _hexadecimal, _menus, _repeated)


def windows_of(text: str, n: int = COPIED) -> np.ndarray:
    """A 64-bit hash of every stretch of n bytes."""
    data = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint64)
    found = np.zeros(max(len(data) - n + 1, 0), dtype=np.uint64)
    for i in range(n if len(found) else 0):
        found = found * np.uint64(0x9E3779B97F4A7C15) + data[i : i + len(found)] + np.uint64(1)
    return found


def share_copied(written: Sequence[str], known: np.ndarray) -> float:
    """Share of texts that hold COPIED bytes in a row of a text whose `windows_of`, sorted, are `known`."""

    def copied(text: str) -> bool:
        windows = windows_of(text)
        at = np.searchsorted(known, windows)  # np.isin would sort `known`, millions of hashes, once for each text
        at_end = at == len(known)
        return bool((~at_end & (known[np.where(at_end, 0, at)] == windows)).any()) if len(known) else False

    return float(np.mean([copied(text) for text in written]))


def stages(path: Path) -> list[Stage]:
    """One for each step, so that what is left after it can be trained on."""
    return [
        Reading(tuple(open_sources([SourceSpec("dirty", str(path), id="id")]))),
        Steps((Language(("en",), 0.2),), "language"),
        Steps((Rules("docs"),), "rules"),
        ExactCopies(),
        NearCopies(),
        RepeatedText(),
    ]


CLEAN = "clean documents only"


def curated_texts(folder: Path) -> dict[str, list[str]]:
    """The dirty corpus, what is left of it after each step, and the clean documents alone: in the order in which the steps run."""
    write_shard(folder / "dirty.jsonl", dirty_corpus())
    found = {}
    todo = stages(folder / "dirty.jsonl")
    run_stages(todo, folder, Executor(workers=1), note=lambda text: None, done=Rows(), keep=True)
    for number, stage in enumerate(todo):
        shards = sorted((folder / "work" / f"{number:02d}-{stage.name}" / "shards").iterdir())
        found[stage.name if number else "as it is"] = [document.text for shard in shards for document in read_shard(shard)]
    return found | {CLEAN: [document.text for document in load_corpus("docs").train]}


def train_and_test(texts: Sequence[str], tokenizer: BPETokenizer, seed: int, n_updates: int, n_prompts: int) -> dict[str, float]:
    """Trains the default recipe's model for n_updates; its bits per byte on clean validation text, and what it copies.

    copied      share of greedy continuations of validation text that hold COPIED bytes in a row of its training text
    memorized   share of greedy continuations of the beginnings of documents that the dirty corpus has copies of, which hold COPIED bytes in a
                row of the rest of that document
    """
    corpus = load_corpus("docs")
    validation = [d.text for d in corpus.validation]
    text = Text(encode_documents(texts, tokenizer), encode_documents(validation, tokenizer), tokenizer.n_vocab)
    side = Side({}, seed, text, n_updates)
    side.turn(n_updates)
    model = side.trainer.model
    result = side.finish()
    copied_names = {d.id.partition("/")[2] for d in dirty_corpus() if d.source == "copies"}
    repeated = [d.text for d in corpus.train if d.name in copied_names and len(d.text) > 3 * PROMPT_CHARACTERS][:n_prompts]
    unseen = [t[at : at + PROMPT_CHARACTERS] for t in validation for at in range(0, len(t) - PROMPT_CHARACTERS, 2000)][:n_prompts]
    n_tokens = 40

    def written(prompts: Sequence[str]) -> list[str]:
        return [each.text for each in complete_all(model, tokenizer, prompts, n_tokens, Sampling(0.0))]

    known = np.unique(np.concatenate([windows_of(t) for t in texts]))
    memorized = [
        share_copied([new], np.unique(windows_of(old[PROMPT_CHARACTERS:])))
        for new, old in zip(written([old[:PROMPT_CHARACTERS] for old in repeated]), repeated, strict=True)
    ]
    n_bytes = sum(len(t.encode()) for t in validation)
    return {
        "bits_per_byte": bits_per_byte(result["nats"], len(text.validation), n_bytes), "copied": share_copied(written(unseen), known),
        "memorized": float(np.mean(memorized)), "tokens": result["tokens"], "minutes": result["minutes"],
        "epochs": result["tokens"] / len(text.train), "bytes": sum(len(t.encode()) for t in texts),
    }  # fmt: skip


def measure_worth(folder: Path, output: Path, seeds: Sequence[int], n_updates: int, n_prompts: int = PROMPTS) -> list[dict[str, Any]]:
    """Every training that `output` does not have yet, in turns over the conditions; each is saved as it ends."""
    rows: list[dict[str, Any]] = read_results(output).get("worth", [])
    done = {(row["condition"], row["seed"], row["updates"]) for row in rows}
    conditions = curated_texts(folder)
    tokenizer = train_tokenizer("bpe", conditions[CLEAN], RECIPES["tinygpt"][0].vocab_size)
    for seed in seeds:
        for condition, texts in conditions.items():
            if (condition, seed, n_updates) not in done:
                found = train_and_test(texts, tokenizer, seed, n_updates, n_prompts)
                rows.append({"condition": condition, "seed": seed, "updates": n_updates, "documents": len(texts), **found})
                save_results(output, "worth", rows)
                print(
                    f"{condition:22} seed {seed}  {found['bits_per_byte']:.4f} bits per byte  copied {found['copied']:.3f}  memorized {found['memorized']:.3f}",
                    flush=True,
                )
    return rows


def worth_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Means over the seeds, and the standard deviation of bits per byte."""
    lines = ["| corpus | documents | MB | epochs | bits per byte | copied | memorized |", "|---|---|---|---|---|---|---|"]
    for condition in dict.fromkeys(row["condition"] for row in rows):
        some = [row for row in rows if row["condition"] == condition]
        bits = [row["bits_per_byte"] for row in some]
        spread = f" ± {np.std(bits, ddof=1):.4f}" if len(bits) > 1 else ""
        copied, memorized = (f"{np.mean([row[name] for row in some]):.1%}" for name in ("copied", "memorized"))
        first = some[0]
        lines.append(
            f"| {condition} | {first['documents']:,} | {first['bytes'] / 1e6:.1f} | {first['epochs']:.1f} | {np.mean(bits):.4f}{spread} | {copied} | {memorized} |"
        )
    return "\n".join(lines)


PUBLISHED = (  # who, what was done, effect as they state it; the steps of ours that do the like: from the corpus before them to the one after
    (
        "Lee et al. 2022, [arXiv:2107.06499](https://arxiv.org/abs/2107.06499)",
        "near copies and long equal passages removed from C4 and other corpora",
        "models emit memorized text ten times less often, and need fewer steps for the same accuracy",
        ("rules", "near-copies"),
    ),
    ("GneissWeb's card", "FineWeb filtered further", "2.14 points more in the mean of 11 benchmarks", ("as it is", "rules")),
    ("nanochat's log of experiments", "FineWeb replaced by FineWeb-Edu, a part chosen by a classifier", "CORE score 0.2241 to 0.2602", ()),
    ("nanochat's log of experiments", "FineWeb-Edu replaced by the mixture ClimbMix", "2 h 46 to 2 h 01 until GPT-2's score", ()),
)


def published_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """What others found; with rows of ours, next to what the steps of ours did that are like theirs."""

    def mean(condition: str, name: str) -> float:
        return float(np.mean([row[name] for row in rows if row["condition"] == condition]))

    def ours(steps: Sequence[str]) -> str:
        if not steps:
            return "no step of ours is like it"
        bits, memorized = ([mean(step, name) for step in steps] for name in ("bits_per_byte", "memorized"))
        return f"bits per byte {bits[0]:.4f} to {bits[1]:.4f}, memorized {memorized[0]:.1%} to {memorized[1]:.1%}"

    lines = ["| who | what was done | effect |", "|---|---|---|"]
    lines += [f"| {who} | {what} | {effect} |" for who, what, effect, _ in PUBLISHED]
    here = [" here |", "---|", *(f" {ours(steps)} |" for *_, steps in PUBLISHED)] if rows else [""] * len(lines)
    return "\n".join(line + more for line, more in zip(lines, here, strict=True))


# ---- the tables of docs/curation.md ------------------------------------------------------------------------------------------------------


def speed_table(results: Mapping[str, Any]) -> str:
    """Documents, memory and time of each corpus and method."""
    lines = [
        "| text | near copies by | documents | different ones | kept | largest process | all processes |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in ("speed 100 MB exact", "speed 100 MB minhash", "speed 1000 MB minhash"):
        if row := results.get(name):
            cells = (f"{n:,}" for n in (sum(row["documents"].values()), row["fresh"], row["kept"]))
            lines.append(
                f"| {row['mb']:,} MB | {METHODS[row['near']]} | {' | '.join(cells)} | {row['largest_mb']} MB | {row['sum_mb']} MB |"
            )
    return "\n".join(lines)


METHODS = {"exact": "the exact index", "minhash": "MinHash"}


def opinion_table(opinion: Mapping[str, Any]) -> str:
    """What reached the classifier from each source of the dirty corpus, what it removed, and what the GPT says of a sample."""
    lines = ["| source | documents that the rules kept | removed by the classifier |", "|---|---|---|"]
    lines += [f"| {name} | {flow['in']:,} | {flow['in'] - flow['out']:,} |" for name, flow in opinion["sources"].items()]
    notes = [f"| {name} | {n:,} |" for name, n in opinion["notes"].items()]
    return "\n".join([*lines, "", "| in the report, of a sample | |", "|---|---|", *notes])


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Those of the parts that the results hold."""
    worth = results.get("worth", [])
    found = {"speed": speed_table(results), "published": published_table(worth)}
    found |= {"opinion": opinion_table(results["opinion"])} if "opinion" in results else {}
    return found | ({"worth": worth_table(worth)} if worth else {})


# ---- the command line --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    what: Annotated[Literal["speed", "kills", "size", "opinion", "worth", "tables"], tyro.conf.Positional]
    """What to measure."""
    mb: int = 0
    """Size of the corpus; 0: 100 for speed, 4 for kills."""
    near: Literal["auto", "exact", "minhash", "none"] = "minhash"
    """speed: how near copies are found."""
    workers: int = 2
    """Processes."""
    kills: int = 10
    """kills: how often."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """worth: of weights and data order."""
    updates: int = 1600
    """worth: of each training; the default recipe's."""
    prompts: int = PROMPTS
    """worth: how many texts are continued."""
    seed: int = 0
    """Decides the instants of the kills."""
    run: PathName = ""
    """opinion: the run whose GPT is asked."""
    output: PathName = "benchmarks/results/curation.json"
    """Where the results go."""


def read_results(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def save_results(path: Path, part: str, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(read_results(path) | {part: values}, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    config, output = parse_args(Config("speed"), __doc__), Path()
    output = Path(config.output)
    with TemporaryDirectory() as name:
        folder = Path(name)
        if config.what == "worth":
            print(worth_table(measure_worth(folder, output, config.seeds, config.updates, config.prompts)))
            return
        if config.what == "tables":
            print("\n\n".join(tables(read_results(output)).values()))
            return
        if config.what == "size":
            part, values = "size", measure_size()
        elif config.what == "opinion":
            part, values = "opinion", measure_opinion(folder, config.run, config.workers)
        elif config.what == "speed":
            mb = config.mb or 100
            part, values = f"speed {mb} MB {config.near}", measure_speed(folder, mb, config.near, config.workers)
        else:
            make_corpus(folder / "corpus", (config.mb or 4) * 10**6)
            report = kill_and_continue(
                folder, [f"{folder / 'corpus'},id=id"], config.kills, config.seed, ["--workers", str(config.workers)]
            )
            part, values = "kills", asdict(report)
        print(json.dumps(values, indent=1))
        save_results(output, part, values)


if __name__ == "__main__":
    run(main)
