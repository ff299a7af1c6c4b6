"""Ranks: what a communicator promises, in threads and under mpiexec, and that data parallelism computes what one process computes."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autograd import Parameter
from autograd.optim import SGD, AdamW, Muon
from tests.tinygpt.helpers import Notes, new_run, tiny
from tests.tinygpt.mpi_helpers import ROOT, SMALL, TWO_MACHINES, corpus, mpiexec, needs_mpi, ranks_of_cpus  # noqa: F401 (a fixture)
from tests.tinygpt.rank_programs import laws, training
from tinygpt import GPT, GPTConfig
from tinygpt.config import TrainConfig
from tinygpt.data.tokenizer import BPETokenizer
from tinygpt.errors import InvalidInput, ProcessFailed
from tinygpt.finetuning.common import set_trainable
from tinygpt.finetuning.lora import LoraConfig
from tinygpt.models import Seq2Seq
from tinygpt.parallel.communicator import OneRank, Sent, check_same, run_ranks, versions
from tinygpt.parallel.data import DataParallel, shards_of
from tinygpt.parallel.slices import SlicedSum, Slices
from tinygpt.parallel.zero import sharded
from tinygpt.runs.checkpoint import Checkpoint
from tinygpt.runs.run import Run
from tinygpt.seq2seq_config import Seq2SeqConfig
from tinygpt.storage.safetensors import read_safetensors_header, read_tensor
from tinygpt.training.divergence import Divergence

pytestmark = ranks_of_cpus


@given(n=st.integers(1, 4), seed=st.integers(0, 10_000))
@settings(max_examples=20)
def test_laws_in_threads(n, seed):
    assert run_ranks(n, lambda ranks: laws(ranks, seed)) == ["ok"] * n


def test_laws_of_one_process():
    assert laws(OneRank(), 0) == "ok"
    for call in (lambda: OneRank().send(np.zeros(1), 1), lambda: OneRank().receive(np.zeros(1), 1)):
        with pytest.raises(ProcessFailed, match="1 rank, expected another one"):
            call()


@needs_mpi
@pytest.mark.parametrize("n", [2, 4])
def test_laws_under_mpi(n):
    done = mpiexec(n, ROOT / "tests/tinygpt/rank_programs.py", "many_laws", n)
    assert done.returncode == 0, done.stderr
    assert done.stdout == '"ok shared: ok"\n'


@given(
    n=st.integers(2, 4), seed=st.integers(0, 1000), optimizer=st.sampled_from(["adamw", "muon", "sgd", "adam"]), n_batches=st.integers(1, 3),
    dropout=st.sampled_from([0.0, 0.1]), shard=st.booleans(),
)  # fmt: skip
@settings(max_examples=6)
def test_ranks_compute_what_one_process_computes(n, seed, optimizer, n_batches, dropout, shard):
    alone = training(OneRank(), seed, "float64", optimizer, n_batches, dropout)
    together = run_ranks(n, lambda ranks: training(ranks, seed, "float64", optimizer, n_batches, dropout, shard=shard))
    assert all(each == together[0] for each in together)  # bit for bit
    np.testing.assert_allclose(together[0], alone, rtol=0, atol=1e-12)


@needs_mpi
@pytest.mark.parametrize(("shard", "launcher"), [("true", ()), ("false", TWO_MACHINES)])
def test_ranks_of_mpi_compute_what_one_process_computes(shard, launcher):
    arguments = [1, '"float32"', '"muon"', 2, 0.1, 50, shard]
    runs = [mpiexec(2, ROOT / "tests/tinygpt/rank_programs.py", "training", *arguments, launcher=launcher) for _ in range(2)]
    assert runs[0].returncode == 0, runs[0].stderr
    assert runs[0].stdout == runs[1].stdout
    alone = training(OneRank(), *map(json.loads, map(str, arguments)))
    np.testing.assert_allclose(json.loads(runs[0].stdout)[:100:2], alone[:100:2], rtol=0, atol=1e-4)  # the losses


@pytest.mark.parametrize("cls", [AdamW, Muon, SGD])
def test_each_rank_holds_its_part_of_the_state(cls):
    """1 / N of what AdamW keeps, within 1 %; Muon's matrices stay together."""
    model = GPT(GPTConfig(n_layer=4, n_head=2, n_embd=32, n_positions=8, vocab_size=100), seed=0)

    def held(ranks):
        named = [(name, Parameter(p.data.copy())) for name, p in model.named_parameters()]
        more = {"matrices": [name for name, _ in named if name.startswith("h.") and name.endswith("weight") and "ln" not in name]}
        optimizer = sharded(cls, ranks)(named, **(more if cls is Muon else {}))
        return sum(part.held.size for part, _ in optimizer._states.values())

    total = sum(array.size for arrays in cls(model).state_arrays().values() for array in arrays.values())
    for n in (2, 3):
        parts = run_ranks(n, held)
        assert sum(parts) == total
        shares = np.array(parts) * n / total
        np.testing.assert_allclose(shares, 1, atol=0.01 if cls is not Muon else 0.35)


