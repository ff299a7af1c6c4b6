"""The planner: formulas against simulations, predictions against published steps, the course's table, bad input."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygpt.errors import InvalidInput
from tinygpt.model_config import GPTConfig
from tinygpt.planner import formulas as f
from tinygpt.planner.command import COURSE, chosen, main, of_size
from tinygpt.planner.command import PlanConfig as Config
from tinygpt.planner.hardware import DEVICES, device
from tinygpt.planner.published import by_constant_utilization, fit, predicted, published
from tinygpt.planner.step import Job, Mesh, best, enough, memory, meshes, seconds, traffic, utilization, weights_per_device


def test_the_nine_rows_of_the_course():
    for n_weights, flops, tokens in COURSE:
        best_n, best_d = f.compute_optimal(flops)
        expected = 1.43e12 if n_weights == 6.7e10 else tokens
        assert f.training_flops(best_n, best_d) == pytest.approx(flops)
        assert best_n == pytest.approx(n_weights, rel=0.05) and best_d == pytest.approx(expected, rel=0.05)
        assert flops / (6 * n_weights) == pytest.approx(expected, rel=0.01)


def test_steps_that_others_published():
    """Five rows fix three numbers; the others are predicted, and better than by one utilization."""
    rows = published()
    fitted, others = [row for row in rows if row.fitted], [row for row in rows if not row.fitted]
    assert len(fitted) == 5
    found = fit(fitted)
    for name in found._fields:
        assert getattr(DEVICES["h100"], name) == pytest.approx(getattr(found, name), rel=0.002)
        assert getattr(DEVICES["a100"], name) == getattr(DEVICES["h100"], name)
    errors = {row.name: abs(predicted(row) / row.step - 1) for row in rows}
    assert max(errors.values()) < 0.25
    constant = [abs(step / row.step - 1) for row, step in zip(rows, by_constant_utilization(rows), strict=True) if not row.fitted]
    ours = [errors[row.name] for row in others]
    assert len(ours) == 21 and np.mean(ours) < 0.07 < 0.15 < np.mean(constant) and max(ours) < max(constant)


def test_the_reported_utilization_is_reproduced():
    """nanochat's report says 48.17 %, Korthikanti's table 5 51.4 % and 56.0 %."""
    by_name = {row.name: row.utilization() for row in published()}
    assert by_name["nanochat d20, 8 H100"] == pytest.approx(0.4817, rel=0.02)
    assert by_name["Megatron 175 B, 64 A100"] == pytest.approx(0.514, rel=0.02)
    assert by_name["Megatron 530 B, 280 A100"] == pytest.approx(0.560, rel=0.02)


def test_memory_of_one_gpu_is_the_measured_one():
    """GPT-2 124M in bfloat16 at 16, 32 and 64 sequences of 1,024: docs/gpu.md has 9.07, 15.6 and 27.0 GB on an H200."""
    config = GPTConfig(vocab_size=50_304)
    for micro, measured in ((16, 9.07), (32, 15.6), (64, 27.0)):
        held = memory(Job(config, device("h200"), batch=micro, micro=micro))
        assert held.total / 1e9 == pytest.approx(measured, rel=0.1)


@given(n=st.integers(1, 9), parts=st.integers(1, 4))
def test_ring_is_what_its_rounds_move(n, parts):
    """Every device passes on one n-th per round until all hold every sum: counted on real arrays."""
    held = np.random.default_rng(n).random((n, n, parts))
    total, rounds = held.sum(0), 0
    for step in range(n - 1):  # sums
        sent = [held[i, (i - step) % n].copy() for i in range(n)]
        for i in range(n):
            held[(i + 1) % n, (i - step) % n] += sent[i]
        rounds += 1
    for step in range(n - 1):  # results
        sent = [held[i, (i + 1 - step) % n].copy() for i in range(n)]
        for i in range(n):
            held[(i + 1) % n, (i + 1 - step) % n] = sent[i]
        rounds += 1
    assert np.allclose(held, total)
    assert f.ring(n, 8.0 * n * parts, 4.0, 0.5) == pytest.approx(rounds * (8.0 * parts / 4.0 + 0.5))


@given(stages=st.integers(1, 8), micro_batches=st.integers(1, 12))
def test_bubble_is_what_a_pipeline_waits(stages, micro_batches):
    """A stage starts a micro-batch when it is free and the stage before has finished it; forward, then backward the other way."""
    ready, free = np.zeros((stages + 1, micro_batches)), np.zeros(stages)
    for m in range(micro_batches):
        for s in range(stages):
            free[s] = ready[s + 1, m] = max(free[s], ready[s, m]) + 1.0
    end = 2 * free[-1]  # backward is the mirror image
    assert f.bubble(stages, micro_batches) == pytest.approx(1 - 2 * micro_batches / end)


def test_the_checkpoint_interval_loses_the_least():
    """Against the exact expected time with failures at random (Daly 2006, equation 20), over a grid of intervals."""
    for save, between in ((60.0, 3600.0), (10.0, 86_400.0), (300.0, 7200.0)):
        grid = np.geomspace(save / 4, between, 4000)
        expected = between * (np.exp((grid + save) / between) - 1) / grid
        ours = between * (math.exp((f.checkpoint_interval(save, between) + save) / between) - 1) / f.checkpoint_interval(save, between)
        assert ours <= expected.min() * 1.001
    assert f.checkpoint_interval(100.0, 50.0) == 50.0


def test_stragglers_are_the_largest_of_many():
    rng = np.random.default_rng(0)
    for n in (64, 1024, 4096):
        slowest = (1 + 0.02 * rng.standard_normal((400, n))).max(1).mean() - 1
        assert f.straggling(n, 0.02) == pytest.approx(slowest, rel=0.03)
    assert f.straggling(1, 0.02) == 0.0


def test_parts_of_a_mesh():
    gpt3 = GPTConfig.preset("gpt3")
    job = Job(gpt3, device("a100"), Mesh(2, 8, 12), batch=48)
    assert weights_per_device(job) * 96 == pytest.approx(gpt3.n_parameters(), rel=0.06)
    split, alone = memory(job), memory(Job(gpt3, device("a100"), Mesh(2, 8, 12), batch=48, sharded=False))
    assert split["optimizer"] == pytest.approx(alone["optimizer"] / 2)
    assert seconds(job)["bubble"] == pytest.approx(11 / 24 * (sum(seconds(job)[n] for n in ("products", "memory", "output", "tensor"))))
    assert {str(m) for m in meshes(GPTConfig(), 2, 8)} == {
        "data=2,tensor=1,pipeline=1",
        "data=1,tensor=2,pipeline=1",
        "data=1,tensor=1,pipeline=2",
    }


def test_what_a_device_sends():
    """The times of a mesh are its bytes over the link, where a message takes no time of its own."""
    gpt3, a100 = GPTConfig.preset("gpt3"), dataclasses.replace(device("a100"), latency=0.0, exposed=1.0)
    job = Job(gpt3, a100, Mesh(2, 8, 12), batch=48)
    sent, took = traffic(job), seconds(job)
    assert sent["tensor"] / a100.within == pytest.approx(took["tensor"])
    assert sent["data"] / a100.between == pytest.approx(took["data"])
    assert sent["messages"] / a100.between == pytest.approx(took["messages"])
    assert traffic(Job(gpt3, a100)).total == 0


def test_the_best_mesh_is_the_fastest_that_fits():
    config = of_size(7e9)
    found = best(config, device("a100"), 16, 64)
    assert memory(found).total <= 0.92 * 80e9
    for mesh in meshes(config, 16, 8):
        if 64 % mesh.data == 0:
            job = Job(config, device("a100"), mesh, 64, sequence=mesh.tensor > 1)
            assert memory(job).total > 0.92 * 80e9 or seconds(job).total >= seconds(found).total
    assert 0.2 < utilization(found, seconds(found).total) < 0.7


@pytest.mark.parametrize(("model", "name"), [("gpt3", "h100"), ("llama-2-70b", "a100"), ("gpt2-xl", "laptop")])
def test_the_fewest_devices_are_full_nodes_and_one_node_less_does_not_hold_it(model, name):
    config, processor = GPTConfig.preset(model), device(name)
    n = enough(config, processor, 2048)
    assert n % processor.per_node == 0 and memory(best(config, processor, n, 2048)).total <= 0.92 * processor.memory
    for fewer in range(processor.per_node, n, processor.per_node):
        with pytest.raises(InvalidInput, match=r"take more devices|no mesh divides"):
            best(config, processor, fewer, 2048)


@given(n_weights=st.floats(2e6, 2e12))
def test_a_size_becomes_a_shape(n_weights):
    config = of_size(n_weights)
    assert config.n_parameters() == pytest.approx(n_weights, rel=0.1)


def test_command(capsys, tmp_path):
    main(["--model", "gpt2", "--tokens", "1e10", "--devices", "8", "--batch-tokens", "524288", "--output", str(tmp_path / "plan.json")])
    out = capsys.readouterr().out
    assert "124,439,808 weights" in out and "utilization" in out and "sends       data 0." in out and "limit       products" in out
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["flops_6nd"] == pytest.approx(6 * 124_439_808 * 1e10) and plan["devices"] == 8
    assert plan["device_hours"] == pytest.approx(plan["seconds"] * 8 / 3600) and plan["rent_dollars"][0] < plan["rent_dollars"][1]
    main(["--table"])
    out = capsys.readouterr().out
    assert "1.43T" in out and "27,377 hours" in out and "1,068 MWh" in out and "562B to 1.12T" in out
    main(["--published"])
    assert "21 rows that fixed nothing" in capsys.readouterr().out
    main(["--model", "7e9", "--mesh", "data=2,tensor=4,pipeline=1", "--devices", "8", "--device", "h200"])
    assert "data=2,tensor=4,pipeline=1" in capsys.readouterr().out


def test_a_budget_chooses_model_and_tokens():
    model, tokens = chosen(Config(flops=5.76e23))
    assert model.n_parameters() == pytest.approx(69.3e9, rel=0.1) and tokens == pytest.approx(1.386e12, rel=0.01)
    model, tokens = chosen(Config(model="gpt2", flops=1e18))
    assert tokens == pytest.approx(1e18 / 6 / 124_439_808)


@pytest.mark.parametrize(("products", "step"), [(0.001, 0.05), (0.04, 0.03)])
def test_measure_reproduces_the_step_that_it_measured(monkeypatch, products, step):
    """Also where the products took longer alone than the step, as on a busy machine. Times are given, so that none has to be waited for."""
    from tinygpt.planner import measure

    times = iter([products, 0.02, step])

    def fastest(call, repeats):
        call()
        return next(times)

    monkeypatch.setattr(measure, "fastest", fastest)
    config = GPTConfig.preset("quick")
    here = measure.measure(config, 4)
    assert seconds(Job(config, here, batch=4, micro=4)).total == pytest.approx(step)
    assert here.flops > 0 and here.bandwidth > 0 and here.values >= 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "gpt4"], "did you mean"),
        ([], "no model, expected --model"),
        (["--model", "7e9", "--device", "h10"], "device 'h10': unknown, expected one of a100, h100.*did you mean 'h100'"),
        (["--model", "gpt2", "--mesh", "data=2,tensor=2", "--devices", "8"], "4 devices, expected a product of 8"),
        (["--model", "gpt2", "--mesh", "data=2,rows=4"], "'rows=4', expected data=D,tensor=T,pipeline=P"),
        (["--model", "gpt2", "--mesh", "tensor=8"], "12 heads, expected a multiple of 8"),
        (["--model", "gpt2", "--mesh", "pipeline=8"], "12 blocks, expected a multiple of 8"),
        (["--model", "gpt3", "--device", "laptop", "--devices", "1"], "GB at .*, expected at most 15 GB; take more devices"),
        (["--model", "1e12", "--device", "laptop"], "52 GB on each of 409600 devices, as many as divide the model, expected at most 15 GB"),
        (["--model", "3"], "3 weights, expected 1e5 to 1e15"),
    ],
)
def test_bad_input(flags, message):
    with pytest.raises((InvalidInput, ValueError), match=message):
        main(flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--measure", "--mesh", "data=2"], "--measure with --mesh, expected this machine alone"),
        (["--measure", "--devices", "64"], "--measure with --devices, expected this machine alone"),
        (["--measure", "--device", "h100"], "--measure with --device, expected this machine alone"),
        (["--micro", "4"], "--micro 4 without --mesh, expected a mesh"),
        (["--devices", "8", "--recompute", "full"], "--recompute full without --mesh, expected a mesh"),
    ],
)
def test_flags_that_would_be_ignored(capsys, flags, message):
    with pytest.raises(SystemExit, match="2"):
        main(["--model", "gpt2", *flags])
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_number_that_is_none(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--model", "gpt2", "--tokens", "nan"])
    assert "expected a finite number" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["--model", "gpt2", "--device-failures", "0"])
    assert "0 years, expected more than 0" in capsys.readouterr().err
