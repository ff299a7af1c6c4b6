"""Instruction tuning: which tokens the loss counts, prompts, splits without copies, answers that end, and clear errors."""

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import autograd as ag
from autograd import backend
from tests.tinygpt.helpers import GEMMA, Notes
from tinygpt import GPT, GPTConfig, TrainConfig
from tinygpt.data.corpora import load_corpus
from tinygpt.data.download import DOWNLOADS
from tinygpt.data.tokenizer import BPETokenizer, CharacterTokenizer
from tinygpt.data.windows import IGNORED, count_targets
from tinygpt.finetuning.common import fit, n_trainable, set_trainable
from tinygpt.finetuning.instructions import (
    Encoded,
    Instruction,
    InstructionBatches,
    InstructionData,
    check_instructions,
    doc_questions,
    docstring_summary,
    encode_instructions,
    generate_answers,
    group_instructions,
    load_instructions,
    prompt,
    show_masked,
    split_instructions,
)
from tinygpt.training.metrics import measure
from tinygpt.training.trainer import Trainer

FOLDER = Path(__file__).parent.parent.parent.parent / "shared" / "data"
TOKENIZER = BPETokenizer.train("<|user|>\nsay a word<|end|>\n<|assistant|>\n" * 9 + "red blue green one two three", 300)
END = TOKENIZER.eos_id
TINY = GPTConfig(n_layer=2, n_head=2, n_embd=32, n_positions=48, vocab_size=TOKENIZER.n_vocab)
ROW = Instruction("Spell it.", "freind is friend", "freind", "record 1")


def encoded(rows, **options):
    return encode_instructions(rows, TOKENIZER, 400, **{"style": "phi3"} | options)


# ---- what the loss counts ----------------------------------------------------------------------------------------------------------------

sequences = st.lists(
    st.tuples(st.integers(1, 6), st.lists(st.integers(0, 9), max_size=6)).map(
        lambda pair: Encoded(np.array([7] * pair[0] + pair[1] + [0]), pair[0])  # the end token has id 0, which is also the padding
    ),
    min_size=1,
    max_size=6,
)


@given(some=sequences, mask_prompt=st.booleans())
def test_every_answer_and_end_token_is_a_target_once_and_nothing_else_is(some, mask_prompt):
    ids, targets = InstructionBatches(some, mask_prompt).batch(np.arange(len(some)))
    for sequence, row, target in zip(some, ids, targets, strict=True):
        n = len(sequence.ids)
        np.testing.assert_array_equal(row[: n - 1], sequence.ids[:-1])
        first = sequence.n_prompt if mask_prompt else 1
        np.testing.assert_array_equal(target[first - 1 : n - 1], sequence.ids[first:])  # the first answer token too, and the end
        assert (target[: first - 1] == IGNORED).all() and (target[n - 1 :] == IGNORED).all()
    assert count_targets((ids, targets)) == sum(len(s.ids) - (s.n_prompt if mask_prompt else 1) for s in some)


@settings(max_examples=15)
@given(some=sequences, seed=st.integers(0, 99))
def test_the_loss_is_the_same_in_any_company(some, seed):
    gpt = GPT(TINY, seed=seed)
    batches = InstructionBatches(some)
    alone = [batches.batch(np.array([i])) for i in range(len(some))]
    with ag.no_grad():
        together = gpt.loss(*batches.batch(np.arange(len(some)))).item()
        weighted = sum(gpt.loss(*batch).item() * count_targets(batch) for batch in alone) / sum(map(count_targets, alone))
    assert together == pytest.approx(weighted, rel=1e-5)


@pytest.mark.parametrize("lengths", [(1, 9, 3, 5), (2, 2, 2, 2)])
def test_micro_batches_weigh_as_much_as_they_have_targets(lengths):
    """One update from four micro-batches of one row changes the weights as one update from a batch of four."""
    rng = np.random.default_rng(0)
    some = [Encoded(rng.integers(0, 250, 4 + n), 4) for n in lengths]
    after = []
    for micro_batch in (4, 1):
        config = TrainConfig(steps=1, lr=1e-2, warmup_steps=0, micro_batch=micro_batch, tokens_per_update=4 * TINY.n_positions)
        trainer = Trainer(GPT(TINY, seed=1), config, InstructionBatches(some), None)
        trainer.update()
        after.append(backend.to_host(trainer.optimizer.gradient).copy())
    np.testing.assert_allclose(after[0], after[1], atol=1e-6)


def test_evaluation_weighs_by_targets():
    some = [Encoded(np.arange(3), 2), Encoded(np.arange(12), 2), Encoded(np.arange(20, 24), 1)]
    gpt, batches = GPT(TINY), InstructionBatches(some)
    with ag.no_grad():
        expected = gpt.loss(*batches.batch(np.arange(3))).item()
    for batch_size in (1, 2, 3):
        assert measure(gpt, batches, batch_size).nats == pytest.approx(expected, rel=1e-5)


