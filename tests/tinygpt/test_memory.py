"""Memory: the estimate before training, what the process may have, and no growth."""

import gc
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from autograd import limits
from autograd.limits import memory_limit, resident_bytes
from benchmarks.reliability import measure_memory
from tests.autograd.checks import numpy_only
from tests.tinygpt.helpers import Notes, decoders
from tests.tinygpt.test_resume import trainer
from tinygpt import GPT, GPTConfig
from tinygpt.training import memory_budget as memory
from tinygpt.training.memory_budget import check, estimate, readable, saved_by_block

GPT2 = GPTConfig()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not say what memory is in use")
@pytest.mark.parametrize("size", ["S", "M", "encoder", "encoder-decoder", "T5"])
def test_the_estimate_is_within_15_percent_of_the_measured_peak(size):
    """L and XL: python benchmarks/reliability.py memory."""
    report = measure_memory(size)
    assert abs(report["error"]) < 0.15, report


def test_the_estimate_follows_its_parts():
    one, two = estimate(GPT2, 1, program=0), estimate(GPT2, 2, program=0)
    assert one["weights"] == one["gradients"] == 4 * GPT2.n_parameters() and one["moments"] == 2 * one["weights"] and one["checkpoint"] == 0
    assert two["activations"] > 1.8 * (one["activations"] - 4 * GPT2.vocab_size * GPT2.n_embd)
    assert estimate(GPT2, 1, checkpoints=True, program=0).total == one.total + 3 * one["weights"]
    assert "activations" in str(one) and readable(1 << 31) == "2.0 GB" and readable(20 << 20) == "20 MB" and readable(512) == "0 KB"


@numpy_only
@settings(max_examples=60)
@given(config=decoders(n_layer=2, n_positions=12))
def test_a_block_saves_what_the_formula_says(config):
    """Whatever the options: the same bytes as a traced forward pass."""
    model, ids = GPT(config), np.zeros((3, 12), dtype=np.int64)
    steps = model.trace(ids, ids).steps
    saved = sum(step.saved_bytes for step in steps if step.module.startswith("h.1"))
    tables = 2 * 4 * 12 * config.channels_per_head  # cosines and sines, which the first block with them is charged with
    scales = 4 * (4 * config.n_embd + 2 * config.channels_per_head) if config.norm == "rms" else 0  # once per norm, not per token
    assert saved - tables - scales <= 4 * 3 * 12 * saved_by_block(config) <= saved + 4 * 3 * 12 * 2


def test_gpt2s_block_saves_16_c():
    assert saved_by_block(GPT2) == 16 * 768 + 12 + 2
    assert saved_by_block(GPTConfig.preset("smollm2-135m")) == 16 * 576 + 9 + 2  # by chance: its MLP is narrower, but has a gate


@numpy_only
def test_what_does_not_fit_is_refused_with_the_two_settings_to_lower(monkeypatch):
    monkeypatch.setattr(memory, "resident_bytes", lambda: 100 << 20)  # not what earlier tests left in this process
    monkeypatch.setattr(memory, "memory_limit", lambda: (6 << 30, "the limit of the control group /sys/fs/cgroup/job"))
    assert "of 6.0 GB, the limit of the control group" in check(GPT2, 1)
    with pytest.raises(ValueError, match=(
        r"memory: training needs about [\d.]+ GB \(program .*\), expected at most 6.0 GB, the limit of the control group /sys/fs/cgroup/job; "
        r"lower --micro-batch \(to \d\) or --n-positions \(from 1024\)"
    )):  # fmt: skip
        check(GPT2, 16)
    monkeypatch.setattr(memory, "memory_limit", lambda: (1 << 30, "what is free on this machine"))
    with pytest.raises(
        ValueError, match=r"lower --micro-batch or --n-positions .*, or take a smaller model: even a micro-batch of 1 does not"
    ):
        check(GPT2, 16)


def test_the_least_of_all_limits_counts(monkeypatch):
    files = {
        "/proc/self/cgroup": "0::/user/job\n5:cpu,memory:/old\n4:cpu:/x\nnonsense\n",
        "/sys/fs/cgroup/user/job/memory.max": "max\n",
        "/sys/fs/cgroup/user/memory.max": "3000000000\n",
        "/sys/fs/cgroup/memory/old/memory.limit_in_bytes": "9223372036854771712\n",
        "/proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 8000000 kB\n",
    }
    monkeypatch.setattr(limits, "read", lambda path: files.get(path, ""))
    assert memory_limit() == (3_000_000_000, "the limit of the control group /sys/fs/cgroup/user")
    files["/sys/fs/cgroup/memory/old/memory.limit_in_bytes"] = "2000000000"
    assert memory_limit()[0] == 2_000_000_000
    del files["/proc/self/cgroup"]
    assert memory_limit()[1] in ("what is free on this machine", "the limit of this process (ulimit -v)")


@numpy_only
def test_500_steps_leave_no_memory_behind():
    """Live arrays and objects are the same after 250 steps and after 500, and the process has grown by less than 2 MB."""
    t = trainer(steps=10**6, tokens_per_update=0)

    def steps(n):
        t.config = type(t.config)(**{**vars(t.config), "stop_at": t.result.step + n, "log_every": 10**6, "eval_every": 10**6})
        t.run(Notes())
        gc.collect()
        return len(gc.get_objects()), tracemalloc.get_traced_memory()[0], resident_bytes()

    tracemalloc.start()
    try:
        objects, traced, resident = steps(250)
        later_objects, later_traced, later_resident = steps(250)
    finally:
        tracemalloc.stop()
    assert later_objects - objects < 50 and later_traced - traced < 50_000 and later_resident - resident < 2 << 20
