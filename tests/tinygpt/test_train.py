import json
import math

import numpy as np
import pytest

from autograd import backend
from autograd.optim import AdamW
from tests.tinygpt.helpers import TOKENS, FunctionRecord, Notes, tiny
from tinygpt import GPT, TrainConfig
from tinygpt.data.windows import IGNORED, BatchOrder, Windows
from tinygpt.training.metrics import MetricsFile, Result, bits_per_byte, measure, plot_loss
from tinygpt.training.step import train_step
from tinygpt.training.trainer import Trainer

TINY = tiny()


def trainer(config=None, model=TINY, **changes):
    config = config or TrainConfig(
        **{"steps": 30, "lr": 1e-2, "warmup_steps": 3, "micro_batch": 4, "eval_every": 10, "log_every": 5, **changes}
    )
    return Trainer(GPT(model, seed=config.seed), config, Windows(TOKENS, 8, 3), Windows(TOKENS[:100], 8))


def final_weights(t):
    return backend.to_host(t.optimizer.weight)


def test_training_learns_and_reports():
    t, reporter, checkpoints = trainer(), Notes(), []
    run = FunctionRecord(checkpoints.append)
    result = t.run(reporter, run)
    assert result.step == 30 and result.tokens_seen == 30 * 4 * 8
    assert result.first_loss_nats == pytest.approx(math.log(11), rel=0.05)
    assert result.best_validation_nats < 2.1 < result.first_loss_nats
    assert reporter.notes == [f"first loss {result.first_loss_nats:.3f} nats; a uniform guess among 11 costs ln 11 = 2.398"]
    assert [m.step for m in reporter.updates] == [1, 5, 10, 15, 20, 25, 30]
    assert [step for step, _, _ in reporter.evaluations] == [10, 20, 30] and len(checkpoints) == 3
    assert [line["step"] for line in run.lines if "loss_nats" in line] == [1, 5, 10, 15, 20, 25, 30]
    assert reporter.updates[-1].lr == pytest.approx(1e-3)  # a tenth of the peak


@pytest.mark.exact
def test_the_same_seed_gives_the_same_bits_another_one_does_not():
    runs = [trainer(seed=s) for s in (0, 0, 1)]
    for t in runs:
        t.run(Notes())
    assert np.array_equal(final_weights(runs[0]), final_weights(runs[1]))
    assert not np.array_equal(final_weights(runs[0]), final_weights(runs[2]))


def test_accumulation_equals_one_large_batch():
    small, large = trainer(micro_batch=2, tokens_per_update=64), trainer(micro_batch=8, tokens_per_update=64)
    assert (small.accumulation, large.accumulation) == (4, 1)
    losses = [[float(t.update()[0]) for _ in range(5)] for t in (small, large)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    np.testing.assert_allclose(final_weights(small), final_weights(large), atol=1e-4)


def test_only_matrices_decay():
    t = trainer()
    decayed = {name for name, p in t.optimizer.named[: len([1 for _, p in t.optimizer.named if p.ndim >= 2])]}
    assert decayed == {"wte.weight", "wpe.weight", *(f"h.0.{n}.weight" for n in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"))}


def test_evaluation_is_the_mean_over_tokens_and_leaves_the_mode():
    model, windows = GPT(TINY), Windows(TOKENS[:100], 8)
    inputs, targets = windows.batch(np.arange(len(windows)))
    whole = model.loss(inputs, targets).item()
    assert measure(model, windows, 5).nats == pytest.approx(whole, rel=1e-6)  # the last batch is smaller
    assert model.training
    some = windows.batch(BatchOrder(len(windows), 4, drop_last=False).epoch(0)[:8])
    assert measure(model, windows, 4, n_batches=2).nats == pytest.approx(model.loss(*some).item(), rel=1e-6)


def test_bits_per_byte_does_not_depend_on_the_tokenizer():
    # 1 nat per token at 4 bytes per token is 1 / (4 ln 2) bits per byte.
    assert bits_per_byte(1.0, 25, 100) == pytest.approx(1 / (4 * math.log(2)))


def test_a_warm_up_longer_than_training_is_noted_with_both_flags():
    notes = Notes()
    t = trainer(steps=4, warmup_steps=10)
    t.run(notes)
    assert notes.notes[0] == (
        "the learning rate never reaches --lr 0.01: --steps 4 end within --warmup-steps 10, at 0.004; lower --warmup-steps"
    )
    assert t.optimizer.lr == pytest.approx(0.004)
    assert TrainConfig(steps=10, warmup_steps=10).warmup_note() == ""  # the tenth update has the peak
    wsd = TrainConfig(steps=60, warmup_steps=50, lr=0.01, schedule="wsd")
    assert "--steps 60 begin to decay within --warmup-steps 50, at 0.0096; lower" in wsd.warmup_note()


def test_a_step_is_the_gradient_of_the_mean_over_all_targets_clipped():
    """Against one batch and the formulas of step.py; micro-batches with unequal numbers of targets."""
    rng = np.random.default_rng(0)
    ids, targets = rng.integers(0, 11, (2, 6, 8))
    targets[rng.random(targets.shape) < 0.4] = IGNORED
    model, one = GPT(TINY), GPT(TINY)
    one.loss(ids, targets).backward()
    norm = math.sqrt(sum(float((p.grad.astype(np.float64) ** 2).sum()) for p in one.parameters()))
    optimizer = AdamW(model, lr=0.0)
    loss, found = train_step(model, optimizer, [(ids[:1], targets[:1]), (ids[1:], targets[1:])], max_norm=norm / 2)
    assert float(loss) == pytest.approx(one.loss(ids, targets).item(), rel=1e-5) and float(found) == pytest.approx(norm, rel=1e-4)
    wanted = dict(one.named_parameters())
    for name, p in model.named_parameters():
        np.testing.assert_allclose(backend.to_host(p.grad), backend.to_host(wanted[name].grad), atol=1e-5)
    m = optimizer.state_dict()["m"]["wte.weight"]  # (1 - b1) times the clipped gradient: half of it
    np.testing.assert_allclose(backend.to_host(m), 0.1 * 0.5 * backend.to_host(wanted["wte.weight"].grad), atol=1e-6)


def test_metrics_are_one_json_object_per_line(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.write({"step": 1, "loss_nats": 2.5})
    file.write({"step": 2, "loss_nats": 2.25})
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


def test_the_loss_curve_is_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    result = Result(step=2, tokens_seen=100, seconds=60, train_curve=[(1, 3.0), (2, 2.0)], validation_curve=[(2, 2.1)])
    plot_loss(result, tmp_path / "loss.png", first_guess_nats=3.0, bigram_nats=2.5)
    picture = (tmp_path / "loss.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    result.accuracy_curve = [(1, 0.5, 0.4), (2, 1.0, 0.6)]
    plot_loss(result, tmp_path / "loss.png", first_guess_nats=math.log(2), unit="nats per text")
    width = [int.from_bytes(png[16:20], "big") for png in (picture, (tmp_path / "loss.png").read_bytes())]
    assert width[1] == 2 * width[0]  # a second panel