def test_zero_trainable_tokens_are_an_error():
    with pytest.raises(ValueError, match=r"row 1: zero trainable tokens, expected at least one; all labels are masked"):
        InstructionBatches([Encoded(np.array([1, 2]), 1), Encoded(np.array([1, 2]), 2)])
    with pytest.raises(
        ValueError, match=r"record 1: a prompt of \d+ tokens, expected fewer than the 8 that are read, .* zero trainable tokens"
    ):
        encode_instructions([ROW], TOKENIZER, 8, style="phi3", truncate=True)


# ---- prompts and encoding ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spare", [0, 1, 2])
def test_what_can_be_trained_on_can_be_answered(spare):
    """The longest prompt that is accepted leaves room for an answer; a longer one is refused before anything is trained."""
    n_positions = len(TOKENIZER.encode(prompt(ROW, "phi3"))) + spare
    gpt = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, n_positions=n_positions, vocab_size=TOKENIZER.n_vocab))
    if spare:
        assert len(encode_instructions([ROW], TOKENIZER, n_positions, style="phi3", truncate=True)[0].ids) > n_positions - spare
        generate_answers(gpt, TOKENIZER, [ROW], style="phi3")
    else:
        with pytest.raises(ValueError, match="a prompt of"):
            encode_instructions([ROW], TOKENIZER, n_positions, style="phi3", truncate=True)


def test_prompts_with_and_without_input():
    plain = Instruction("Say hello.", "Hello")
    assert prompt(plain, "phi3") == "<|user|>\nSay hello.<|end|>\n<|assistant|>\n"
    assert prompt(ROW, "phi3") == "<|user|>\nSpell it.\nfreind<|end|>\n<|assistant|>\n"
    long = prompt(ROW, "alpaca")
    assert long.endswith("### Instruction:\nSpell it.\n\n### Input:\nfreind\n\n### Response:\n") and "paired with an input" in long
    assert "Input" not in prompt(plain, "alpaca") and "paired" not in prompt(plain, "alpaca")
    with pytest.raises(ValueError, match=r"prompt style: 'chat', expected one of alpaca, phi3"):
        prompt(ROW, "chat")


@pytest.mark.parametrize("style", ["alpaca", "phi3"])
def test_a_sequence_is_prompt_answer_and_end(style):
    (one,) = encoded([ROW], style=style)
    assert TOKENIZER.decode(one.ids[: one.n_prompt]) == prompt(ROW, style)
    assert TOKENIZER.decode(one.ids[one.n_prompt : -1]) == ROW.output and one.ids[-1] == END


def test_cutting_is_a_choice_and_counted():
    long = Instruction("Count.", "one two three " * 20, place="line 7")
    with pytest.raises(ValueError, match=r"line 7: \d+ tokens with the prompt, expected at most 49, .*--truncate"):
        encode_instructions([ROW, long], TOKENIZER, 48, style="phi3")
    with pytest.raises(ValueError, match=r"line 7: .*, as many as the context allows \(and 2 more rows\); shorten the row"):
        encode_instructions([ROW, long, ROW, long, long], TOKENIZER, 48, style="phi3")
    some = encode_instructions([ROW, long], TOKENIZER, 48, style="phi3", truncate=True)
    whole = encode_instructions([long], TOKENIZER, 400, style="phi3")[0]
    assert some[0].n_cut == 0 and len(some[1].ids) == 49 and len(some[1].ids) + some[1].n_cut == len(whole.ids)
    assert END not in some[1].ids and some[0].ids[-1] == END
    with pytest.raises(ValueError, match=r"tokenizer characters: no end token"):
        encode_instructions([ROW], CharacterTokenizer.train("abc"), 48)


def test_show_masked_says_what_counts():
    (one,) = encoded([ROW])
    parts = show_masked(one, TOKENIZER, n_padding=2)
    assert [(kind, counted) for kind, _, counted in parts] == [("prompt", False), ("answer", True), ("end", True), ("padding", False)]
    assert parts[0][1] == prompt(ROW, "phi3") and parts[1][1] == ROW.output and parts[2][1] == "<|endoftext|>"
    assert show_masked(one, TOKENIZER, mask_prompt=False)[0][2] and len(show_masked(one, TOKENIZER)) == 3


# ---- training and answering --------------------------------------------------------------------------------------------------------------

COLOURS = [Instruction(f"say {a} {b}", f"{b}") for a in ("red", "blue", "green", "one") for b in ("two", "three", "red", "blue")]


