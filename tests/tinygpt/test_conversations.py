"""Conversations: rows in three forms, whose turn it is, which tokens the loss counts, and a chat that remembers."""

import importlib.util
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tinygpt.helpers import Notes, new_run
from tinygpt import GPT, GPTConfig, TrainConfig
from tinygpt.__main__ import main as tinygpt
from tinygpt.data.chat_templates import Message, chat_template, check_turns, prompt_ids
from tinygpt.data.jinja_templates import keep_template, saved_template
from tinygpt.data.tokenizer import BPETokenizer, CharacterTokenizer
from tinygpt.data.windows import IGNORED
from tinygpt.finetuning.conversations import (
    Answered,
    Conversation,
    answer_turns,
    doc_conversations,
    encode_conversations,
    exact_matches,
    load_conversations,
    parameters,
    show_turns,
    split_conversations,
)
from tinygpt.finetuning.masked import MaskedBatches
from tinygpt.inference.chat import Chat
from tinygpt.inference.decoding import TokenInfo
from tinygpt.inference.sampling import Sampling
from tinygpt.training.trainer import Trainer
from tinygpt.weights.pretrained import save_pretrained

ROOT = Path(__file__).parent.parent.parent
TOKENIZER = BPETokenizer.train("User:\nWhat is it?\nAssistant:\nA word.\nSystem:\nBe brief.\n" * 9 + "red blue green one two three", 320)
PLAIN = chat_template("plain", TOKENIZER)
TINY = GPTConfig(n_layer=1, n_head=2, n_embd=16, n_positions=64, vocab_size=TOKENIZER.n_vocab)
TEMPLATES = {name: chat_template(name, TOKENIZER) for name in ("plain", "chatml", "llama3")}
words = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=9).filter(str.strip)


def turns(*texts, system=""):
    first = [Message("system", system)] if system else []
    return [*first, *(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts))]


conversations = st.tuples(st.sampled_from(["", "Be brief."]), st.lists(st.tuples(words, words), min_size=1, max_size=4)).map(
    lambda drawn: turns(*(text for pair in drawn[1] for text in pair), system=drawn[0])
)

# ---- rows --------------------------------------------------------------------------------------------------------------------------------