def test_a_divided_state_is_saved_by_the_first_rank_and_each_reads_its_part():
    model = GPT(GPTConfig(n_layer=4, n_head=2, n_embd=32, n_positions=8, vocab_size=100), seed=0)

    class Asked(dict):
        def __getitem__(self, name):
            asked.append(name)
            return super().__getitem__(name)

    asked: list[str] = []

    def program(ranks):
        optimizer = sharded(AdamW, ranks)([(name, Parameter(p.data.copy())) for name, p in model.named_parameters()])
        optimizer.m.held[...] = ranks.rank + 1
        arrays = optimizer.state_arrays()
        assert arrays == {} if ranks.rank else arrays["m"].keys() == optimizer.state_shapes()["m"].keys()
        ranks.all_reduce(np.zeros(1))
        if ranks.rank == 2:  # of its part it reads the arrays, of the others' nothing
            shapes = optimizer.state_shapes()["m"]
            optimizer.load_state("m", Asked({name: np.full(shape, 5.0, np.float32) for name, shape in shapes.items()}))
            assert set(optimizer.m.held) == {5}
            with pytest.raises(ValueError, match=r"moment of .* of shape \(1,\), expected"):
                optimizer.load_state("m", {name: np.zeros(1) for name in shapes})
        return [] if ranks.rank else np.concatenate([a.reshape(-1) for a in arrays["m"].values()])

    moments, *_ = run_ranks(3, program)
    _, counts = np.unique(moments, return_counts=True)
    np.testing.assert_allclose(counts, moments.size / 3, rtol=0.01)
    assert 0 < len(set(asked)) < 30 and "wte.weight" not in asked


def test_an_update_that_is_not_finite_names_the_parameter_whichever_rank_holds_it():
    def program(ranks):
        model = GPT(tiny(), seed=0)
        optimizer = sharded(AdamW, ranks)(model)
        optimizer.gradient[...] = 1
        for p in model.parameters():
            p.grad = p._gradient_buffer
        if ranks.rank == 1:  # which holds the second half of the vectors, and so the last one
            dict(model.named_parameters())["ln_f.bias"].grad[3] = np.nan
        return Divergence(TrainConfig()).diagnosis(optimizer, lambda: None, step=1, loss=2.0, norm=float("nan"))

    for said in run_ranks(2, program):
        assert "first bad parameter: ln_f.bias (1 of 16 values)" in said


def test_rows_without_targets_are_counted_zero_times():
    ids, targets = np.zeros((4, 3), int), np.array([[1, 2, 3], [-100] * 3, [-100] * 3, [1, -100, -100]])
    tasks = shards_of([(ids, targets)], [1.0], 4)
    assert [task[0].share for task in tasks] == [0.75, 0.0, 0.0, 0.25]
    assert [task[0].first_row for task in tasks] == [0, 0, 0, 3]


class Beginning(OneRank):
    """Notes the sizes of the sums that are begun."""

    def __init__(self):
        self.begun = []

    def begin_all_reduce(self, array):
        self.begun.append(array.size)
        return Sent()