@pytest.fixture(scope="module", params=[{}, GEMMA], ids=["gpt2", "gemma3"])
def assistant(request):
    gpt = GPT(dataclasses.replace(TINY, **request.param), seed=3)
    batches = InstructionBatches(encoded(COLOURS))
    config = TrainConfig(
        steps=80, lr=1e-2, warmup_steps=5, micro_batch=4, tokens_per_update=16 * TINY.n_positions, eval_every=40, log_every=40
    )
    return gpt, fit(gpt, batches, batches, config, Notes())


def test_training_teaches_to_answer_and_to_stop(assistant):
    gpt, result = assistant
    assert result.first_loss_nats == pytest.approx(math.log(TINY.vocab_size), rel=0.02)  # random weights: a uniform guess
    assert generate_answers(gpt, TOKENIZER, COLOURS, style="phi3") == [row.output for row in COLOURS]


def test_answers_do_not_depend_on_company_and_respect_their_limits(assistant):
    gpt, _ = assistant
    together = generate_answers(gpt, TOKENIZER, COLOURS, style="phi3", batch_size=3)
    assert together == [generate_answers(gpt, TOKENIZER, [row], style="phi3")[0] for row in COLOURS]
    assert generate_answers(gpt, TOKENIZER, [], style="phi3") == []
    fresh = GPT(gpt.config, seed=3)
    (short,) = generate_answers(fresh, TOKENIZER, COLOURS[:1], style="phi3", max_new_tokens=2)
    assert len(TOKENIZER.encode(short)) <= 2
    full = generate_answers(fresh, TOKENIZER, COLOURS, style="phi3", max_new_tokens=10**6)  # each ends where the context is full
    for row, answer in zip(COLOURS, full, strict=True):
        ids = TOKENIZER.encode(prompt(row, "phi3"))
        made = fresh.generate([ids], TINY.n_positions - len(ids), temperature=0.0, eos_id=TOKENIZER.eos_id)[0, len(ids) :].tolist()
        ended = made.index(TOKENIZER.eos_id) if TOKENIZER.eos_id in made else len(made)
        assert answer == TOKENIZER.decode(made[:ended]).strip()
    with pytest.raises(ValueError, match=r"record 1: \d+ tokens, expected fewer than the context of 48"):
        generate_answers(fresh, TOKENIZER, [ROW], style="alpaca")


@pytest.mark.parametrize("which", ["last-block", "lora"])
def test_only_what_is_trainable_changes(which):
    gpt = GPT(TINY, seed=3)
    adapter = set_trainable(gpt, which)
    before = {name: backend.to_host(p.data).copy() for name, p in gpt.named_parameters()}
    trainable = {name for name, p in gpt.named_parameters() if p.requires_grad}
    assert n_trainable(gpt) == sum(before[name].size for name in trainable)
    batches = InstructionBatches(encoded(COLOURS))
    fit(gpt, batches, batches, TrainConfig(steps=3, lr=1e-2, micro_batch=4, eval_every=3), Notes())
    changed = {name for name, p in gpt.named_parameters() if not np.array_equal(backend.to_host(p.data), before[name])}
    assert changed and changed <= trainable
    assert all(("lora_" in name) if adapter else name.startswith(("h.1.", "ln_f.")) for name in trainable)
    with pytest.raises(ValueError, match=r"trainable: 'head', expected one of last-block, all, lora"):
        set_trainable(GPT(TINY), "head")


# ---- data --------------------------------------------------------------------------------------------------------------------------------


