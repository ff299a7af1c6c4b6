"""Meshes of ranks: pipeline, and data x tensor x pipeline, against what one process computes."""

import dataclasses
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autograd import backend
from tests.tinygpt.mesh_programs import alone, differences, mesh_training, tiny_trainer
from tests.tinygpt.mpi_helpers import ROOT, SMALL, corpus, mpiexec, needs_mpi, ranks_of_cpus  # noqa: F401 (corpus: a fixture)
from tests.tinygpt.test_ranks import losses
from tinygpt import GPT, Checkpoint, GPTConfig, Run
from tinygpt.data.tokenizer import train_tokenizer
from tinygpt.errors import InvalidInput
from tinygpt.parallel.communicator import OneRank, run_ranks
from tinygpt.parallel.divided import MeshWorkers, divide, make_divided
from tinygpt.parallel.mesh import Mesh, Shape, check_shape, parse
from tinygpt.parallel.pipeline import ORDERS, Pass, Pipeline, StagedGPT, bubble
from tinygpt.parallel.timeline import as_text, draw, measured_bubble
from tinygpt.storage.safetensors import TensorFile, read_safetensors_header, read_tensor
from tinygpt.training.step import Shard
from tinygpt.training.trainer import Trainer

pytestmark = ranks_of_cpus

SCRIPT = ROOT / "examples/parallel/train_3d.py"


# The schedules ------------------------------------------------------------------------------------------------------------------


@given(n_stages=st.integers(1, 6), n_batches=st.integers(1, 9), order=st.sampled_from(sorted(ORDERS)))
def test_orders_compute_everything_once_and_never_wait_in_a_circle(n_stages, n_batches, order):
    """Played with passes that take one slot each, the stages wait for exactly the share that the formula says."""
    queues = [list(ORDERS[order](stage, n_stages, n_batches)) for stage in range(n_stages)]
    for queue in queues:
        assert sorted(queue) == sorted([(kind, i) for kind in "FB" for i in range(n_batches)])
    done, held, most, slots = set(), [0] * n_stages, [0] * n_stages, 0
    while any(queues):
        now = []
        for stage, queue in enumerate(queues):
            if queue:
                kind, i = queue[0]
                needs = (kind, i, stage - 1 if kind == "F" else stage + 1)
                if needs in done or (kind == "F" and stage == 0) or (kind == "B" and stage == n_stages - 1 and ("F", i, stage) in done):
                    now.append((kind, i, stage))
        assert now, "each stage waits for another"
        for kind, _, stage in now:
            queues[stage].pop(0)
            held[stage] += 1 if kind == "F" else -1
            most[stage] = max(most[stage], held[stage])
        done.update(now)
        slots += 1
    assert 1 - 2 * n_batches / slots == pytest.approx(bubble(n_stages, n_batches))
    assert most == [n_batches if order == "gpipe" else min(n_stages - stage, n_batches) for stage in range(n_stages)]


@pytest.mark.parametrize("order", sorted(ORDERS))
def test_a_pipeline_holds_as_many_micro_batches_as_its_order_says(order):
    ids = np.random.default_rng(0).integers(0, 16, (5, 2, 7))

    def program(ranks):
        model = StagedGPT(GPT(GPTConfig(n_layer=3, n_head=1, n_embd=4, n_positions=6, vocab_size=16), seed=0), ranks)
        pipeline = Pipeline(model, order)
        pipeline.accumulate([Shard((rows[:, :-1], rows[:, 1:]), 0.2) for rows in ids])
        return pipeline.held, [p.data.tobytes() + p.grad.tobytes() for p in model.parameters()], [p[:2] for p in pipeline.passes]

    found = run_ranks(3, program)
    assert [held for held, *_ in found] == ([5, 5, 5] if order == "gpipe" else [3, 2, 1])
    assert [passes for *_, passes in found] == [ORDERS[order](stage, 3, 5) for stage in range(3)]
    order = next(other for other in ORDERS if other != order)  # backward passes come in the same order: both give the same bits
    assert [bits for _, bits, _ in run_ranks(3, program)] == [bits for _, bits, _ in found]