def test_sums_begin_in_the_order_in_which_the_backward_pass_completes_blocks():
    model = GPT(tiny(n_layer=2, dropout=0.1), seed=0).train()
    optimizer = AdamW(model, lr=1e-3)
    ids = np.arange(12).reshape(2, 6) % model.config.vocab_size
    model.loss(ids, ids).backward()
    before, draw = optimizer.gradient.copy(), model.dropout_stream.counter
    sums = SlicedSum(ranks := Beginning(), optimizer, model, (ids[:1], ids[:1]))
    assert model.dropout_stream.counter == draw
    np.testing.assert_array_equal(optimizer.gradient, before)
    sizes = [part.stop - part.start for part in sums.slices.parts]
    with sums.after_backward():
        model.loss(ids, ids).backward()
        n_before = len(ranks.begun)
    assert n_before == len(sizes) and ranks.begun == [sizes[i] for i in sums.slices.order]
    slice_of = {name: sums.slices.slice_of[id(p)] for name, p in optimizer.named}
    when = [sums.slices.order.index(slice_of[name]) for name in ("h.1.mlp.c_fc.weight", "h.0.mlp.c_fc.weight", "wte.weight")]
    assert when == sorted(set(when))


def test_slices_are_blocks_also_of_an_encoder_decoder():
    optimizer = AdamW(Seq2Seq(Seq2SeqConfig(n_layer=2, n_head=2, n_embd=16, n_positions=8, vocab_size=11)))
    names = {id(p): name for name, p in optimizer.named}
    found = [sorted({names[id(p)].partition(".attn")[0].partition(".cross")[0].partition(".mlp")[0] for p in each})
             for each in Slices(optimizer.named).parameters]  # fmt: skip
    assert found[:5] == [["wte.weight"], ["encoder.h.0"], ["encoder.h.1"], ["decoder.h.0"], ["decoder.h.1"]]
    assert len(found) == 6  # with the vectors


def test_a_block_that_gets_more_gradients_than_before_is_an_error():
    model = GPT(tiny(n_layer=1), seed=0)
    ids = np.zeros((1, 3), int)
    sums = SlicedSum(Beginning(), AdamW(model, lr=1e-3), model, (ids, ids))
    twice, error = (
        model.loss(ids, ids) + model.loss(ids, ids),
        r"sum of gradients: \d+ gradients for a block .*, expected \d+, as in the first one; compute",
    )
    with pytest.raises(ProcessFailed, match=error), sums.after_backward():
        twice.backward()


def test_a_rank_that_fails_ends_the_others():
    def program(ranks):
        if ranks.rank == 1:
            raise OSError("no space")
        ranks.split(0).receive(np.zeros(1), 1) if ranks.rank == 0 else ranks.all_reduce(np.zeros(1))

    with pytest.raises(OSError, match="no space"):
        run_ranks(3, program)


def test_fewer_rows_than_ranks():
    model = GPT(GPTConfig.preset("quick"), seed=0)
    with pytest.raises(InvalidInput, match="micro_batch: 2 rows, expected at least 3, one for each rank"):
        run_ranks(3, lambda ranks: DataParallel(model, ranks, rows=2))


def losses(run):
    """Training and validation losses of steps 1 and 10; where a run stops it logs another."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line.get("loss_nats", line.get("validation_nats")) for line in lines if "ended" not in line and line["step"] in (1, 10)]


def curve(run):
    """All training and validation losses."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line.get("loss_nats", line.get("validation_nats")) for line in lines if "ended" not in line]


def tensors(folder):
    """The arrays of all safetensors files, by file and name."""
    files = folder.glob("*.safetensors")
    return {f"{file.name} {name}": read_tensor(t) for file in files for name, t in read_safetensors_header(file).items()}