def test_an_input_may_be_null(tmp_path):
    rows = [{"instruction": f"do {i}", "input": None, "output": "done"} for i in range(3)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    assert [row.input for row in load_instructions(path).rows] == ["", "", ""]


def test_doc_questions_keep_validation_documents_for_the_test():
    data, corpus = doc_questions(), load_corpus("docs")
    assert len(data.rows) > 700 and len(data.held_out) > 60
    train, validation = ({document.name for document in side} for side in (corpus.train, corpus.validation))
    assert {row.place for row in data.rows} <= train and {row.place for row in data.held_out} <= validation
    told = [row.output.casefold() for row in data.rows + data.held_out]
    assert len(set(told)) == len(told)  # no test answer is a training answer
    row = next(row for row in data.rows + data.held_out if row.place == "numpy.argsort")
    assert (row.instruction, row.output) == ("What does numpy.argsort do?", "Returns the indices that would sort an array.")
    parts = split_instructions(data, seed=1)
    assert parts.test == data.held_out and len(parts.train) + len(parts.validation) == len(data.rows)


@pytest.mark.parametrize(
    ("text", "summary"),
    [
        ("add(x1, x2, /, out=None) -> y\n\nAdd arguments element-wise.\n\nParameters\n------", "Add arguments element-wise."),
        ("Return the sum. Also more.\n\nNotes", "Return the sum."),
        ("Return\nthe sum of `a`, e.g. of rows", "Return the sum of `a`, e.g. of rows"),
        (".. deprecated:: 2.0\n\nGive a copy.", "Give a copy."),
        ("lower case is no sentence", ""),
        ("Two words", ""),
        ("", ""),
    ],
)
def test_summaries_are_first_sentences(text, summary):
    from tinygpt.data.corpora import Document

    assert docstring_summary(Document("numpy.x", text, 0)) == summary and docstring_summary(Document("python.x", text, 0)) == ""


rows_ = st.lists(st.integers(0, 20).map(lambda n: Instruction(f"Do  {n}", "x", "In" if n % 2 else "")), min_size=24, max_size=60)


@given(rows=rows_.map(group_instructions), seed=st.integers(0, 99))
def test_rows_that_ask_the_same_stay_together(rows, seed):
    if len({row.group for row in rows}) < 3:
        return
    parts = split_instructions(InstructionData("x", rows, "x"), seed=seed)
    asked = [{(row.instruction, row.input) for row in part} for part in (parts.train, parts.validation, parts.test)]
    assert all(asked) and not (asked[0] & asked[1] or asked[0] & asked[2] or asked[1] & asked[2])
    assert sum(map(len, (parts.train, parts.validation, parts.test))) == len(rows)


@pytest.mark.skipif(not (FOLDER / DOWNLOADS["instructions"].file_name).is_file(), reason="needs instruction-data.json")
def test_the_named_set_is_split_935_55_110(monkeypatch):
    monkeypatch.setenv("TINYGPT_DATA", str(FOLDER))
    data = load_instructions("instructions")
    for seed in range(3):
        parts = split_instructions(data, seed=seed)
        assert [len(parts.train), len(parts.validation), len(parts.test)] == [935, 55, 110]
    assert "25 rows ask what an earlier one asks" in check_instructions(data.rows, [9] * 1100, 8)["duplicates"]


FORMATS = {
    "a.json": json.dumps([{"instruction": "Add.", "input": "1, 2", "output": "3"}, {"instruction": "Hi", "input": "", "output": "Hello"}]),
    "a.jsonl": '{"question": "Add.", "context": "1, 2", "answer": "3"}\n{"question": "Hi", "answer": "Hello"}\n',
    "a.csv": 'instruction,input,output\nAdd.,"1, 2",3\nHi,,Hello\n',
    "a.tsv": "Prompt\tInput\tResponse\nAdd.\t1, 2\t3\nHi\t\tHello\n",
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows(tmp_path, name):
    (tmp_path / name).write_text(FORMATS[name], encoding="utf-8")
    data = load_instructions(tmp_path / name)
    assert [(row.instruction, row.input, row.output) for row in data.rows] == [("Add.", "1, 2", "3"), ("Hi", "", "Hello")]
    assert any(note.startswith("columns guessed: instruction in ") for note in data.notes)


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.json", '[{"text": "a", "output": "b"}]', {}, "a.json: columns 'text', 'output', expected to recognize the instruction by its name"),
        ("a.csv", "instruction,output\na,b\n", {"output_column": "outptu"}, "no column 'outptu', expected one of 'instruction', 'output'; did"),
        ("a.json", '[{"instruction": "a", "output": 5}]', {}, "a.json: record 1: output is a int, expected a text"),
        ("a.json", '[{"instruction": "a", "output": " "}]', {}, "a.json: no row with instruction and answer, expected some"),
        ("a.jsonl", '{"instruction": "a", "output": "b"}\n{"x', {}, "a.jsonl: line 2: "),
    ],
)  # fmt: skip
def test_bad_files_are_named_with_row_field_and_problem(tmp_path, name, content, options, message):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(message)):
        load_instructions(tmp_path / name, **options)


def test_other_bad_input():
    with pytest.raises(FileNotFoundError, match=r"data 'doc-question': no such file, .*did you mean 'doc-questions'"):
        load_instructions("doc-question")
    two = InstructionData("x", group_instructions([Instruction("a", "b"), Instruction("c", "d")]), "x")
    with pytest.raises(ValueError, match=r"split: 2 different instructions, expected at least 3"):
        split_instructions(two)
    two.held_out = two.rows
    with pytest.raises(ValueError, match=r"expected three positive shares"):
        split_instructions(two, (1, 0, 0))


def test_what_was_left_out_and_what_repeats_is_counted(tmp_path):
    path = tmp_path / "a.json"
    rows = [{"instruction": "a", "output": "b"}, {"instruction": " A ", "output": "c"}, {"instruction": "x", "output": ""}]
    path.write_text(json.dumps(rows), encoding="utf-8")
    data = load_instructions(path)
    assert "1 rows without an instruction or an answer left out (record 3)" in data.notes
    lines = check_instructions(data.rows, [5, 12], 10)
    assert lines["duplicates"].startswith("1 rows ask") and "1 instructions have several" in lines["conflicts"]
    assert lines["lengths"].startswith("at most 12 tokens with the prompt; 1 rows are longer than the 10")
