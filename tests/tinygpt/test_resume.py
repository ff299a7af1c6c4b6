"""Exact resume: a run that is stopped, saved and gone on with is the run that was never stopped, bit for bit."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autograd import backend
from tests.autograd.checks import numpy_only
from tests.tinygpt.helpers import GEMMA, TOKENS, Notes, checkpoint_directory, load_training, new_run, save_checkpoint, tiny
from tinygpt import GPT, TrainConfig
from tinygpt.config import PretrainConfig
from tinygpt.data.tokenizer import CharacterTokenizer
from tinygpt.data.windows import Windows
from tinygpt.finetuning.classifier import GPTClassifier, LabeledBatches
from tinygpt.inference.decoding import generate
from tinygpt.runs.run import Run
from tinygpt.runs.settings import check_changes, environment_changes
from tinygpt.storage.durable import Lock
from tinygpt.training.metrics import environment
from tinygpt.training.trainer import Trainer

pytestmark = pytest.mark.exact

ROOT = Path(__file__).parent.parent.parent
TOKENIZER = CharacterTokenizer.train("abcdefghijk")
SHAPE = tiny(dropout=0.2)


def trainer(seed=0, shape=SHAPE, **changes):
    config = {"lr": 1e-2, "warmup_steps": 3, "micro_batch": 2, "tokens_per_update": 48, "eval_every": 4, "log_every": 1, "seed": seed}
    return Trainer(GPT(shape, seed=seed), TrainConfig(**{**config, **changes}), Windows(TOKENS, 8, 3), Windows(TOKENS[:100], 8))


def modern(seed=0, **changes):
    return trainer(seed, tiny(dropout=0.2, **GEMMA), **changes)


def classifier(seed=0, **changes):
    rng = np.random.default_rng(1)
    items = LabeledBatches([rng.integers(0, 11, n) for n in rng.integers(1, 8, 40)], rng.integers(0, 2, 40))
    model = GPTClassifier(GPT(SHAPE, seed=seed), TOKENIZER, ["no", "yes"], seed=seed)
    config = {"lr": 1e-2, "warmup_steps": 3, "micro_batch": 4, "eval_every": 4, "log_every": 1, "seed": seed}
    return Trainer(model, TrainConfig(**{**config, **changes}), items, items)


def saver(run, t, **options):
    """(a run that is not yet trained on, its save(best))."""
    writer = Run(run, **options)
    writer.tokenizer = TOKENIZER
    return writer, lambda best: writer.save(t, best=best)


def train(run, t):
    notes = Notes()
    saver(run, t)[0].train(t, notes)
    return notes.losses


def state(t):
    o = t.optimizer
    arrays = [o.weight, *(a for named in o.state_arrays().values() for a in named.values())]
    return [backend.to_host(a).tobytes() for a in arrays] + [t.result.tokens_seen, t.result.best_validation_nats]


@pytest.mark.parametrize("make", [trainer, modern, classifier])
@settings(max_examples=8)
@given(n=st.integers(1, 11), seed=st.integers(0, 99))
def test_training_equals_training_a_part_resuming_and_training_the_rest(make, n, seed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    whole, part = make(seed, steps=12), make(seed, steps=12, stop_at=n)
    losses = train(new_run(folder / "whole", "x"), whole)
    run = new_run(folder / "parts", "x")
    first = train(run, part)
    rest = make(seed + 1, steps=12)  # other initial weights: all must come from the checkpoint
    load_training(checkpoint_directory(run, "last"), rest)
    assert rest.result.step == n
    second = train(run, rest)
    assert state(rest) == state(whole)
    assert {**first, **second} == losses
    if make is not classifier:
        ids = np.zeros((1, 1), int)
        np.testing.assert_array_equal(generate(rest.model, ids, 20, seed=3).ids, generate(whole.model, ids, 20, seed=3).ids)


@pytest.mark.parametrize("optimizer", ["muon", "sgd", "adam"])
def test_so_it_is_with_every_optimizer(optimizer, tmp_path):
    whole, part, rest = (trainer(seed, steps=10, optimizer=optimizer, stop_at=n) for seed, n in ((0, 0), (0, 6), (1, 0)))
    losses = train(new_run(tmp_path / "whole", "x"), whole)
    run = new_run(tmp_path / "parts", "x")
    first = train(run, part)
    load_training(checkpoint_directory(run, "last"), rest)
    assert {**first, **train(run, rest)} == losses and state(rest) == state(whole)


@pytest.mark.parametrize(("saved", "now"), [("muon", "adamw"), ("adamw", "muon"), ("sgd", "adam"), ("adam", "adamw")])
def test_a_checkpoint_of_another_optimizer_is_named(saved, now, tmp_path):
    run = new_run(tmp_path / "run", "x")
    train(run, trainer(steps=1, optimizer=saved))
    message = rf"training.safetensors: the state of the optimizer {saved}, expected that of {now}, which trains now; resume with --optimizer {saved}"
    with pytest.raises(ValueError, match=message):
        load_training(checkpoint_directory(run, "last"), trainer(optimizer=now))


def test_checkpoints_that_name_no_optimizer_are_adamws(tmp_path):
    run = new_run(tmp_path / "run", "x")
    train(run, trainer(steps=1))
    path = checkpoint_directory(run, "last") / "training.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    del fields["train"]["optimizer"]
    path.write_text(json.dumps(fields), encoding="utf-8")
    again = trainer()
    load_training(path.parent, again)
    assert again.result.step == 1
    path.write_text(json.dumps(fields | {"train": {"optimizer": 3}}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"training.json: train.optimizer is 3, expected a text; use another checkpoint"):
        load_training(path.parent, trainer())


def test_a_resumed_trainer_remembers_best_score_streams_and_notices(tmp_path):
    t = trainer(steps=9)
    run = new_run(tmp_path / "run", "x")
    train(run, t)
    again = trainer(steps=9)
    progress = load_training(checkpoint_directory(run, "last"), again)
    assert again.state_dict() | {"seconds": 0} == t.state_dict() | {"seconds": 0}
    assert progress["streams"]["dropout"]["draw"] == t.model.dropout_stream.counter > 0
    assert set(progress["streams"]) == {"init", "data_order", "dropout", "sampling"}
    assert again.result.best_step == t.result.best_step > 0


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("step",), -1, r"training.json: step is -1, expected an integer >= 0; use another checkpoint"),
        (("tokens_seen",), "many", r"tokens_seen is 'many', expected an integer"),
        (("streams",), [], r"streams.data_order.n_items is None, expected an integer"),
        (("streams", "dropout", "draw"), 1.5, r"streams.dropout.draw is 1.5, expected an integer"),
        (("best_validation_nats",), True, r"best_validation_nats is True, expected a finite number"),
        (("streams", "data_order", "n_items"), 7, r"saved with 7 items to learn from, expected 164 .* the data has changed"),
        (("n_steps",), None, r"n_steps is None, expected an integer"),
    ],
)
def test_wrong_values_in_the_training_state_are_named(tmp_path, keys, value, message):
    t = trainer(steps=2)
    run = new_run(tmp_path / "run", "x")
    train(run, t)
    path = checkpoint_directory(run, "last") / "training.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    place = fields
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_training(path.parent, trainer(steps=2))


def test_a_checkpoint_without_training_state_cannot_be_resumed(tmp_path):
    GPT(SHAPE).save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no training.json with training.safetensors, expected .* can be fine-tuned, not resumed"):
        load_training(tmp_path, trainer())


def test_another_environment_is_said_and_a_key_that_an_older_version_did_not_save_is_not():
    now = environment(1)
    assert environment_changes({"environment": now}, 1) == ""
    assert environment_changes({"environment": now | {"blas": "openblas 0.3 Haswell, threads 2"}}, 1) == (
        f"blas {now['blas']} (was openblas 0.3 Haswell, threads 2)"
    )
    assert environment_changes({"environment": {key: value for key, value in now.items() if key != "blas"}}, 1) == ""


def test_every_setting_is_free_or_with_override_or_fixed_and_both_values_are_named():
    config = PretrainConfig(model=SHAPE, train=TrainConfig())

    def other(**changes):
        return PretrainConfig(model=SHAPE, train=TrainConfig(**changes))

    check_changes(config, other(steps=7, log_every=3, keep=9))
    with pytest.raises(
        ValueError, match=r"resume: --lr 0.5, expected 0.001 as in the run \(or --override\); leave the flag out. May change"
    ):
        check_changes(config, other(lr=0.5))
    with pytest.raises(ValueError, match=r"--micro-batch 3, expected 16 as in the run; .* with --override: .*lr, "):
        check_changes(config, other(micro_batch=3))
    check_changes(config, PretrainConfig(model=SHAPE, train=TrainConfig(lr=0.5), override=True))
    with pytest.raises(ValueError, match=r"--seed 3, expected 0 as in the run"):
        check_changes(config, PretrainConfig(model=SHAPE, train=TrainConfig(seed=3), override=True))


# ---- the script --------------------------------------------------------------------------------------------------------------------------

FLAGS = (
    "--n-layer 1 --n-head 2 --n-embd 16 --n-positions 16 --vocab-size 300 --micro-batch 2 --tokens-per-update 64 --dropout 0.1 "
    "--eval-every 4 --eval-batches 2 --sample-tokens 8 --log-every 1 --warmup-steps 2"
).split()


def pretrain(folder, *argv, check=True, **environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AUTOGRAD_", "PYTEST_"))}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "pretrain.py"), *map(str, argv)],
        cwd=folder, env={**kept, "PYTHONPATH": str(ROOT), **environment}, capture_output=True, text=True, encoding="utf-8", timeout=120,
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    words = np.random.default_rng(0).choice(["the", "cat", "sat", "on", "a", "mat", "and", "looked\n"], 3000)
    path.write_text(" ".join(words), encoding="utf-8")
    return path


def curves(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(line["step"], line.get("loss_nats"), line.get("validation_nats"), line.get("gradient_norm")) for line in lines]


@numpy_only
def test_the_script_stops_resumes_and_refuses_what_contradicts_the_run(tmp_path, text):
    pretrain(tmp_path, *FLAGS, "--corpus", text, "--steps", 9, "--run", "whole")
    stopped = pretrain(tmp_path, *FLAGS, "--corpus", text, "--steps", 9, "--run", "parts", "--stop-at", 5)
    assert "interrupted: step 5 of 9 finished, saving" in stopped.stdout and "--resume parts" in stopped.stdout
    resumed = pretrain(tmp_path, "--resume", "parts")
    assert re.search(r"resume     from parts.checkpoints.step-00000005, step 5 of 9, 320 tokens seen", resumed.stdout)
    whole, parts = (checkpoint_directory(tmp_path / name, "last") for name in ("whole", "parts"))
    for name in ("model.safetensors", "training.safetensors"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()
    assert curves(tmp_path / "whole") == curves(tmp_path / "parts")
    sample = (tmp_path / "whole" / "samples.txt").read_text(encoding="utf-8")
    assert sample == (tmp_path / "parts" / "samples.txt").read_text(encoding="utf-8")

    refused = pretrain(tmp_path, "--resume", "parts", "--n-layer", 3, check=False)
    assert refused.returncode == 1 and "error: resume: --n-layer 3, expected 1 as in the run" in refused.stderr
    longer = pretrain(tmp_path, "--resume=parts", "--steps", 10)
    assert "step    10/10" in longer.stdout
    text_before = text.read_text(encoding="utf-8")
    text.write_text(text_before + "more", encoding="utf-8")
    changed = pretrain(tmp_path, "--resume", "parts", "--steps", 11, check=False)
    text.write_text(text_before, encoding="utf-8")
    assert changed.returncode == 1 and "as when the run began; the text has changed since" in changed.stderr
    missing = pretrain(tmp_path, "--resume", "nowhere", check=False)
    assert missing.returncode == 1 and "error: nowhere: no config.json, expected the directory of a run" in missing.stderr


@numpy_only
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to send")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_script_after_its_step_with_the_checkpoint_saved(tmp_path, text, number):
    command = [sys.executable, str(ROOT / "examples" / "pretrain.py"), *FLAGS, "--corpus", str(text), "--steps", "100000", "--run", "run"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AUTOGRAD_", "PYTEST_"))}
    process = subprocess.Popen(
        command, cwd=tmp_path, env={**kept, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.startswith("step") and "/100000  loss" in line:
            break
    # While it trains, nobody else may write to its directory.
    with pytest.raises(
        BlockingIOError, match=rf"in use by process {process.pid} on .*, expected one writer at a time; wait for it or stop"
    ):
        Lock(tmp_path / "run").acquire()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    step = int(re.search(r"interrupted: step (\d+) of 100000 finished, saving", out)[1])
    assert checkpoint_directory(tmp_path / "run", "last").name == f"step-{step:08d}"
    with Lock(tmp_path / "run"):
        pass  # free again


def test_a_second_signal_stops_at_once():
    t = trainer(steps=1000)

    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    t.gradients = twice
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        t.run(Notes())
    assert signal.getsignal(signal.SIGINT) is before


def test_checkpoints_of_one_step_never_replace_each_other(tmp_path):
    run = new_run(tmp_path / "run", "x")
    t = trainer()
    names = [save_checkpoint(run, 5, t.model, t.optimizer, TOKENIZER, t.state_dict(), best=False, keep=3).name for _ in range(4)]
    assert names == ["step-00000005", "step-00000005-2", "step-00000005-3", "step-00000005-4"]
    assert checkpoint_directory(run, "last").name == names[-1]
    assert sorted(p.name for p in (run / "checkpoints").glob("step-*")) == names[1:]