@needs_mpi
def test_pretraining_on_two_ranks(corpus):  # noqa: F811
    """The script and its flags; one report; the losses of one process; resumed on another number of ranks."""
    script = ROOT / "examples/pretrain.py"
    done = mpiexec(2, script, *SMALL, "--steps", "10", "--run", "two", "--stop-at", "5", "--shard-optimizer", cwd=corpus)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("backend  ") == 1 and "shared by 2 processes" in done.stdout
    done = mpiexec(3, script, "--resume", "two", "--stop-at", "0", cwd=corpus)
    assert done.returncode == 0, done.stderr
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "AUTOGRAD_THREADS": "1"}
    subprocess.run(
        [sys.executable, str(script), *SMALL, "--steps", "10", "--run", "one"], cwd=corpus, env=environment, check=True, capture_output=True
    )
    np.testing.assert_allclose(losses(corpus / "two"), losses(corpus / "one"), rtol=0, atol=1e-4)


@pytest.fixture
def base(tmp_path):
    """A folder with a pretrained run, of no use but of the right form, and with rows to learn from."""
    tokenizer = BPETokenizer.train(["a red apple and some pears", "the hammer hit a nail", "Return the axis of an array"] * 3, 300)
    run = new_run(tmp_path / "runs" / "base", "base")
    GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, n_positions=64, vocab_size=tokenizer.n_vocab), seed=0).save_pretrained(
        run / "checkpoints" / "step-00000001", tokenizer
    )
    for pointer in ("last", "best"):
        (run / "checkpoints" / pointer).write_text("step-00000001\n", encoding="utf-8")
    rows = [("fruit", f"a red apple and {n} pears") if n % 3 else ("tool", f"the hammer hit {n} nails") for n in range(60)]
    (tmp_path / "labels.csv").write_text("text,label\n" + "".join(f"{text},{label}\n" for label, text in rows), encoding="utf-8")
    answers = [{"instruction": f"Return {a} of {b}", "output": f"the {a}"} for a in ("axis", "array", "mean") for b in "abcdefghijklmnop"]
    (tmp_path / "answers.json").write_text(json.dumps(answers), encoding="utf-8")
    return tmp_path


@needs_mpi
@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("finetune_classifier", ["--data", "labels.csv", "--trainable", "lora", "--lora-dropout", "0.1", "--prompt-texts", "2"]),
        ("finetune_instructions", ["--data", "answers.json", "--test-answers", "2", "--max-new-tokens", "4"]),
    ],
)
def test_fine_tuning_on_two_ranks(base, script, flags):
    """One report; the losses, and the weights that are kept, of one process, LoRA's adapter included."""
    file = ROOT / f"examples/{script}.py"
    flags = [*flags, "--base", "runs/base", "--epochs", "4", "--lr", "0.02", "--warmup-steps", "2"]
    done = mpiexec(2, file, *flags, "--run", "two", cwd=base)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("backend  ") == done.stdout.count("\nreport  ") == 1
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "AUTOGRAD_THREADS": "1"}
    subprocess.run([sys.executable, str(file), *flags, "--run", "one"], cwd=base, env=environment, check=True, capture_output=True)
    checkpoints = [Checkpoint.open(base / run) for run in ("two", "one")]
    assert checkpoints[0].training["step"] == checkpoints[1].training["step"]
    curves, weights = [curve(base / run) for run in ("two", "one")], [tensors(c.path) | tensors(c.run / "adapter") for c in checkpoints]
    assert len(curves[0]) == len(curves[1]) == 16
    np.testing.assert_allclose(*curves, rtol=0, atol=1e-4)
    assert weights[0].keys() == weights[1].keys() and any("lora" in name for name in weights[0]) == ("lora" in flags)
    for name, array in weights[0].items():
        atol = 0.1 if name.endswith("c_attn.bias") else 1e-4  # that of keys changes nothing: its gradient is rounding
        np.testing.assert_allclose(array, weights[1][name], rtol=0, atol=atol, err_msg=name)