# Equality with one process ------------------------------------------------------------------------------------------------------

MODELS = [
    {},
    {"tie_word_embeddings": False, "positions": "rotary", "norm": "rms", "gated": True, "activation": "silu", "n_kv_head": 2},
]


@given(
    shape=st.tuples(*[st.integers(1, 2)] * 3), optimizer=st.sampled_from(["adamw", "muon"]), n_batches=st.integers(1, 3),
    dropout=st.sampled_from([0.0, 0.1]), order=st.sampled_from(sorted(ORDERS)), shard=st.booleans(), recompute=st.booleans(),
    model=st.sampled_from(MODELS),
)  # fmt: skip
@settings(max_examples=5)
def test_a_mesh_computes_what_one_process_computes(shape, order, shard, recompute, model, **options):
    expected = alone(**options, **model)
    run = functools.partial(mesh_training, shape=shape, order=order, shard=shard, recompute=recompute, **options, **model)
    first, *others = run_ranks(int(np.prod(shape)), run)
    for each in others:
        assert (each["losses"], each["norms"], each["draws"]) == (first["losses"], first["norms"], first["draws"])  # bit for bit
    assert max(differences(first, expected)) < 1e-12
    np.testing.assert_allclose(first["losses"] + first["norms"], expected["losses"] + expected["norms"], rtol=0, atol=1e-11)
    assert first["draws"] == expected["draws"]


def test_the_largest_mesh_is_equal_bit_for_bit_run_to_run():
    options = {"optimizer": "muon", "dropout": 0.1, "n_batches": 2}
    runs = [run_ranks(8, functools.partial(mesh_training, shape=(2, 2, 2), **options))[0] for _ in range(2)]
    assert json.dumps(runs[0]) == json.dumps(runs[1])
    assert max(differences(runs[0], alone(**options))) < 1e-12


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_float32_loss_curves_agree(optimizer):
    options = {"dtype": "float32", "optimizer": optimizer, "steps": 50, "n_batches": 1}
    found = run_ranks(4, functools.partial(mesh_training, shape=(1, 2, 2), **options))[0]
    np.testing.assert_allclose(found["losses"], alone(**options)["losses"], rtol=0, atol=1e-4)


def mpi_training(n, shape, **options):
    done = mpiexec(n, ROOT / "tests/tinygpt/mesh_programs.py", json.dumps({"shape": shape, **options}))
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_mpi
@pytest.mark.parametrize("shape", [(1, 1, 2), (1, 2, 2), (2, 2, 2)], ids=str)
def test_meshes_under_mpi(shape):
    options = {"optimizer": "muon", "shard": shape == (2, 2, 2)}
    found = mpi_training(int(np.prod(shape)), shape, **options)
    assert max(differences(json.loads(found), alone(optimizer="muon"))) < 1e-12
    if shape == (1, 2, 2):
        assert mpi_training(4, shape, **options) == found  # bit for bit


# Runs ---------------------------------------------------------------------------------------------------------------------------


