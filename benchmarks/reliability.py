"""Tries to lose a run, many times: kills, faults of the disk, mutated files. The figures in docs/reliability.md come from here.

    python benchmarks/reliability.py kills      200 SIGKILLs at random instants of a run that checkpoints every step
    python benchmarks/reliability.py kills --ranks 2 --n 100    of ranks that mpiexec has started: one of them, drawn at random, is killed
    python benchmarks/reliability.py faults     1,000 faults of the disk while checkpoints are written (the tests do 50)
    python benchmarks/reliability.py memory     estimate and measured peak for the four sizes of the speed benchmarks
    python benchmarks/reliability.py text       a gigabyte of text, read and encoded
    python benchmarks/reliability.py checkpoints    10,000 mutated checkpoint files
    python benchmarks/reliability.py files      10,000 mutated tokenizer, configuration and data files
    python benchmarks/reliability.py pause      how long training waits for a checkpoint of 1.5 GB
    python benchmarks/reliability.py --help

The tests run shorter forms of the same functions.
"""

import contextlib
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any, Literal

import numpy as np

from tinygpt.errors import InvalidInput, ProcessFailed
from tinygpt.parallel.witness import children_of, number_in
from tinygpt.storage.durable import Disk, use_disk

ROOT = Path(__file__).parent.parent
RANK_VARIABLES = ("PMI_RANK", "OMPI_COMM_WORLD_RANK")
"""Where mpiexec tells a rank its number: MPICH's, Open MPI's."""

# ---- kills -------------------------------------------------------------------------------------------------------------------------------


@dataclass
class Kills:
    """What came of killing a run: lost counts restarts that found fewer steps saved than the run before had announced.

    Of ranks also: named counts kills that one message of ours named, with the rank; early those before a rank can speak, while Python starts,
    which mpiexec alone reports; others is what was said instead; slowest_end_s is the longest time from a kill to the end of the job.
    """

    kills: int = 0
    lost: int = 0
    equal: bool = False
    before_first_checkpoint: int = 0
    steps: int = 0
    seconds: float = 0.0
    named: int = 0
    early: int = 0
    others: list[str] = field(default_factory=list)
    slowest_end_s: float = 0.0


# A run that checkpoints every step and says so, as soon as the checkpoint is on the disk.
_RUN = """
import sys, time
from pathlib import Path
import numpy as np
from tinygpt import GPT, GPTConfig, TrainConfig
from tinygpt.runs.run import Run
from tinygpt.data.windows import Windows
from tinygpt.data.tokenizer import CharacterTokenizer
from tinygpt.parallel.local import workers_for
from tinygpt.training.trainer import Trainer

class Silent:
    def update(self, metrics): pass
    def evaluated(self, step, validation_nats, best): pass
    def note(self, text): pass

run, steps, background = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "background"
tokens = np.tile(np.random.default_rng(0).integers(0, 11, 50), 10)
shape = GPTConfig(n_layer=1, n_head=2, n_embd=16, n_positions=8, vocab_size=11, dropout=0.1)
config = TrainConfig(steps=steps, lr=1e-2, final_lr_fraction=1.0, warmup_steps=3, micro_batch=2, tokens_per_update=32, save_every=1, eval_every=5)
model = GPT(shape)
trainer = Trainer(model, config, Windows(tokens, 8, 3), Windows(tokens[:100], 8), workers_for(model, config))

class Told(Run):
    def save(self, trainer, *, best):
        super().save(trainer, best=best)
        if self.leads and not background:
            print("saved", trainer.result.step, flush=True)

run = Told.resume(run, background=background) if (run / "checkpoints").is_dir() else Told.create("x", run, background=background)
run.tokenizer = CharacterTokenizer.train("abcdefghijk")
if run.last:
    run.restore(trainer)
if run.leads:
    print("at", trainer.result.step, flush=True)
run.train(trainer, Silent())
"""