OPENAI = {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}
SHAREGPT = {"conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}
ALPACA = {"instruction": "Q", "output": "A", "system": "S"}


def load(tmp_path, *rows, name="rows.jsonl"):
    path = tmp_path / name
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return load_conversations(path)


def test_three_forms_are_told_apart_and_are_the_same(tmp_path):
    data = load(tmp_path, OPENAI, SHAREGPT, ALPACA)
    assert all(row.messages == tuple(turns("Q", "A", system="S")) for row in data.rows)
    assert "form of the rows: 1 in OpenAI's, 1 in ShareGPT's, 1 in Alpaca's" in data.notes
    assert [row.place for row in data.rows] == ["line 1", "line 2", "line 3"] and len({row.group for row in data.rows}) == 1


def test_fields_of_each_form(tmp_path):
    parts = {"messages": [{"role": "user", "content": [{"type": "text", "text": "Q"}]}, {"role": "assistant", "content": "A", "name": "x"}]}
    history = {"instruction": "Q2", "input": "given", "output": "A2", "history": [["Q", "A"]]}
    mixed = {"conversations": [{"role": "user", "content": "Q"}, {"from": "gpt", "value": "A"}]}
    found = [row.messages for row in load(tmp_path, parts, history, mixed).rows]
    assert found == [tuple(turns("Q", "A")), tuple(turns("Q", "A", "Q2\ngiven", "A2")), tuple(turns("Q", "A"))]
    (tmp_path / "rows.csv").write_text("instruction,input,output\nQ,,A\n", encoding="utf-8")
    assert load_conversations(tmp_path / "rows.csv").rows[0].messages == tuple(turns("Q", "A"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": OPENAI["messages"][2:]}, "turn 1: begins with the assistant, expected the user; remove the turn"),
        ({"messages": [OPENAI["messages"][i] for i in (1, 1, 2)]}, "turn 2: the user speaks twice in a row, expected the assistant; join"),
        ({"messages": [OPENAI["messages"][i] for i in (0, 1, 2, 2)]}, "turn 4: the assistant speaks twice in a row, expected the user"),
        ({"messages": [OPENAI["messages"][i] for i in (1, 0)]}, "turn 2: a system message, expected it first or nowhere"),
        ({"messages": OPENAI["messages"][:2]}, "turn 2: the last is the user's, expected the assistant's; add it"),
        ({"messages": OPENAI["messages"][:1]}, "turn 1: the last is the system's, expected the assistant's"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "turn 1: role 'tool', expected one of human, gpt, user, assistant, system"),
        ({"conversations": [{"from": ["x"], "value": "x"}]}, r"turn 1: from \['x'\], expected one of human"),
        ({"conversations": [{"from": "human", "value": " "}]}, "turn 1: value is empty, expected a text"),
        ({"messages": [{"role": "user", "content": None}]}, "turn 1: content is None, expected a text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "turn 1: content is .*image_url.*, expected a text"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "turn 1: content holds a lone surrogate"),
        ({"messages": [{"role": "user"}]}, "turn 1: 'role', expected role and content, or from and value"),
        ({"messages": ["hello"]}, "turn 1: 'hello', expected role and content"),
        ({"messages": []}, r"messages is \[\], expected a list of turns"),
        ({"messages": "Q"}, "messages is 'Q', expected a list of turns"),
        ({"question": "Q", "answer": "A"}, r"fields 'question', 'answer', expected messages \(OpenAI\), conversations"),
        ({"instruction": "Q"}, "output is None, expected a text"),
        ({"instruction": "Q", "output": "A", "history": [["x"]]}, r"history is \[\['x'\]\], expected a list of \[question, answer\]"),
        ({"instruction": "Q", "output": "A", "history": [["x", ""]]}, "answer 1 of history is empty, expected a text"),
    ],
)
def test_a_row_that_is_no_conversation_is_named_with_file_row_and_turn(tmp_path, row, message):
    with pytest.raises(ValueError, match=rf"rows\.jsonl: line 2: {message}"):
        load(tmp_path, OPENAI, row)


def test_turns_out_of_order():
    check_turns(turns("Q", "A", "Q", system="S"))
    check_turns(turns("Q", "A"), complete=True)
    with pytest.raises(ValueError, match="conversation: no turns, expected the user's"):
        check_turns([])
    with pytest.raises(ValueError, match="turn 1: role 'asistant', expected system, user or assistant; did you mean 'assistant'"):
        check_turns([Message("asistant", "Q")])


def test_the_default_rows_ask_what_only_the_conversation_answers():
    data = doc_conversations()
    parts = split_conversations(data, (0.9, 0.05, 0.05), seed=1)
    assert len(parts.train) > 1200 and len(parts.test) > 150 and not {r.group for r in parts.train} & {r.group for r in parts.validation}
    assert {row.place.partition(",")[0] for row in parts.test}.isdisjoint(row.place.partition(",")[0] for row in parts.train)
    asked = set()
    for row in data.rows + data.held_out:
        check_turns(row.messages, complete=True)
        first, answer = (message.content for message in row.messages[:2])
        kind, call = re.fullmatch(r"(What does|How many parameters does) numpy[\w.]+\((.+)\) (?:do\?|name\?)", first).groups()
        names = call.split(", ")
        known = dict(zip(("first", "second", "third"), names, strict=False)) | {"last": names[-1]}
        assert kind == "What does" or answer == str(len(names))
        for question, answer in ((row.messages[i].content, row.messages[i + 1].content) for i in range(2, len(row.messages), 2)):
            assert answer == known[re.fullmatch(r"And its (\w+) parameter\?", question)[1]]
            asked.add(question)
    assert len(asked) == 4


def test_parameters_of_a_docstring():
    section = "Parameters\n----------\n"
    assert parameters(f"Sort.\n\n{section}x1, x2 : array\n    Of that.\n\n    More, here: and there\nout: int\n*args\n    Any.\n\nReturns\n-------\ny : int") == [
        "x1", "x2", "out",
    ]  # fmt: skip
    assert parameters("Nothing.") == [] and parameters(f"{section}a, ... : int\n") == []


def test_too_few_conversations(tmp_path):
    with pytest.raises(ValueError, match="split: 1 different conversations, expected at least 3, one for each part; add rows"):
        split_conversations(load(tmp_path, OPENAI, SHAREGPT))


# ---- what the loss counts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=40)
@given(messages=conversations)
def test_the_loss_counts_each_of_the_assistants_texts_and_ends_and_nothing_else(name, messages):
    template = TEMPLATES[name]
    (sequence,) = encode_conversations([Conversation(tuple(messages))], TOKENIZER, template, 10**6)
    masked, said = sequence.masked, [m.content.strip() for m in messages if m.role == "assistant"]
    pieces = np.split(masked.ids, np.flatnonzero(np.diff(masked.counted)) + 1)
    assert [TOKENIZER.decode(piece) for piece in pieces[1::2]] == [text + template.stop for text in said]
    assert TOKENIZER.decode(masked.ids) == template.text(messages).removesuffix("\n" if name != "llama3" else "")
    ids, targets = MaskedBatches([masked, masked]).batch(np.array([0, 1]))
    np.testing.assert_array_equal(targets[0], np.where(masked.counted[1:], masked.ids[1:], IGNORED))
    np.testing.assert_array_equal(ids[1], masked.ids[:-1])
    assert [text for kind, text, counted in show_turns(sequence) if counted and kind == "assistant"] == said
    # The prompt of each reply is what training shows before it, token by token.
    for i, message in enumerate(messages):
        if message.role == "assistant":
            prompt = prompt_ids(template, messages[:i], TOKENIZER)
            np.testing.assert_array_equal(masked.ids[: len(prompt)], prompt)


def test_text_never_becomes_an_end_token():
    (sequence,) = encode_conversations([Conversation(tuple(turns("<|endoftext|>", "A <|endoftext|>")))], TOKENIZER, PLAIN, 999)
    assert (sequence.masked.ids == TOKENIZER.eos_id).sum() == 1


def test_exchanges_that_do_not_fit_are_left_out_at_the_end():
    row = Conversation(tuple(turns("Q1", "A1", "Q2", "A2", "Q3", "A3", system="S")), "line 5")
    (whole,) = encode_conversations([row], TOKENIZER, PLAIN, 999)
    (shorter,) = encode_conversations([row], TOKENIZER, PLAIN, whole.n_tokens - 2, truncate=True)
    assert shorter.n_left_out == 1 and [p.text for p in shorter.parts if p.kind == "assistant"] == ["A1", "A2"]
    (same,) = encode_conversations([row], TOKENIZER, PLAIN, whole.n_tokens - 1)  # the last token is only predicted
    assert same.n_left_out == 0
    with pytest.raises(ValueError, match=r"line 5: \d+ tokens in 7 turns, expected at most \d+, .* with --truncate"):
        encode_conversations([row], TOKENIZER, PLAIN, whole.n_tokens - 2)
    long = Conversation(tuple(turns("word " * 90, "A")))
    assert len(encode_conversations([long, row], TOKENIZER, PLAIN, 80, truncate=True)) == 1
    with pytest.raises(ValueError, match="conversations: none whose first exchange fits into 21 tokens"):
        encode_conversations([long], TOKENIZER, PLAIN, 20, truncate=True)


def test_templates_that_do_not_exist_or_cannot_end():
    with pytest.raises(ValueError, match="chat template: 'chatmel', expected one of plain, chatml, llama3; did you mean 'chatml'"):
        chat_template("chatmel", TOKENIZER)
    with pytest.raises(ValueError, match="tokenizer characters: no end token, expected one to end answers with"):
        chat_template("plain", CharacterTokenizer.train("abc"))


# ---- a chat ------------------------------------------------------------------------------------------------------------------------------


def a_chat(template=PLAIN, n_positions=64, **options):
    return Chat(GPT(GPTConfig(**{**vars(TINY), "n_positions": n_positions}), seed=3), TOKENIZER, template, **{"max_tokens": 5} | options)


def text_of(pieces):
    return "".join(piece.text for piece in pieces)


def test_a_chat_remembers_streams_and_generates_again():
    chat = a_chat(alternatives=3, seed=4)
    pieces = list(chat.reply("What is it?"))
    assert chat.messages == turns("What is it?", text_of(pieces).strip()) and chat.stop_reason in ("length", "end")
    tokens = [piece for piece in pieces if piece.id >= 0]
    assert all(0 < piece.probability <= 1 and len(piece.alternatives) == 3 for piece in tokens) and len(tokens) <= 5
    before = chat.n_context
    assert before == len(prompt_ids(PLAIN, chat.messages[:1], TOKENIZER))
    second = text_of(chat.reply("And now?")).strip()
    assert (
        chat.messages[2:] == turns("And now?", second) and chat.n_context == len(prompt_ids(PLAIN, chat.messages[:3], TOKENIZER)) > before
    )
    others = {text_of(chat.regenerate()).strip() for _ in range(4)}
    assert len(others) > 1 and len(chat.messages) == 4 and chat.messages[:3] == [*turns("What is it?", text_of(pieces).strip(), "And now?")]
    again = a_chat(seed=4)
    assert text_of(again.reply("What is it?")) == text_of(pieces)  # the seed decides
    greedy = a_chat(sampling=Sampling(temperature=0))
    assert text_of(greedy.reply("What is it?")) == text_of(greedy.regenerate())


@settings(max_examples=25)
@given(texts=st.lists(words, min_size=1, max_size=12), system=st.sampled_from(["", "Be brief."]), n_positions=st.integers(40, 80))
def test_the_context_is_trimmed_by_complete_exchanges_and_the_system_prompt_stays(texts, system, n_positions):
    chat = a_chat(n_positions=n_positions, system=system, max_tokens=4)
    history = [message for text in texts[:-1] for message in turns(text, "word " * (len(text) % 4 + 1))]
    ids, n = chat.fit([*history, Message("user", texts[-1])])
    first = [Message("system", system)] if system else []
    kept = [*first, *history[n:], Message("user", texts[-1])]
    assert n % 2 == 0 and ids == prompt_ids(PLAIN, kept, TOKENIZER) and len(ids) + 4 <= n_positions
    if n:  # one exchange more would not have fitted
        assert len(prompt_ids(PLAIN, [*first, *history[n - 2 :], Message("user", texts[-1])], TOKENIZER)) + 4 > n_positions


def test_a_turn_that_does_not_fit_or_says_nothing_changes_nothing():
    chat = a_chat(n_positions=32, system="Be brief.")
    list(chat.reply("What is it?"))
    before = chat.messages
    with pytest.raises(
        ValueError, match=r"chat: \d+ tokens in the last turn with the system prompt, expected at most 27 of the context's 32"
    ):
        chat.reply("red blue green " * 20)
    with pytest.raises(ValueError, match="chat: a turn without text, expected some"):
        chat.reply(" \n")
    assert chat.messages == before
    with pytest.raises(ValueError, match="regenerate: no reply yet"):
        a_chat().regenerate()
    with pytest.raises(ValueError, match="max_tokens: 0, expected at least 1"):
        a_chat(max_tokens=0)


def test_a_reply_that_is_broken_off_keeps_what_was_said():
    chat = a_chat(max_tokens=30)
    pieces = chat.reply("What is it?")
    said = ""
    while not said.strip():
        said += next(pieces).text
    pieces.close()
    assert chat.messages == turns("What is it?", said.strip()) and chat.stop_reason == "stopped"
    unread = chat.reply("And now?")
    unread.close()
    assert len(chat.messages) == 2


class Scripted:
    """In place of a `TokenIterator`: says a text, whatever it is asked."""

    def __init__(self, ids):
        self.ids, self.infos = ids, [[]]

    def __iter__(self):
        for id in self.ids:
            self.infos[0].append(TokenInfo(id, -1.0))
            yield np.array([id])


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_reply_ends_at_the_templates_end_of_turn(name, monkeypatch):
    """At a token or, where the tokenizer has none, at the text of the mark; a text that only begins like the mark is kept."""
    template = TEMPLATES[name]
    said = TOKENIZER.encode(f"A <|im_ word.{template.stop}\nUser: more", allow_special=True)
    monkeypatch.setattr("tinygpt.inference.chat.TokenIterator", lambda *_, **options: Scripted(said))
    chat = a_chat(template, n_positions=400)
    assert text_of(chat.reply("What is it?")) == "A <|im_ word." and chat.stop_reason == "end"
    monkeypatch.setattr("tinygpt.inference.chat.TokenIterator", lambda *_, **options: Scripted(TOKENIZER.encode("A <|im")))
    pieces = list(chat.reply("And now?"))
    assert text_of(pieces) == "A <|im" == chat.messages[-1].content and chat.stop_reason == "length"


def test_a_model_that_learned_two_answers_gives_both_in_turn():
    model = GPT(GPTConfig(**{**vars(TINY), "n_positions": 80}), seed=0)
    rows = [Conversation(tuple(turns("What is it?", "A word.", "And now?", "red")))]
    batches = MaskedBatches([s.masked for s in encode_conversations(rows, TOKENIZER, PLAIN, 80)])
    config = TrainConfig(steps=50, lr=2e-2, warmup_steps=2, micro_batch=1, tokens_per_update=80, eval_every=50)
    Trainer(model, config, batches, batches).run(Notes())
    chat = Chat(model, TOKENIZER, PLAIN, sampling=Sampling(temperature=0), max_tokens=20)
    assert text_of(chat.reply("What is it?")).strip() == "A word." and chat.stop_reason == "end"
    assert text_of(chat.reply("And now?")).strip() == "red" and chat.stop_reason == "end"
    answers = answer_turns(model, TOKENIZER, PLAIN, rows)
    assert [answer.said for answer in answers] == ["A word.", "red"] and exact_matches(answers) == {
        "first answers": (1, 1),
        "follow-ups": (1, 1),
    }
    assert not Answered(1, "?", "red", "blue").exact and Answered(1, "?", "red ", "Red").exact
    assert [answer.question for answer in answer_turns(model, TOKENIZER, PLAIN, rows, history=False)] == ["What is it?", "And now?"]


# ---- the command ---------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    run = new_run(tmp_path / "runs" / "chat-001", "rows")
    tokenizer = BPETokenizer(TOKENIZER.merges)
    keep_template(tokenizer, PLAIN)
    save_pretrained(GPT(TINY, seed=3), run / "checkpoints" / "step-00000001", tokenizer)
    for pointer in ("last", "best"):
        (run / "checkpoints" / pointer).write_text("step-00000001\n", encoding="utf-8")
    return run


def typed(monkeypatch, capsys, lines, *flags):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    tinygpt(["chat", *map(str, flags)])
    return capsys.readouterr()


def test_the_command_chats_from_a_run(run, monkeypatch, capsys):
    lines = ["What is it?", "/again", "/agian", "/help", "/system Be brief.", "What is it?", "word " * 60, "/new", *(["one two three"] * 5)]
    out, err = typed(monkeypatch, capsys, lines, run, "--max-tokens", 8, "--seed", 1)
    for part in (
        "template plain", "error: /agian: no such command, expected one of /again", "did you mean '/again'?", "/new     forget",
        "[system prompt set; a new conversation]", "error: chat: ", "expected at most", "[a new conversation]",
        "[the context is full: left out the first exchange]", "[the context is full: left out the first 2 exchanges]",
    ):  # fmt: skip
        assert part in err
    assert out.strip() and "[a new" not in out  # replies alone
    out, err = typed(monkeypatch, capsys, ["/again", "What is it?", "/again"], run, "--temperature", 0)
    assert "error: regenerate: no reply yet" in err and "[at temperature 0 each reply to the same turns is the same]" in err


def test_a_model_without_a_template_needs_one_named(tmp_path, monkeypatch, capsys):
    save_pretrained(GPT(TINY), tmp_path / "base", BPETokenizer(TOKENIZER.merges))
    with pytest.raises(FileNotFoundError, match="no chat template, expected a model that has learned conversations; train it with python"):
        typed(monkeypatch, capsys, [], tmp_path / "base")
    assert "template chatml" in typed(monkeypatch, capsys, ["What is it?"], tmp_path / "base", "--template", "chatml").err
    with pytest.raises((ValueError, SystemExit)):
        typed(monkeypatch, capsys, [], tmp_path / "base", "--max-tokens", 0)


def test_the_newest_run_that_chats_is_found(run, tmp_path, monkeypatch, capsys):
    other = new_run(tmp_path / "runs" / "docs-001", "docs")
    save_pretrained(GPT(TINY), other / "checkpoints" / "step-00000001", BPETokenizer(TOKENIZER.merges))
    (other / "checkpoints" / "last").write_text("step-00000001\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert "chat-001" in typed(monkeypatch, capsys, []).err


def test_without_its_library_a_foreign_template_says_what_to_install(run, monkeypatch):
    tokenizer = BPETokenizer(TOKENIZER.merges)
    tokenizer.kept = {"chat_template.jinja": b"{{ messages }}"}
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    monkeypatch.setitem(__import__("sys").modules, "jinja2.sandbox", None)
    with pytest.raises(ImportError, match=r'jinja2 is not installed, expected .*; pip install "tinygpt\[chat\]", or choose --template'):
        saved_template(tokenizer)
    keep_template(tokenizer, PLAIN)
    assert saved_template(tokenizer) == PLAIN  # ours needs nothing


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_chat", ROOT / "benchmarks" / "chat.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark_chat"] = module  # where its dataclass is looked for
    spec.loader.exec_module(module)
    return module


def test_the_benchmark_counts_by_kind_of_question(benchmark):
    ask = "How many parameters does f({}) name?"
    rows = [Conversation(tuple(turns(ask.format(names), "2", "And its last parameter?", names[-1]))) for names in ("a, b", "b, c", "x, b")]
    perfect = [Answered(i, before[-1].content, said, said) for row in rows for i, (before, said) in enumerate(row.prompts())]
    summary = [Answered(0, "What does f(a) do?", "Sort an array.", "Sort a list.")]
    found = benchmark.shares(perfect + summary, rows[:1])
    assert found["count"] == found["follow-up"] == found["last"] == 1 and found["summary"] == 0 and 0 < found["summary F1"] < 1
    frequent = benchmark.shares(benchmark.most_frequent(rows, rows) + summary, rows[:1])
    assert frequent["count"] == 1 and frequent["last"] == pytest.approx(2 / 3) and frequent["known name"] == 1 and frequent["new name"] == 0
    assert benchmark.spread([0.4, 0.5, 0.6]) == {"mean": pytest.approx(0.5), "half": pytest.approx(4.303 * 0.1 / 3**0.5)}
    chat = a_chat(n_positions=200, sampling=Sampling(temperature=0))
    own = benchmark.own_history(chat, rows)
    assert [answer.expected for answer in own] == [answer.expected for answer in perfect] and own[-1].said == chat.messages[-1].content


def test_the_page_has_the_results_that_are_committed(benchmark):
    report = json.loads((ROOT / "benchmarks" / "results" / "chat.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "assistants.md").read_text(encoding="utf-8")
    for row in benchmark.rows_of_table(report):
        assert row in page
    assert f"{report['rows']} held-out conversations" in page
    for side in report["mean"]["loss"].values():
        assert f"{side['mean']:.3f} ± {side['half']:.3f}" in page