@needs_mpi
def test_a_run_on_a_mesh_is_resumed_on_another_and_read_by_others(corpus):  # noqa: F811
    flags = [*SMALL, "--n-layer", "2", "--tokens-per-update", "128", "--steps", "10", "--dropout", "0.1"]
    flags += ["--batch-ramp-from", "64", "--batch-ramp-tokens", "500"]
    done = mpiexec(4, SCRIPT, *flags, "--run", "mesh", "--stop-at", "5", "--mesh", "tensor=2,pipeline=2", cwd=corpus)
    assert done.returncode == 0, done.stderr
    assert "resume with" in done.stdout and done.stdout.count("backend  ") == 1
    done = mpiexec(2, SCRIPT, "--resume", "mesh", "--stop-at", "0", "--mesh", "data=1,pipeline=2", cwd=corpus)
    assert done.returncode == 0, done.stderr
    assert "on data=1,tensor=1,pipeline=2 instead of data=1,tensor=2,pipeline=2: the same updates, up to rounding" in done.stdout
    alone_environment = {**os.environ, "PYTHONPATH": str(ROOT), "AUTOGRAD_THREADS": "1"}
    for command in ([str(ROOT / "examples/pretrain.py"), *flags, "--run", "one"], ["-m", "tinygpt", "verify", "mesh"]):
        done = subprocess.run([sys.executable, *command], cwd=corpus, env=alone_environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses(corpus / "mesh"), losses(corpus / "one"), rtol=0, atol=1e-4)
    found, expected = (Checkpoint.open(corpus / run, "last") for run in ("mesh", "one"))
    for name, p in found.model().named_parameters():
        np.testing.assert_allclose(p.data, dict(expected.model().named_parameters())[name].data, rtol=0, atol=1e-4, err_msg=name)
    assert found.training["streams"] == expected.training["streams"]


@needs_mpi
def test_the_teaching_script():
    for n in (1, 2):
        done = mpiexec(n, ROOT / "examples/parallel/04_pipeline.py")
        assert done.returncode == 0, done.stderr
        assert float(re.search(r"differ by at most (\S+)$", done.stdout.strip())[1]) < 1e-12
        assert len(re.findall(r"^stage \d  [.\da-f]{72}$", done.stdout, flags=re.MULTILINE)) == n


# Bad input ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data=2,tensr=2", "mesh: 'tensr=2' in 'data=2,tensr=2', expected data=N,tensor=N,pipeline=N.*did you mean 'tensor'"),
        ("data=2,data=2", "mesh: 'data=2' in .*each at most once"),
        ("pipeline=0", "mesh: 'pipeline=0' in .*N at least 1"),
        ("data=two", "mesh: 'data=two'"),
        ("2,2,2", "mesh: '2' in"),
    ],
)
def test_meshes_that_mean_nothing(text, message):
    with pytest.raises(InvalidInput, match=message):
        parse(text)


def test_meshes_are_read_and_written():
    assert parse("pipeline=3, data=2") == Shape(2, 1, 3) and str(Shape(2, 1, 3)) == "data=2,tensor=1,pipeline=3"


def test_meshes_that_do_not_fit():
    config = GPTConfig(n_layer=4, n_head=4, n_embd=16, n_positions=8, vocab_size=16)
    for shape, message in (
        (Shape(pipeline=3), "mesh: pipeline=3 with n_layer 4, expected pipeline to divide it: 1, 2, 4; change --mesh or --n-layer"),
        (Shape(tensor=3), "n_head 4 on 3 ranks, expected a multiple"),
        (Shape(data=3), "TrainConfig.micro_batch: 2 rows with mesh data=3,tensor=1,pipeline=1, expected at least 3"),
    ):
        with pytest.raises(InvalidInput, match=message):
            check_shape(shape, config, rows=2)
    with pytest.raises(
        InvalidInput, match=r"2 x 1 x 2 = 4 ranks, expected 1, as many as there are; start 4: mpiexec -n 4, or change --mesh"
    ):
        Mesh(Shape(2, 1, 2), OneRank())


def test_ranks_with_other_meshes_are_refused():
    """Before they are split into groups whose members differ."""
    with pytest.raises(InvalidInput, match="rank 1: mesh 'data=1,tensor=2,pipeline=1', the first has 'data=2,tensor=1,pipeline=1'"):
        run_ranks(2, lambda ranks: Mesh(Shape(tensor=2) if ranks.rank else Shape(data=2), ranks))

    def program(ranks):
        model = divide(GPT(GPTConfig(n_layer=2, n_head=2, n_embd=8, n_positions=6, vocab_size=16)), Mesh(Shape(pipeline=2), ranks))
        MeshWorkers(model, model.mesh, rows=2, order="gpipe" if ranks.rank else "1f1b")

    with pytest.raises(InvalidInput, match="rank 1: order 'gpipe', the first has '1f1b', expected"):
        run_ranks(2, program)