def rank_processes(launcher: int) -> list[int]:
    """Process ids of the ranks below mpiexec: MPICH's starts a process for each machine, and that the ranks; Open MPI's them alone. On Linux."""
    below = [launcher]
    while below and all(number_in(pid, variable) is None for pid in below for variable in RANK_VARIABLES):
        below = [child for pid in below for child in children_of(pid)]
    return below


def kill_and_resume(folder: Path, n_kills: int, seed: int = 0, *, background: bool = False, ranks: int = 1) -> Kills:
    """Starts a run, kills it at a random instant, starts it again, until it has been killed n_kills times; then lets it end.

    The run is long enough that it does not end before. Its last weights and moments are compared with those of a run that nobody killed.
    ranks   more than one: mpiexec starts the run, and one rank is killed, drawn at random
    """
    report, rng, started = Kills(), random.Random(seed), time.perf_counter()
    mode = "background" if background else "foreground"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "AUTOGRAD_BACKEND": "numpy", "OPENBLAS_NUM_THREADS": "1"}
    start = ["mpiexec", "-n", str(ranks), sys.executable, "-m", "mpi4py"] if ranks > 1 else [sys.executable]
    run = folder / "killed"
    saved, steps = 0, 100 * n_kills
    while True:
        last = report.kills == n_kills
        if last:
            steps = saved + 20
        command = [*start, "-c", _RUN, str(run), str(steps), mode]
        with (
            TemporaryFile("w+", encoding="utf-8") as said,  # mpiexec says a lot of each rank that is killed
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=None if last else said, text=True) as process,
        ):
            assert process.stdout is not None
            if not last and rng.random() < 0.1:  # now and then before it has got anywhere
                time.sleep(rng.uniform(0, 0.5))
                report.before_first_checkpoint += 1
            else:
                first = process.stdout.readline().split()
                if not first or first[0] != "at":
                    raise ProcessFailed(f"kills: the run could not go on after {report.kills} kills, expected it to; see the message above")
                report.lost += int(first[1]) < saved
                time.sleep(0 if last else rng.uniform(0, 0.12 if ranks == 1 else 0.4))
            if not last:
                victims = [process.pid] if ranks == 1 else []
                while len(victims) < ranks:  # mpiexec takes a moment to start them
                    victims = rank_processes(process.pid)
                victim = rng.choice(victims)
                number = next((found for variable in RANK_VARIABLES if (found := number_in(victim, variable)) is not None), 0)
                os.kill(victim, signal.SIGKILL)
                killed = time.monotonic()
            for line in process.stdout:
                if line.startswith("saved "):
                    saved = max(saved, int(line.split()[1]))
            process.wait()
            if last:
                break
            report.kills += 1
            report.slowest_end_s = max(report.slowest_end_s, round(time.monotonic() - killed, 2))
            said.seek(0)
            messages = re.findall(r"^error: .*", said.read(), flags=re.MULTILINE)
            if len(messages) == 1 and messages[0].startswith(f"error: rank {number} of {ranks} was killed"):
                report.named += 1
            elif messages:
                report.others.append(f"of rank {number}: {messages}")
            else:
                report.early += ranks > 1
    unbroken = folder / "unbroken"
    subprocess.run([*start, "-c", _RUN, str(unbroken), str(steps), mode], env=environment, check=True, stdout=subprocess.DEVNULL)
    report.equal = _same_end(run, unbroken)
    report.steps, report.seconds = steps, round(time.perf_counter() - started, 1)
    return report


def _same_end(one: Path, two: Path) -> bool:
    from tinygpt.runs.checkpoint import Checkpoint

    ends = [Checkpoint.open(run, "last").path for run in (one, two)]
    return all(len({(end / name).read_bytes() for end in ends}) == 1 for name in ("model.safetensors", "training.safetensors"))


# ---- faults of the disk ------------------------------------------------------------------------------------------------------------------

FAULTS = ("ENOSPC", "EIO", "EDQUOT", "short write", "rename", "replace", "fsync", "open")


