"""What the fine-tuning scripts share: from epochs to updates, the report, the prompt."""

import builtins
import json
import os
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygpt.cli import Progress, Report, prompt_lines
from tinygpt.data.tokenizer import CharacterTokenizer
from tinygpt.finetuning.common import FinetuneConfig, length_limit, open_run, pretrain_small, shorten, training_plan
from tinygpt.runs.layout import is_pretraining_run


@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 300), st.integers(1, 5), st.integers(0, 99))
def test_the_plan_holds_whole_batches_and_two_evaluations_per_epoch(micro_batch, accumulation, extra_rows, epochs, warmup_steps):
    batch = micro_batch * accumulation
    n_rows = batch + extra_rows
    plan = training_plan(FinetuneConfig(epochs=epochs, warmup_steps=warmup_steps), n_rows, batch, micro_batch, n_positions=7)
    assert plan.accumulation(7) == accumulation
    per_epoch = plan.steps // epochs
    assert plan.steps % epochs == 0 and n_rows - batch < per_epoch * batch <= n_rows
    assert plan.eval_every * 2 - per_epoch in (0, 1)
    assert plan.warmup_steps <= warmup_steps and 2 * plan.warmup_steps <= plan.steps


def test_the_length_that_is_read_is_the_context_the_longest_training_text_or_a_number():
    def limit(max_length, lengths, **more):
        return length_limit(FinetuneConfig(max_length=max_length, **more), 12, lengths)

    assert limit("context", [3, 9]) == (12, False) and limit("context", [3, 9], truncate=True) == (12, True)
    assert limit("longest-training", [3, 9, 4]) == (9, True) and limit("longest-training", [12]) == (12, True)
    assert limit("longest-training", [3, 13]) == (12, False)  # an error, as without the flag
    assert limit("longest-training", [3, 13], truncate=True) == (12, True)
    assert limit("5", [3, 9]) == (5, True) and limit("12", [3]) == (12, True)
    with pytest.raises(ValueError, match="max_length: 13, expected at most 12, as the model's context allows"):
        limit("13", [3])
    for wrong in ("0", "longest", "-1", "1.5", ""):
        with pytest.raises(ValueError, match=f"max_length: {wrong!r}, expected a number of tokens, longest-training or context"):
            FinetuneConfig(max_length=wrong)


def test_a_run_notes_its_settings_and_what_it_started_from(tmp_path):
    config = FinetuneConfig(data="some/mine.csv", run=str(tmp_path / "out"), lr=0.25)
    tokenizer = CharacterTokenizer.train("ab")
    run = open_run(config, "runs/docs-001/checkpoints/step-00000009", tokenizer, None, "0" * 64, labels=["a", "b"])
    record = json.loads((run.path / "config.json").read_text(encoding="utf-8"))
    assert run.path == tmp_path / "out" and (record["lr"], record["labels"]) == (0.25, ["a", "b"])
    assert record["base"] == "runs/docs-001/checkpoints/step-00000009"
    assert not is_pretraining_run(run.path)


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"epochs": 0}, {"patience": -1}, {"seed": -1}, {"warmup_steps": -2}, {"lr": -1.0}])
def test_settings_that_make_no_sense_are_named(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name}:? {value}.*expected"):
        training_plan(FinetuneConfig(**wrong), n_rows=32, batch=16, micro_batch=4, n_positions=7)


@given(st.text(), st.integers(5, 40))
def test_a_shortened_text_is_one_line_of_at_most_n_characters(text, n):
    short, flat = shorten(text, n), " ".join(text.split())
    assert len(short) <= n and "\n" not in short and flat.startswith(short.removesuffix(" ...").rstrip())
    assert len(flat) > n or short == flat


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_pretraining_that_is_interrupted_leaves_no_base(tmp_path, monkeypatch, number):
    """Or every later fine-tuning would start from it."""
    monkeypatch.chdir(tmp_path)
    progress = Progress(500)
    monkeypatch.setattr(progress, "update", lambda metrics: os.kill(os.getpid(), number))
    with pytest.raises(KeyboardInterrupt):
        pretrain_small(500, progress)
    assert not list(tmp_path.glob("runs/*"))


def test_a_report_is_printed_and_kept(tmp_path, capsys):
    report = Report()
    report.say("one")
    report.say("two\nlines")
    report.write(tmp_path / "report.txt")
    assert capsys.readouterr().out == "\none\n\ntwo\nlines\n"
    assert (tmp_path / "report.txt").read_text(encoding="utf-8") == "one\n\ntwo\nlines\n"


def test_typing_ends_at_an_empty_line_or_the_end_of_the_input(monkeypatch):
    def type_in(*lines):
        rest = iter(lines)

        def read(prompt):
            try:
                return next(rest)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr(builtins, "input", read)
        return list(prompt_lines())

    assert type_in(" a ", "b", "  ", "c") == ["a", "b"]
    assert type_in("a") == ["a"]