@pytest.mark.parametrize("shape", [(1, 2, 1), (2, 1, 2), (1, 2, 2)])
@pytest.mark.parametrize(
    "options", [{}, {"positions": "rotary", "norm": "rms", "gated": True, "n_kv_head": 2, "tie_word_embeddings": False}]
)
def test_a_part_is_made_without_the_rest(shape, options):
    """With the weights of one process, which are drawn one by one."""
    config = GPTConfig(n_layer=2, n_head=2, n_embd=8, n_positions=6, vocab_size=31, **options)

    def program(ranks):
        mesh = Mesh(Shape(*shape), ranks)
        made, divided = make_divided(config, 5, mesh), divide(GPT(config, seed=5), mesh)
        assert made.dropout_stream.seed == divided.dropout_stream.seed
        for (name, p), (same, q) in zip(made.named_parameters(), divided.named_parameters(), strict=True):
            assert name == same and p.data.tobytes() == q.data.tobytes(), name

    run_ranks(Shape(*shape).size, program)


def test_no_rank_holds_the_complete_model(tmp_path):
    """Neither when it makes its part of one, nor when it reads that from a checkpoint."""
    config = GPTConfig(n_layer=8, n_head=2, n_embd=64, n_positions=6, vocab_size=300)
    one = tiny_trainer(config=config)
    one.update()
    run = Run.create("x", tmp_path / "run", background=False)
    run.tokenizer = train_tokenizer("bpe", ["a b c"] * 9, 300)
    run.save(one, best=True)
    complete_bytes = 4 * one.model.n_parameters()
    meshes = run_ranks(2, lambda ranks: Mesh(Shape(tensor=2), ranks))

    def both(program):
        """What the ranks' results take in memory, and what it takes to make them."""
        tracemalloc.start()
        try:
            made = run_ranks(2, lambda ranks: program(ranks.rank))
            return made, *(n / complete_bytes for n in tracemalloc.get_traced_memory())
        finally:
            tracemalloc.stop()

    models, held, peak = both(lambda rank: make_divided(config, 0, meshes[rank]))
    assert 0.9 < held < 1.2 and peak < held + 0.4

    def trainer(ranks):
        model, mesh = models[ranks.rank], meshes[ranks.rank]
        return Trainer(model, one.config, one.train_items, None, MeshWorkers(model, mesh, 2))

    trainers, checkpoint = run_ranks(2, trainer), Checkpoint.open(run.path)
    _, held, peak = both(lambda rank: checkpoint.restore(trainers[rank]))
    assert held < 0.1 and peak < 0.8  # two complete models would be 2
    restored = run_ranks(2, lambda ranks: models[ranks.rank].complete())[0]
    for (name, p), (_, q) in zip(restored.named_parameters(), one.model.named_parameters(), strict=True):
        np.testing.assert_array_equal(backend.to_host(p.data), backend.to_host(q.data), err_msg=name)


def test_a_checkpoint_with_a_part_of_the_state_is_refused(tmp_path):
    """As one rank alone would have written it: nothing joins such files."""
    run = Run.create("x", tmp_path / "run", background=False)
    run.tokenizer = train_tokenizer("bpe", ["a b c"] * 9, 300)
    trainer = tiny_trainer()
    trainer.update()
    run.save(trainer, best=True)
    path = Checkpoint.open(run.path).path
    arrays = {name: read_tensor(tensor) for name, tensor in read_safetensors_header(path / "training.safetensors").items()}
    part = tmp_path / "part"
    for change, message in (
        ({name: a for name, a in arrays.items() if ".h.1." not in name}, "holds the state of .* a part, as one rank of a mesh has it"),
        (arrays | {"m.wte.weight": arrays["m.wte.weight"][:150]}, r"m.wte.weight of shape \(150, 8\), a part of \(300, 8\)"),
    ):
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(path, part)
        (part / "training.safetensors").write_bytes(b"".join(TensorFile(change, {}).chunks()))
        (part / "manifest.json").unlink()
        with pytest.raises(InvalidInput, match=message):
            Checkpoint(part).restore(tiny_trainer())
        with pytest.raises(InvalidInput, match=message):
            run_ranks(2, lambda ranks: Checkpoint(part).restore(tiny_trainer(ranks, (1, 1, 2))))
    run_ranks(2, lambda ranks: Checkpoint(path).restore(tiny_trainer(ranks, (1, 2, 1))))