class FaultyDisk(Disk):
    """A disk that fails once `after` calls have gone well, and from then on; or, as "short write", takes a third at a time."""

    def __init__(self, kind: str, after: int) -> None:
        self.kind, self.left, self.failed = kind, after, 0

    def _fails(self, *kinds: str) -> bool:
        if self.kind not in kinds:
            return False
        self.left -= 1
        self.failed += self.left < 0
        return self.left < 0

    def _error(self) -> OSError:
        number = {"ENOSPC": errno.ENOSPC, "EDQUOT": getattr(errno, "EDQUOT", errno.ENOSPC)}.get(self.kind, errno.EIO)
        return OSError(number, os.strerror(number))

    def open(self, path: Path) -> Any:
        if self._fails("open"):
            raise self._error()
        return super().open(path)

    def write(self, file: Any, data: memoryview) -> int:
        if self.kind == "short write":
            return super().write(file, data[: max(len(data) // 3, 1)])
        if self._fails("ENOSPC", "EIO", "EDQUOT"):
            super().write(file, data[: len(data) // 2])  # half of it arrives
            raise self._error()
        return super().write(file, data)

    def sync(self, descriptor: int) -> None:
        if self._fails("fsync"):
            raise self._error()
        super().sync(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        if self._fails("rename"):
            raise self._error()
        super().rename(old, new)

    def replace(self, old: Path, new: Path) -> None:
        if self._fails("replace", "rename"):
            raise self._error()
        super().replace(old, new)


@dataclass
class Faults:
    """What came of faults: damaged counts saves after which the run had no whole last checkpoint, or an older one was not as before."""

    faults: int = 0
    damaged: int = 0
    saved_all_the_same: int = 0
    kinds: set[str] = field(default_factory=set)
    seconds: float = 0.0


def save_under_faults(folder: Path, n_faults: int, seed: int = 0) -> Faults:
    """Trains a little, saves on a disk that fails at a random call in a random way, checks every checkpoint; again and again."""
    from tinygpt import GPT, GPTConfig, TrainConfig
    from tinygpt.data.tokenizer import CharacterTokenizer
    from tinygpt.data.windows import Windows
    from tinygpt.runs.checkpoint import Checkpoint
    from tinygpt.runs.layout import integrity_errors, list_checkpoints
    from tinygpt.runs.run import Run
    from tinygpt.training.trainer import Trainer

    report, rng, started = Faults(), random.Random(seed), time.perf_counter()
    tokens = np.random.default_rng(0).integers(0, 11, 500)
    trainer = Trainer(
        GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, n_positions=8, vocab_size=11)),
        TrainConfig(steps=10**6, micro_batch=2),
        Windows(tokens, 8),
        None,
    )
    run = Run.create("x", folder / "faulty", note=lambda text: None)
    run.tokenizer = CharacterTokenizer.train("abcdefghijk")

    def save(best: bool) -> None:
        run.save(trainer, best=best)
        run.wait()

    trainer.update()
    save(best=True)
    while report.faults < n_faults:
        trainer.update()
        kind = FAULTS[report.faults % len(FAULTS)]
        run.writer.background = rng.random() < 0.5
        with use_disk(disk := FaultyDisk(kind, rng.randrange(12))):
            save(best=rng.random() < 0.5)
        if kind != "short write" and not disk.failed:  # it would have failed later than the last call
            continue
        report.faults += 1
        report.kinds.add(kind)
        report.saved_all_the_same += run.writer.failure is None
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # falling back to another checkpoint counts as damage
            try:
                last = Checkpoint.open(run.path, "last").path
                directories = [*list_checkpoints(run.path), Checkpoint.open(run.path).path]
                whole = not any(integrity_errors(directory) for directory in directories)
            except (Warning, OSError, ValueError):
                whole = False
            else:
                whole &= run.writer.failure is not None or last.name.startswith(f"step-{trainer.result.step:08d}")
        report.damaged += not whole
    report.seconds = round(time.perf_counter() - started, 1)
    return report


# ---- mutated files -----------------------------------------------------------------------------------------------------------------------

LIMIT_S = 2.0
FLOOR_BYTES = 32 << 20  # what reading anything at all may take: interpreter, tables of the tokenizer
DOCUMENTED = (ValueError, TypeError, OSError)

_SPLICES = [
    b"NaN", b"Infinity", b"1e999", b"-1", b"0", b"null", b"true", b'"x"', b"{}", b"[]", b"9" * 30, b"9" * 5000, b"1000000000", b"2147483648",
    b"18446744073709551615", b"[" * 3000, b'{"a":' * 3000, b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\r\n", b"\n", b",", b'"', b"\\ud800", b" " * 300,
]  # fmt: skip


def mutate(data: bytes, rng: random.Random) -> bytes:
    """The data with one to four wounds: bits, bytes, digits, pieces lost, doubled or exchanged, and things that parsers hate."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(8)
        if kind == 0 and out:
            out[at % len(out)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at:]
        elif kind == 2:
            del out[at : at + rng.randint(1, 40)]
        elif kind == 3:
            out[at:at] = out[at : at + rng.randint(1, 200)]
        elif kind == 4:
            out[at:at] = rng.choice(_SPLICES)
        elif kind == 5:
            out[at : at + rng.randint(1, 8)] = rng.choice(_SPLICES)
        elif kind == 6:
            out[at : at + 8] = rng.randbytes(8)
        else:
            _change_a_number(out, rng)
    return bytes(out)


def _change_a_number(out: bytearray, rng: random.Random) -> None:
    """Puts another number in the place of one that is written in digits."""
    places = [match.span() for match in re.finditer(rb"\d+", bytes(out[:20_000]))]
    if places:
        start, end = rng.choice(places)
        out[start:end] = str(rng.choice([0, 1, 2, 7, 1000, 2**31, 2**63, 10**12, 10**30])).encode()


@dataclass
class Mutations:
    """What came of reading mutated files. Each entry of a list names seed and number, which give the file again."""

    files: int = 0
    refused: int = 0
    read: int = 0
    crashes: list[str] = field(default_factory=list)
    too_much_memory: list[str] = field(default_factory=list)
    too_slow: list[str] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    largest_bytes: int = 0
    seconds: float = 0.0


def read_mutated(folder: Path, targets: dict[str, tuple[dict[str, bytes], Any]], n: int, seed: int = 0) -> Mutations:
    """Mutates one file of a target at a time and reads it: an error that is documented and clear, or a result; nothing else.

    targets   name: (files of a directory, what reads that directory)
    """
    report, started = Mutations(), time.perf_counter()
    names = sorted(targets)
    tracemalloc.start()
    for number in range(n):
        rng = random.Random(seed * 1_000_003 + number)
        which = names[number % len(names)]
        files, read = targets[which]
        place = folder / "mutated"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        wounded = rng.choice(sorted(files))
        contents = {**files, wounded: mutate(files[wounded], rng)}
        for name, data in contents.items():
            (place / name).write_bytes(data)
        case = f"seed {seed} number {number}: {which}, {wounded}"
        tracemalloc.reset_peak()
        before, begin = tracemalloc.get_traced_memory()[0], time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read(place)
            report.read += 1
        except DOCUMENTED as error:
            report.refused += 1
            if "expected" not in str(error):
                report.unclear.append(f"{case}: {error!r:.300}")
        except BaseException as error:
            report.crashes.append(f"{case}: {error!r:.300}")
        took, peak = time.perf_counter() - begin, tracemalloc.get_traced_memory()[1] - before
        report.slowest_s, report.largest_bytes = max(report.slowest_s, round(took, 3)), max(report.largest_bytes, peak)
        if took > LIMIT_S:
            report.too_slow.append(f"{case}: {took:.1f} s")
        if peak > FLOOR_BYTES + 2 * sum(map(len, contents.values())):
            report.too_much_memory.append(f"{case}: {peak:,} bytes")
        report.files += 1
    tracemalloc.stop()
    report.seconds = round(time.perf_counter() - started, 1)
    return report


def checkpoint_targets(folder: Path) -> dict[str, tuple[dict[str, bytes], Any]]:
    """A checkpoint as a run writes it: with its manifest, which finds any change, and without, so that the readers are on their own."""
    from tinygpt import GPT, GPTConfig, TrainConfig
    from tinygpt.data.tokenizer import CharacterTokenizer
    from tinygpt.data.windows import Windows
    from tinygpt.runs.checkpoint import Checkpoint
    from tinygpt.runs.run import Run
    from tinygpt.runs.verify import check_checkpoint
    from tinygpt.training.trainer import Trainer

    tokenizer = CharacterTokenizer.train("the cat sat on the mat")
    shape = GPTConfig(n_layer=1, n_head=2, n_embd=8, n_positions=8, vocab_size=tokenizer.n_vocab)
    tokens = np.random.default_rng(0).integers(0, tokenizer.n_vocab, 200)

    def trainer() -> Trainer:
        return Trainer(GPT(shape), TrainConfig(micro_batch=2), Windows(tokens, 8), None)

    one = trainer()
    one.update()
    run = Run.create("x", folder / "run", background=False)
    run.tokenizer = tokenizer
    run.save(one, best=True)
    assert run.last is not None
    files = {path.name: path.read_bytes() for path in run.last.path.iterdir()}
    bare = {name: data for name, data in files.items() if name != "manifest.json"}
    weights = {name: bare[name] for name in ("model.safetensors", "config.json", "tokenizer.json")}
    other = trainer()

    def resume(place: Path) -> None:
        Checkpoint(place).restore(other)

    def load(place: Path) -> None:
        checkpoint = Checkpoint.open(place)
        checkpoint.language_model()
        checkpoint.tokenizer()

    def checked(place: Path) -> None:
        found = check_checkpoint(place)
        if found:
            raise InvalidInput("; ".join(found) + ", expected a whole checkpoint")

    training = {name: bare[name] for name in ("training.json", "training.safetensors", "model.safetensors", "config.json")}
    return {"whole": (files, load), "weights": (weights, load), "training": (training, resume), "verify": (bare, checked)}


def text_targets(folder: Path) -> dict[str, tuple[dict[str, bytes], Any]]:
    """Tokenizers, configurations and data: whatever else is read from files."""
    from tinygpt.config import PretrainConfig
    from tinygpt.data.streaming import open_corpus, read_pieces
    from tinygpt.data.tokenizer import BPETokenizer, CharacterTokenizer, WordTokenizer
    from tinygpt.data.tokenizer_files import load_tokenizer
    from tinygpt.data.windows import read_tokens
    from tinygpt.finetuning.labeled import load_labeled
    from tinygpt.runs.settings import stored_settings

    text = "The cat sat on the mat. It was 1984, and the clocks don't strike 13.\n\n" * 20
    made = {"bpe": BPETokenizer.train(text, 300), "characters": CharacterTokenizer.train(text), "words": WordTokenizer.train(text)}
    targets: dict[str, tuple[dict[str, bytes], Any]] = {}
    for kind, tokenizer in made.items():
        tokenizer.save(folder / kind)
        files = {path.name: path.read_bytes() for path in (folder / kind).iterdir()}
        targets[kind] = (files, lambda place: load_tokenizer(place).encode("The cat"))
    from tinygpt import GPTConfig, TrainConfig

    settings = json.dumps(asdict(PretrainConfig(GPTConfig(), TrainConfig()))).encode()
    targets["settings"] = ({"config.json": settings}, lambda place: stored_settings(PretrainConfig, place))
    rows = [("It is good", "yes"), ('He said "no", twice', "no"), ("Two\nlines", "yes"), ("Bad", "no")] * 5
    tables = {
        "rows.csv": "text,label\n" + "".join('"{}",{}\n'.format(t.replace('"', '""'), label) for t, label in rows),
        "rows.tsv": "text\tlabel\n" + "".join(f"{' '.join(t.split())}\t{label}\n" for t, label in rows),
        "rows.json": json.dumps([{"text": t, "label": label} for t, label in rows]),
        "rows.jsonl": "".join(json.dumps({"text": t, "label": label}) + "\n" for t, label in rows),
    }
    for name, table in tables.items():
        targets[name] = ({name: table.encode()}, lambda place, name=name: load_labeled(str(place / name)))
    targets["text"] = ({"x.txt": text.encode()}, lambda place: open_corpus(place / "x.txt"))
    targets["pieces"] = (
        {"x.txt": text.encode()},
        lambda place: [made["bpe"].encode(p) for p in read_pieces(place / "x.txt", piece_bytes=50)],
    )
    ids = made["bpe"].encode_array(text).astype("<u2").tobytes()
    targets["token file"] = ({"t.bin": ids}, lambda place: made["bpe"].decode(read_tokens(place / "t.bin", 300)))
    return targets


# ---- memory ------------------------------------------------------------------------------------------------------------------------------

_MIDDLE = {"n_layer": 3, "n_head": 4, "n_embd": 256, "n_positions": 128, "vocab_size": 2048}
SIZES = {  # the four sizes that the speed is measured at, and the micro-batch; then models of other kinds
    "S": ("GPT", {"n_layer": 4, "n_head": 4, "n_embd": 128, "n_positions": 64, "vocab_size": 65}, 12),
    "M": ("GPT", {"n_layer": 6, "n_head": 6, "n_embd": 384, "n_positions": 256, "vocab_size": 65}, 16),
    "L": ("GPT", {"n_positions": 256}, 4),
    "XL": ("GPT", {"n_positions": 1024}, 4),
    "encoder": ("Encoder", _MIDDLE, 16),
    "encoder-decoder": ("Seq2Seq", _MIDDLE, 12),
    "T5": ("Seq2Seq", _MIDDLE | {"norm": "rms", "norm_position": "pre", "positions": "relative", "dropout": 0.1, "bias": False}, 12),
}

_STEPS = """
import json, sys
import numpy as np
from tinygpt import TrainConfig, models
from tinygpt.parallel.local import workers_for
from autograd.limits import resident_bytes
from tinygpt.training.memory_budget import estimate
from tinygpt.training.trainer import Trainer

kind, fields, micro_batch = json.loads(sys.argv[1])
cls = getattr(models, kind)
config = cls.config_class(**fields)

class Items:
    def __len__(self):
        return 4 * micro_batch

    def batch(self, which):
        rng = np.random.default_rng(0)
        ids, targets = rng.integers(0, config.vocab_size, (2, len(which), config.n_positions))
        if kind == "Encoder":
            targets[rng.random(targets.shape) > 0.15] = -100
        return (ids, targets) if kind == "GPT" else (ids, targets, rng.random(ids.shape) < 0.9)

before = resident_bytes()
model, training = cls(config), TrainConfig(micro_batch=micro_batch)
trainer = Trainer(model.train(), training, Items(), None, workers_for(model, training))
needed = estimate(config, micro_batch, processes=trainer.processes, program=before)
for _ in range(2):
    trainer.update()
print(json.dumps({"estimated": needed.total, "measured": trainer.peak_bytes(), **needed}))
"""


def measure_memory(size: str) -> dict[str, Any]:
    """Estimate and measured peak, in bytes, of two training steps in a process of their own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "AUTOGRAD_BACKEND": "numpy"}
    done = subprocess.run(
        [sys.executable, "-c", _STEPS, json.dumps(SIZES[size])], env=environment, capture_output=True, text=True, check=True
    )
    figures = json.loads(done.stdout)
    return {"size": size, "error": round(figures["estimated"] / figures["measured"] - 1, 3), **figures}


_READ = """
import json, sys
from tinygpt.data import streaming
from autograd.limits import peak_bytes
from tinygpt.data.tokenizer import train_tokenizer

streaming.STREAM_BYTES = 1 << 20
corpus = streaming.open_corpus(sys.argv[1])
tokenizer = train_tokenizer("bpe", streaming.texts_for_tokenizer(corpus, "bpe"), int(sys.argv[3]))
ids = streaming.token_stream(corpus, "train", tokenizer, sys.argv[2])
print(json.dumps({"tokens": len(ids), "peak": peak_bytes()}))
"""


def read_large_text(folder: Path, n_bytes: int, n_words: int = 50_000, vocab_size: int = 4096) -> dict[str, Any]:
    """Writes a text of that size (words drawn from a vocabulary of n_words), then opens, tokenizes and encodes it; tokens and peak memory."""
    rng = np.random.default_rng(0)
    alphabet = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    words = np.array(["".join(rng.choice(alphabet, n)) for n in rng.integers(2, 12, n_words)], dtype=object)
    path = folder / "large.txt"
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < n_bytes:
            drawn = words[(n_words * rng.random((5_000, 20)) ** 3).astype(int)]
            file.write("".join(" ".join(line) + "\n" for line in drawn))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "AUTOGRAD_BACKEND": "numpy"}
    started = time.perf_counter()
    command = [sys.executable, "-c", _READ, str(path), str(folder / "cache"), str(vocab_size)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return {"bytes": path.stat().st_size, "seconds": round(time.perf_counter() - started, 1), **json.loads(done.stdout)}


def measure_pause(folder: Path) -> dict[str, Any]:
    """Seconds that training waits for a checkpoint of GPT-2's smallest model with moments, and until it is on the disk."""
    from tinygpt import GPT, GPTConfig, TrainConfig
    from tinygpt.data.tokenizer import CharacterTokenizer
    from tinygpt.data.windows import Windows
    from tinygpt.runs.run import Run
    from tinygpt.training.trainer import Trainer

    tokens = np.random.default_rng(0).integers(0, 50257, 2000)
    trainer = Trainer(GPT(GPTConfig(n_positions=256)), TrainConfig(micro_batch=1), Windows(tokens, 256), None)
    trainer.update()
    run = Run.create("x", folder / "run")
    run.tokenizer = CharacterTokenizer.train("ab")
    pauses, written = [], []
    for _ in range(3):
        started = time.perf_counter()
        run.save(trainer, best=True)
        pauses.append(round(time.perf_counter() - started, 2))
        run.wait()
        written.append(round(time.perf_counter() - started, 2))
    size = sum(path.stat().st_size for path in run.last.path.iterdir()) if run.last else 0
    return {"bytes": size, "pause_s": pauses, "written_after_s": written}


# ---- the command line --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    what: Literal["kills", "faults", "memory", "text", "checkpoints", "files", "pause"]
    """What to try."""
    n: int = 0
    """How often; 0: the number in docs/reliability.md."""
    seed: int = 0
    """Decides the instants, faults and mutations."""
    ranks: int = 1
    """Of the run that is killed."""


def main() -> None:
    import tyro

    settings = tyro.cli(Settings, description=__doc__, config=(tyro.conf.PositionalRequiredArgs,))
    with TemporaryDirectory() as folder, contextlib.suppress(KeyboardInterrupt):
        if settings.what == "kills":
            report: Any = kill_and_resume(Path(folder), settings.n or 200, settings.seed, ranks=settings.ranks)
        elif settings.what == "checkpoints":
            report = read_mutated(Path(folder), checkpoint_targets(Path(folder)), settings.n or 10_000, settings.seed)
        elif settings.what == "files":
            report = read_mutated(Path(folder), text_targets(Path(folder)), settings.n or 10_000, settings.seed)
        elif settings.what == "pause":
            report = [measure_pause(Path(folder))]
        elif settings.what == "text":
            report = [read_large_text(Path(folder), settings.n or 1 << 30)]
        elif settings.what == "memory":
            report = [measure_memory(size) for size in SIZES]
        else:
            report = save_under_faults(Path(folder), settings.n or 1000, settings.seed)
        print(json.dumps(report if isinstance(report, list) else asdict(report), default=sorted))


if __name__ == "__main__":
    main()
