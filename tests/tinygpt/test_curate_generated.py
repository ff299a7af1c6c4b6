"""Instructions made by a model: ROUGE-L as its own package counts it, what the rules remove, the same rows after a stop."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygpt import GPT, GPTConfig
from tinygpt.__main__ import main as command
from tinygpt.curate import generated
from tinygpt.curate.generated import Candidate, Filter, Writer, everyday, longest_common, parsed, rouge_l, words_of
from tinygpt.data.tokenizer import BPETokenizer
from tinygpt.finetuning.instructions import Instruction, load_instructions
from tinygpt.inference.sampling import Sampling

WORDS = st.lists(st.sampled_from("abcd"), max_size=12)


@given(a=WORDS, b=WORDS)
def test_the_longest_common_sequence_is_that_of_the_textbook(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    assert longest_common(a, b) == table[-1][-1] == longest_common(b, a)


def test_rouge_is_that_of_the_package():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=False)
    texts = [row.instruction for row in everyday()[:6]] + ["", "...", "Ünïcode naïve café 12", "don't stop 3.5%", "a a a b", "b a a a"]
    for one in texts:
        for other in texts:
            assert rouge_l(words_of(one), words_of(other)) == pytest.approx(scorer.score(one, other)["rougeL"].fmeasure)


def test_each_rule_says_what_it_found():
    keep = Filter([Instruction("Name three colors of the rainbow.", "Red, green and blue.")])
    for instruction, output, rule in (
        ("", "", "no row"),
        ("Say it now.", "It.", "length"),
        ("word " * 151, "Yes.", "length"),
        ("Describe what this picture shows.", "A dog.", "keyword"),
        ("Name three colors of a rainbow.", "Red.", "similar"),
        ("Repeat after me: good morning to you.", "good morning to you.", "repeats itself"),
        ("Explain how a thing works, please.", "it is it is it is it is it is it is it is it is it is it is", "max_"),
        ("How does a bird fly over the sea?", "It beats its wings.", ""),
        ("How does a bird fly over the lake?", "It beats its wings.", "similar"),  # as the one before
    ):
        found = keep(Candidate(0, instruction, output))
        assert found.rule.startswith(rule) and bool(found.rule) == bool(rule), found
    assert found.nearest == "How does a bird fly over the sea?" and found.similarity == found.value == 0.875 and found.limit == 0.7


def test_everyday_instructions_pass_their_own_filter():
    keep = Filter([])
    verdicts = [keep(Candidate(i, row.instruction, row.output)).rule for i, row in enumerate(everyday())]
    assert len(verdicts) == 16 and not any(verdicts)


def test_a_row_is_an_instruction_of_one_line_and_an_answer():
    assert parsed(" What is it?\nAnswer: A cat.\nIndeed. ") == ("What is it?", "A cat.\nIndeed.")
    for text in ("", " What is it?", "What\nis it?\nAnswer: a", "\nAnswer: a", "What?\nAnswer: "):
        assert parsed(text) == ("", "")


@pytest.fixture(scope="module")
def small():
    text = "".join(f"Instruction: {row.instruction}\nAnswer: {row.output}\n\n" for row in everyday())
    tokenizer = BPETokenizer.train([text], 400)
    return GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, n_positions=256, vocab_size=tokenizer.n_vocab), seed=0), tokenizer


@pytest.mark.parametrize("style", ["", "phi3", "alpaca"])
def test_prompts_end_where_a_row_begins_and_leave_room(small, style):
    writer = Writer(*small, Sampling(), 8, style)
    text = small[1].decode(writer.fitting(everyday()))
    wanted = {"": "\n\nInstruction:", "phi3": "<|endoftext|><|user|>\n", "alpaca": "### Instruction:\n"}[style]
    assert text.endswith(wanted) and len(writer.fitting(everyday())) + 8 <= 256
    assert len(writer.write([everyday()[:1], []], [1, 2])) == 2 and small[1].decode(writer.fitting([])) in text
    with pytest.raises(
        ValueError, match=r"seeds: a row of \d+ tokens and 250 new ones, expected both to fit into the context of 256; lower"
    ):
        Writer(*small, Sampling(), 250, style).fitting(everyday())
    long = Instruction("word " * 300, "long")
    assert writer.fitting([long, *everyday()[:2]]) == writer.fitting(everyday()[:1])  # too long a row is no reason to stop


class Scripted(Writer):
    """Writes rows that depend on what it was shown and on the seed."""

    def write(self, shown, seeds):
        names = "sun moon river stone wolf bread glass paper chair lamp".split()
        return [
            (
                f"Tell us about {names[seed % 10]} and {names[seed // 10 % 10]} {len(rows[0].output)} {seed % 7}?",
                f"They are {seed % 1000} steps apart.",
            )
            for rows, seed in zip(shown, seeds, strict=True)
        ]


def test_the_command_writes_rows_that_fine_tuning_reads_and_continues_where_it_stopped(small, tmp_path, monkeypatch, capsys):
    model, tokenizer = small
    model.save_pretrained(tmp_path / "model", tokenizer)
    monkeypatch.setattr(generated, "Writer", Scripted)
    flags = ["instruct", str(tmp_path / "model"), "--n", "30", "--similarity", "0.95"]
    command([*flags, "--output", str(tmp_path / "one.json")])
    shown = capsys.readouterr().out
    assert "kept" in shown and "most similar" in shown and "next: python examples/finetune_instructions.py --data" in shown
    rows = load_instructions(tmp_path / "one.json").rows
    assert len(rows) == 30 and rows[0].output.startswith("They are ")
    assert json.loads((tmp_path / "one.json").read_text(encoding="utf-8"))[0]["made_by"].endswith("model")

    log = (tmp_path / "one.json.candidates.jsonl").read_text(encoding="utf-8")
    lines = log.split("\n")
    for n in (0, 5, 17, 20, len(lines) - 2):  # stopped after so many lines, in the middle of one
        (tmp_path / "two.json.candidates.jsonl").write_text("\n".join(lines[:n]) + ("\n" + lines[n][:20] if n else ""), encoding="utf-8")
        command([*flags, "--output", str(tmp_path / "two.json")])
        assert (tmp_path / "two.json").read_bytes() == (tmp_path / "one.json").read_bytes()
        assert (tmp_path / "two.json.candidates.jsonl").read_text(encoding="utf-8") == log
    with pytest.raises(ValueError, match=r"one.json.candidates.jsonl: begun with other settings, expected candidates of the same model"):
        command([*flags, "--output", str(tmp_path / "one.json"), "--seed", "1"])


def test_a_model_that_knows_nothing_gives_nothing(small, tmp_path, monkeypatch, capsys):
    small[0].save_pretrained(tmp_path / "model", small[1])
    with pytest.raises(ValueError, match="shots: 0 with a model that is no assistant, expected at least 1; show it rows"):
        command(["instruct", str(tmp_path / "model"), "--shots", "0"])
    monkeypatch.setattr(generated, "MOST_PER_ROW", 8)
    command(["instruct", str(tmp_path / "model"), "--n", "2", "--max-new-tokens", "6", "--output", str(tmp_path / "none.json")])
    assert json.loads((tmp_path / "none.json").read_text(encoding="utf-8")) == []
    assert "no row     16  100.0%" in capsys.readouterr().out