def test_more_ranks_than_cores_are_noted(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    notes = run_ranks(2, lambda ranks: tiny_trainer(ranks, (1, 1, 2)).workers.note)
    assert notes == ["2 ranks share 1 cores and take turns: an update takes at least 2 times as long"] * 2


@pytest.mark.parametrize("shape", [(1, 1, 2), (1, 2, 1), (2, 2, 1), (1, 2, 2)])
def test_the_first_op_with_a_bad_number_is_named_on_all_ranks(monkeypatch, shape):
    """In debug mode, whichever stage and part it is on: the others do not wait for that rank."""
    monkeypatch.setattr(backend, "debug", True)
    n = Shape(*shape).size

    def program(ranks):
        trainer = tiny_trainer(ranks, shape)
        if ranks.rank == n - 1:
            trainer.model.h[1].mlp.c_fc.weight.data[...] = np.nan
        with pytest.raises(FloatingPointError) as found:
            trainer.gradients()
        return str(found.value), trainer.workers.first_found("" if ranks.rank == 0 else "h.1")

    found = run_ranks(n, program)
    assert found == [found[0]] * n and found[0][1] == "h.1"
    assert re.match(r"Linear\w*\.forward: \d+ of", found[0][0]), found[0][0]


# Pictures -----------------------------------------------------------------------------------------------------------------------

STAGES = [
    [Pass("F", 0, 0.0, 1.0), Pass("F", 1, 1.0, 2.0), Pass("B", 0, 3.0, 4.0), Pass("B", 1, 5.0, 6.0)],
    [Pass("F", 0, 1.0, 2.0), Pass("B", 0, 2.0, 3.0), Pass("F", 1, 3.0, 4.0), Pass("B", 1, 4.0, 5.0)],
]


def test_the_schedule_as_text_and_its_bubble():
    assert as_text(STAGES, 12) == "stage 0  0011..aa..bb\nstage 1  ..00aa11bb.."
    assert measured_bubble(STAGES) == pytest.approx(1 / 3) == bubble(2, 2)


def test_the_picture_of_a_schedule(tmp_path):
    pytest.importorskip("matplotlib", reason="no matplotlib: pip install -e .[plot]")
    draw(tmp_path / "x.png", {"1F1B": STAGES, "GPipe": STAGES})
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_has_the_results_that_are_committed():
    page = (ROOT / "docs/pipeline-parallel.md").read_text(encoding="utf-8")
    report = json.loads((ROOT / "benchmarks/results/pipeline.json").read_text(encoding="utf-8"))
    assert report["machine"] in page and page.count("\n| GPipe |") + page.count("\n| 1F1B |") == len(report["rows"])
    for row in report["rows"]:
        shares = " | ".join(f"{row[key]:.1%}" for key in ("formula", "played", "measured"))
        assert f"| {row['order']} | {row['micro_batches']} | {shares} | {', '.join(map(str, row['held']))} |" in page
        assert row["formula"] == bubble(len(row["held"]), row["micro_batches"])


def test_settings_of_the_script():
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        from train_3d import Train3DConfig
    finally:
        sys.path.remove(str(SCRIPT.parent))
    assert {field.name for field in dataclasses.fields(Train3DConfig) if field.metadata.get("resume") == "free"} >= {"mesh", "order"}