@needs_mpi
@pytest.mark.parametrize(("script", "moments"), [("01_data", "56,064"), ("02_zero", "28,032")])
def test_teaching_scripts(script, moments):
    done = mpiexec(2, ROOT / f"examples/parallel/{script}.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(moments) >= 2
    difference = re.search(r"differ .* at most (\S+)$", done.stdout.strip())
    assert float(difference[1]) < 1e-12


def test_ranks_with_other_settings_or_data_are_refused(tmp_path):
    def settings(ranks):
        check_same(ranks, {"lr": 0.1 if ranks.rank == 1 else 0.2, "steps": 3, **versions()})

    with pytest.raises(InvalidInput, match=r"rank 1: lr 0\.1, the first has 0\.2, expected the same settings, versions and data"):
        run_ranks(3, settings)

    def other_numpy(ranks):
        check_same(ranks, versions() | ({"numpy": "1.0"} if ranks.rank == 2 else {}))

    with pytest.raises(InvalidInput, match=r"rank 2: numpy '1\.0', the first has"):
        run_ranks(3, other_numpy)
    for which, found in ((0, "lr no value, the first has 1"), (1, "lr 1, the first has no value")):
        with pytest.raises(InvalidInput, match=f"rank 1: steps 1, the first has 0; {found}, expected"):
            run_ranks(2, lambda ranks, which=which: check_same(ranks, {"steps": ranks.rank} | ({"lr": 1} if ranks.rank == which else {})))

    def data(ranks):
        run = Run(tmp_path)
        run.ranks, run.facts = ranks, {"corpus_fingerprint": str(ranks.rank)}
        run.train(None, Notes())

    with pytest.raises(InvalidInput, match="rank 1: corpus_fingerprint '1', the first has '0'"):
        run_ranks(2, data)


@pytest.mark.parametrize(
    ("which", "lora", "found"),
    [
        (("all", "all"), (1, 2), ""),
        (("all", "last-block"), (1, 1), r"wte.weight 'float32 \(11, 16\), frozen', the first has 'float32 \(11, 16\), trained'; wpe"),
        (("lora", "lora"), (1, 2), r"h.0.attn.c_attn.lora_A 'float32 .*2\), trained', the first has 'float32 .*1\), trained'; h"),
        (("all", "lora"), (1, 1), "wte.weight 'float32 .*frozen'.*; "),
        (("lora", "all"), (1, 1), "wte.weight 'float32 .*trained'.*; "),
    ],
)
def test_ranks_that_train_other_parameters_are_refused(which, lora, found):
    """Before they sum gradients that do not fit."""

    def program(ranks):
        model = GPT(tiny(n_layer=2), seed=0)
        set_trainable(model, which[ranks.rank], LoraConfig(rank=lora[ranks.rank]))
        DataParallel(model, ranks, rows=2)

    if not found:
        run_ranks(2, program)
        return
    with pytest.raises(InvalidInput, match=f"rank 1: {found}.*expected the same settings"):
        run_ranks(2, program)


def test_more_ranks_than_cores(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    model = GPT(tiny(), seed=0)

    def program(ranks):
        ranks.here = 6
        return DataParallel(model, ranks, rows=8).note

    assert run_ranks(3, program)[0] == "6 ranks share 2 cores and take turns: an update takes at least 3 times as long"


@needs_mpi
def test_sums_of_slices_are_the_sum():
    """Sums that overlap with the backward pass have the bits of one sum, between ranks that send their gradients to each other."""
    task = {"size": "tiny", "steps": 1, "shard": False, "overlap": True}
    done = mpiexec(2, ROOT / "benchmarks/ranks.py", "--worker", json.dumps(task), launcher=TWO_MACHINES)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["equal"]


def test_the_benchmarks_table(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from benchmarks.ranks import markdown

    machine = {"date": "today", "processor": "P", "numpy": "2"}
    scaling = {"strong": {"1 rank": {"update_s": 2.0}, "2 ranks": {"update_s": 1.0, "moving_s": 0.1, "waiting_s": 0.2}}}
    parts = {
        "scaling": scaling,
        "overlap": {"equal": True, "slices": {"update_s": 1.5}},
        "predicted": {"2 ranks": {"update_s": 1.0, "predicted_s": 0.9}},
    }
    text = markdown({"machine": machine, "parts": parts})
    assert "| scaling | 2 ranks | 1 | 0.1 | 10.0% | 0.2 | - |" in text and "| predicted | 2 ranks | 1 | - | - | - | 0.9 (-10%) |" in text
