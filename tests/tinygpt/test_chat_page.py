"""The chat page: its server answers this machine's page alone, its numbers are the model's, and it works in a browser, by keyboard and on a phone."""

import contextlib
import http.client
import json
import math
import re
import socket
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autograd import backend
from tinygpt import GPT, GPTConfig
from tinygpt.chat import sessions
from tinygpt.chat.command import main
from tinygpt.chat.continuation import Continuation
from tinygpt.chat.server import ChatServer
from tinygpt.chat.sessions import N_ALTERNATIVES, SETTINGS, Conversations, Offer
from tinygpt.data.chat_templates import Message, chat_template
from tinygpt.data.tokenizer import BPETokenizer, CharacterTokenizer
from tinygpt.encoder_config import EncoderConfig
from tinygpt.inference import chat as chat_module
from tinygpt.inference.chat import Chat
from tinygpt.inference.decoding import TokenInfo
from tinygpt.inference.sampling import Sampling
from tinygpt.inference.text import complete
from tinygpt.models.encoder import Encoder

pytestmark = pytest.mark.skipif(backend.name != "numpy", reason="a page is a page")
TEXT = "The lamp sorts a list. It returns a copy! Is it lower? The tower is the lowest, 1.5 times\nNew line. "


@pytest.fixture(scope="module")
def tokenizer():
    return BPETokenizer.train(TEXT * 3, 300)


@pytest.fixture(scope="module")
def model(tokenizer):
    return model_of(tokenizer)


def model_of(tokenizer, n_positions=64):
    """With weights large enough that probabilities differ."""
    model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=16, n_positions=n_positions, vocab_size=tokenizer.n_vocab), seed=1)
    for p in model.parameters():
        p.data *= 4
    return model


@pytest.fixture(scope="module")
def running(tokenizer, model):
    """A server with a model that chats, and one that continues texts."""
    with ChatServer(0, defaults={"max_tokens": 40, "seed": 7}, command="python -m tinygpt chat <run> --page") as server:
        server.conversations.offer(Offer("chatty <b>", "runs/chatty", model, tokenizer, chat_template("plain", tokenizer)))
        server.conversations.offer(Offer("plain", "runs/plain", model, tokenizer))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def request(server, method, path, body=None, **headers):
    """(status, headers, text) of one request; header names with _ for -."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    with contextlib.closing(connection):
        given = {"Content-Type": "application/json"} if method == "POST" else {}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection.putrequest(method, path, skip_host="Host" in given)
        body = json.dumps(body).encode() if body is not None and not isinstance(body, bytes) else body or b""
        for name, value in {"Content-Length": str(len(body)), **given}.items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read().decode()


def post(server, path, **body):
    status, _, text = request(server, "POST", path, body)
    assert status == 200, text
    return [json.loads(line) for line in text.splitlines()]


def new(server, model=0):
    (state,) = post(server, "/api/new", model=model)
    return state["id"]


def messages(server, id):
    (state,) = post(server, "/api/open", id=id)
    return [(message["role"], message["text"]) for message in state["messages"]]


@contextlib.contextmanager
def streaming(server, id, **body):
    """An answer whose first line has been read: (its connection, its lines)."""
    connection = socket.create_connection(("127.0.0.1", server.server_port), timeout=10)
    text = json.dumps({"id": id, **body}).encode()
    head = f"POST /api/reply HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
    connection.sendall(head.encode() + text)
    lines = connection.makefile("r", encoding="utf-8")
    while lines.readline().strip():  # the headers
        pass
    first = lines.readline()
    assert "trimmed" in first, first
    with connection, lines:
        yield connection, lines


LONG = {"max_tokens": 4096}

# Answers --------------------------------------------------------------------------------------------------------------------


def test_an_answer_is_the_chats_with_its_probabilities(running, tokenizer, model):
    settings = {"temperature": 0.7, "top_k": 9, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.1, "max_tokens": 12, "seed": 3}
    id = new(running)
    first, *tokens, last = post(running, "/api/reply", id=id, text="sorts a", settings={**settings, "system": "The lamp"}, turns=0)
    sampling = Sampling(0.7, 9, 0.9, 0.01, 1.1)
    chat = Chat(
        model,
        tokenizer,
        chat_template("plain", tokenizer),
        system="The lamp",
        sampling=sampling,
        max_tokens=12,
        seed=3,
        alternatives=N_ALTERNATIVES,
    )
    expected = [[piece.text, piece.probability, list(map(list, piece.alternatives))] for piece in chat.reply("sorts a")]
    assert [event["token"] for event in tokens] == expected and len(expected[0][2]) == N_ALTERNATIVES
    assert first == {"trimmed": 0, "read": chat.n_context} and last["why"] == chat.stop_reason and last["kept"] and last["seconds"] > 0
    assert sum(p for _, p in expected[0][2]) <= 1 + 1e-9 and expected[0][2] == sorted(expected[0][2], key=lambda other: -other[1])
    again = post(running, "/api/regenerate", id=id, settings={**settings, "system": "The lamp"}, turns=2)
    assert [event["token"][0] for event in again if "token" in event] == [piece.text for piece in chat.regenerate()]
    edited = post(running, "/api/edit", id=id, turn=0, text="a copy", settings=settings, turns=2)
    assert edited[-1]["kept"] and messages(running, id)[0] == ("user", "a copy") and len(messages(running, id)) == 2
    post(running, "/api/reply", id=id, text="lower?", settings=settings, turns=2)
    assert [role for role, _ in messages(running, id)] == ["user", "assistant"] * 2
    (state,) = post(running, "/api/open", id=id)
    assert state["messages"][1]["tokens"] == [event["token"] for event in edited[1:-1]]
    assert post(running, "/api/clear", id=id) == [{"id": id, "model": 0, "messages": [], "trimmed": 0}]


def test_turns_that_the_context_has_no_room_for_are_reported(running):
    id = new(running)
    trimmed = [
        post(running, "/api/reply", id=id, text="The tower is the lowest", settings={"max_tokens": 12})[0]["trimmed"] for _ in range(4)
    ]
    assert trimmed[0] == 0 and trimmed == sorted(trimmed) and trimmed[-1] >= 2 and all(n % 2 == 0 for n in trimmed)
    (state,) = post(running, "/api/open", id=id)
    assert state["trimmed"] == trimmed[-1] and len(state["messages"]) == 8


def test_a_model_without_conversations_continues_one_text():
    tokenizer = CharacterTokenizer.train("The lamp sorts")
    model, conversations = model_of(tokenizer), Conversations()
    conversations.offer(Offer("m", "", model, tokenizer))
    one = conversations.new()
    for text, n in (("The lamp", 5), ("", 4), (" so", 50)):
        with conversations.answer(one, {"text": text, "settings": {"temperature": 0, "max_tokens": n}}) as events:
            last = list(events)[-1]
        assert last["why"] == "length" and last["kept"]
    whole = complete(model, tokenizer, "The lamp", 9, Sampling(0)).text
    said = [turn.content for turn in one.chat.messages]
    assert "".join(said[:4]) == "The lamp" + whole and len(said[5]) == 50
    assert "".join(said[4:]) == " so" + complete(model, tokenizer, "The lamp" + whole + " so", 50, Sampling(0)).text
    with pytest.raises(ValueError, match="unknown character"), conversations.answer(one, {"text": "é"}):
        pass
    assert [turn.content for turn in one.chat.messages] == said and not conversations._answering


@given(st.lists(st.text("abc é", max_size=9), min_size=1, max_size=9), st.integers(1, 12))
def test_the_text_that_is_continued_is_the_end_of_the_turns(texts, n_positions):
    tokenizer = CharacterTokenizer.train("abc é")
    chat = Continuation(GPT(GPTConfig(n_layer=1, n_head=1, n_embd=2, n_positions=n_positions, vocab_size=5)), tokenizer)
    turns = [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]
    whole = "".join(texts)
    if not whole:
        with pytest.raises(ValueError, match="chat: no text, expected some"):
            chat.fit(turns)
        return
    ids, n_left_out = chat.fit(turns)
    seen = tokenizer.decode(ids)
    assert seen == whole[-n_positions:]
    rest = "".join(texts[n_left_out + 1 :])
    assert len(rest) <= len(seen) <= len("".join(texts[n_left_out:]))  # the first turn that is not left out is seen, if only in part


def test_the_first_token_comes_within_0_3_seconds(running, tokenizer):
    """Of the processor's time, with a model of the default model's shape: other processes have theirs. benchmarks/chat_page.py has a clock."""
    config = GPTConfig(n_layer=4, n_head=4, n_embd=128, n_positions=128, vocab_size=4096, positions="rotary")
    running.conversations.offer(Offer("default", "", GPT(config), tokenizer, chat_template("plain", tokenizer)))
    number = len(running.conversations.offers) - 1
    seconds = math.inf
    for _ in range(10):
        id, started = new(running, number), time.process_time()
        with streaming(running, id, text="The tower is the lowest. " * 2, settings={"max_tokens": 2}) as (_, lines):
            assert "token" in lines.readline()
            seconds = min(seconds, time.process_time() - started)
            assert len(list(lines)) == 2  # it is over
        if seconds < 0.3:
            break
    running.conversations.offers.pop()
    assert seconds < 0.3


def test_one_answer_at_a_time_and_stop(running):
    id, other = new(running, 1), new(running, 1)
    with streaming(running, id, text="The", settings=LONG) as (_, lines):
        for path, who in (("/api/reply", other), ("/api/regenerate", other), ("/api/reply", id), ("/api/clear", id)):
            status, _, text = request(running, "POST", path, {"id": who, "text": "x"})
            assert status == 409 and "answer" in json.loads(text)["error"]
        post(running, "/api/stop", id=other)  # not its answer
        assert "token" in lines.readline()
        post(running, "/api/stop", id=id)
        events = [json.loads(line) for line in lines]
    assert events[-1]["why"] == "stopped" and events[-1]["kept"]
    said = messages(running, id)
    assert len(said) == 2 and said[1][1] and messages(running, other) == []
    assert post(running, "/api/reply", id=other, text="x", settings={"max_tokens": 2})[-1]["why"] == "length"


def test_a_closed_browser_ends_the_answer_and_what_was_said_is_kept(running):
    id = new(running, 1)
    with streaming(running, id, text="The", settings=LONG) as (connection, lines):
        lines.readline()
        lines.close()
        connection.close()
    started = time.monotonic()
    while running.conversations._answering:
        assert time.monotonic() - started < 1.5
        time.sleep(0.01)
    (state,) = post(running, "/api/open", id=id)
    assert 1 <= len(state["messages"][1]["tokens"]) < 4096 and state["messages"][1]["why"] == "stopped"


def test_an_error_while_answering_is_told_and_the_next_answer_works(running, monkeypatch, capsys):
    def broken(self, chat):
        raise AssertionError("in our own code")

    id = new(running)
    with monkeypatch.context() as patch:
        patch.setattr(chat_module.IncrementalDetokenizer, "add", broken)
        events = post(running, "/api/reply", id=id, text="x", settings={"max_tokens": 2})
    assert "its terminal shows where" in events[-1]["error"] and "in our own code" in capsys.readouterr().err
    assert messages(running, id) == [] and post(running, "/api/reply", id=id, text="x", settings={"max_tokens": 2})[-1]["kept"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"settings": {"temperature": -1}}, r"temperature: -1.0, expected a finite number >= 0"),
        ({"settings": {"temperature": None}}, r"temperature: None, expected a finite number"),
        ({"settings": {"top_k": 2.5}}, r"top_k: 2.5, expected an integer"),
        ({"settings": {"top_p": 0}}, r"top_p: 0.0, expected 0 < top_p <= 1"),
        ({"settings": {"min_p": "x"}}, r"min_p: 'x', expected a finite number"),
        ({"settings": {"repetition_penalty": 0}}, r"repetition_penalty: 0.0, expected a finite number > 0"),
        ({"settings": {"max_tokens": 5000}}, r"max_tokens: 5000, expected 1 to 4096"),
        ({"settings": {"seed": -1}}, r"seed: -1, expected at least 0"),
        ({"settings": {"system": 1}}, r"system: 1, expected a text"),
        ({"settings": []}, r"settings: \[\], expected an object"),
        ({"text": " "}, r"chat: a turn without text, expected some"),
        ({"text": None}, r"turn 0: no turn of the user"),
        ({"text": "The tower is " * 40}, r"chat: \d+ tokens in the last turn, expected at most 48"),
        ({"path": "/api/edit", "turn": 1}, r"turn 1: no turn of the user, expected the number of one"),
        ({"path": "/api/edit", "turn": True}, r"turn True: no turn of the user"),
        ({"path": "/api/regenerate"}, r"regenerate: no reply yet, expected one"),
        ({"path": "/api/new", "model": 2}, r"model: 2, expected a number below 2"),
    ],
)
def test_what_cannot_be_answered_is_named(running, asked, message):
    status, _, text = request(running, "POST", asked.get("path", "/api/reply"), {"id": new(running), "text": "x", **asked})
    assert status == 400 and re.match(message, json.loads(text)["error"])


def test_a_conversation_that_went_on_in_another_tab_is_not_answered_twice(running):
    id = new(running)
    post(running, "/api/reply", id=id, text="x", settings={"max_tokens": 2}, turns=0)
    status, _, text = request(running, "POST", "/api/reply", {"id": id, "text": "x", "turns": 0})
    assert status == 409 and "changed in another tab" in text


def test_the_oldest_conversations_are_forgotten(tokenizer, model, monkeypatch):
    monkeypatch.setattr(sessions, "MAX_CONVERSATIONS", 3)
    conversations = Conversations()
    conversations.offer(Offer("m", "", model, tokenizer))
    a, b, c = (conversations.new() for _ in range(3))
    assert conversations.find(a.id) is a  # now b is the oldest
    conversations.new()
    assert conversations.find(a.id) is a and conversations.find(c.id) is c and len({a.id, b.id, c.id}) == 3
    for unknown in (b.id, "x", None, 5):
        with pytest.raises(FileNotFoundError, match="does not have this conversation, or no longer"):
            conversations.find(unknown)


# Who may ask ----------------------------------------------------------------------------------------------------------------


def test_the_page_holds_everything_and_only_its_own_script_runs(running):
    status, headers, page = request(running, "GET", "/")
    policy = headers["Content-Security-Policy"]
    nonce = re.search(r"script-src 'nonce-([\w-]{16,})'", policy)[1]
    assert (
        status == 200 and "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and headers["Cache-Control"] == "no-store"
    )
    assert page.count(f'nonce="{nonce}"') == 3 and page.count("</script>") == 2 and "chatty <b>" not in page
    assert (
        not re.search(r"src=|https?://|@import|url\(", page) and request(running, "GET", "/")[2] != page
    )  # nothing from elsewhere; another nonce
    assert running.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (421, {"Host": "evil.example:{port}"}),  # a name that points to 127.0.0.1
        (421, {"Host": "127.0.0.1"}),
        (421, {"Host": "localhost:1"}),
        (421, {"Host": None}),
        (403, {"Origin": "http://evil.example"}),
        (403, {"Origin": "null"}),
        (403, {"Origin": "http://127.0.0.1:1"}),
        (403, {"Origin": "https://127.0.0.1:{port}"}),
        (403, {"Sec_Fetch_Site": "cross-site"}),
        (403, {"Sec_Fetch_Site": "same-site"}),  # another port of this machine
        (415, {"Content_Type": "text/plain"}),  # what a form of another site can send
        (415, {"Content_Type": None}),
        (411, {"Content_Length": None}),
        (411, {"Content_Length": "-1"}),
        (411, {"Content_Length": "²"}),
        (413, {"Content_Length": "1000001"}),
        (413, {"Content_Length": "9" * 400}),
        (200, {"Host": "localhost:{port}", "Origin": "http://localhost:{port}", "Sec_Fetch_Site": "same-origin"}),
        (200, {"Content_Type": "application/json; charset=utf-8", "Origin": "http://127.0.0.1:{port}"}),
    ],
)
def test_only_the_pages_own_requests_are_answered(running, status, headers):
    filled = {name: value and value.replace("{port}", str(running.server_port)).encode() for name, value in headers.items()}
    n = len(running.conversations._open)
    found, _, text = request(running, "POST", "/api/new", {}, **filled)
    assert found == status and (status == 200) == (len(running.conversations._open) > n or n == sessions.MAX_CONVERSATIONS), text
    if "Host" in headers:
        assert request(running, "GET", "/", **filled)[0] == status


@pytest.mark.parametrize(
    ("status", "path", "body", "message"),
    [
        (400, "/api/new", b"{", "request: .*, expected valid JSON; reload the page"),
        (400, "/api/new", b'{"a": NaN}', "the number NaN"),
        (400, "/api/new", b"[" * 5000, "expected valid JSON"),
        (400, "/api/new", b"\xff{}", "request: byte 0 is not UTF-8, expected JSON in UTF-8"),
        (400, "/api/new", [], "request: a JSON list, expected an object"),
        (404, "/api/open", {"id": "nobody"}, "does not have this conversation"),
        (404, "/api/other", {}, "/api/other: no such request"),
    ],
)
def test_damaged_requests_are_named(running, status, path, body, message):
    found, _, text = request(running, "POST", path, body)
    assert found == status and re.search(message, json.loads(text)["error"])
    assert ("gone" in json.loads(text)) == (path == "/api/open")


def test_other_pages_and_methods(running):
    assert request(running, "GET", "/../secret")[0] == 404 and request(running, "GET", "/?reload")[0] == 200
    assert request(running, "PUT", "/")[0] == 501 and request(running, "OPTIONS", "/api/new")[0] == 501  # no other site is ever allowed


# The command ----------------------------------------------------------------------------------------------------------------


def test_a_port_in_use_and_the_next_one_that_is_free(running):
    port = running.server_port
    with pytest.raises(
        BlockingIOError, match=rf"port: {port} is in use by another program, expected a free one; choose --port (\d+)"
    ) as error:
        main(["--page", "--port", str(port)])
    free = int(re.search(r"--port (\d+)", str(error.value))[1])
    assert free > port
    with ChatServer(free) as second:
        assert second.server_port == free
    with pytest.raises(ValueError, match=r"port: 65536, expected 0 to 65535; 0 takes any that is free"):
        ChatServer(65536)


def test_a_run_that_is_missing_and_a_model_that_is_no_decoder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere: neither a checkpoint nor a run with one, expected"):
        main(["nowhere", "--page", "--port", "0"])
    for flags in ([], ["--page", "--port", "0"]):
        commands = r"train first: python examples/pretrain.py, then python examples/finetune_chat.py$"
        with pytest.raises(FileNotFoundError, match=r"runs: no run with a checkpoint, expected one (that|to) .*; " + commands):
            main(flags)
    Encoder(EncoderConfig(n_layer=1, n_head=1, n_embd=8, n_positions=8, vocab_size=20)).save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match=r"encoder: an encoder, expected a language model; load it with Encoder.from_pretrained"):
        main(["encoder", "--page", "--port", "0"])


def test_a_pretrained_run_alone_has_one_command_left(tokenizer, tmp_path, monkeypatch, capfd):
    """In the terminal it is said instead of a conversation; on the page the model continues texts, and the command is said next to it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ChatServer, "serve_forever", lambda server, poll_interval=0.5: (_ for _ in ()).throw(KeyboardInterrupt))
    checkpoint = Path("runs", "docs-001", "checkpoints", "step-00000001")
    model_of(tokenizer).save_pretrained(checkpoint, tokenizer)
    for name in ("last", "best"):
        (checkpoint.parent / name).write_text(checkpoint.name, encoding="utf-8")
    left = r"no run that has learned conversations, expected one; runs.docs-001 is pretrained: train it on with python examples/finetune_chat.py"
    with pytest.raises(FileNotFoundError, match=left):
        main([])
    main(["--page", "--port", "0"])
    assert "no chat template: it continues texts; python examples/finetune_chat.py teaches it conversations" in capfd.readouterr().err


def test_the_command_serves_the_model_until_ctrl_c(tokenizer, tmp_path, monkeypatch, capfd):
    model_of(tokenizer).save_pretrained(tmp_path / "model", tokenizer)
    asked = []

    def serve(server, poll_interval=0.5):
        asked.extend([server.page("n").decode(), [offer.template for offer in server.conversations.offers]])
        raise KeyboardInterrupt

    monkeypatch.setattr(ChatServer, "serve_forever", serve)
    folder = str(tmp_path / "model")
    main([folder, "--page", "--port", "0", "--temperature", "0.25", "--system", "</script>"])
    data = json.loads(re.search(r'id="data">(.*)</script>', asked[0])[1])
    assert data["system"] == "</script>" and {s["name"]: s["value"] for s in data["settings"]}["temperature"] == 0.25 and asked[1] == [None]
    assert [s["name"] for s in data["settings"]] == [s.name for s in SETTINGS] and "--temperature 0.25" in data["command"]
    out, err = capfd.readouterr()
    assert re.search(r"page     http://127.0.0.1:\d+/: open it in a browser", out) and "no chat template: it continues texts" in err
    main([folder, "--page", "--port", "0", "--template", "chatml", "--also", str(tmp_path / "model"), folder])
    assert [template.name for template in asked[3]] == ["chatml"]  # the same model twice is offered once


# In a browser ---------------------------------------------------------------------------------------------------------------

SAID = "The lamp sorts a list. It returns a copy! Is it lower? 1.5 times\nNew line"


class Scripted:
    """In the stead of `TokenIterator`: the tokens of SAID, each as soon as `let` allows one more. The likeliest alternatives are 1/2, 1/4, ..."""

    ids, let = [], None

    def __init__(self, model, prompts, max_new_tokens, sampling=None, *, seed=0, **options):
        self.n, self.infos = max_new_tokens, [[]]

    def __iter__(self):
        for i, id in enumerate(Scripted.ids[: self.n]):
            if Scripted.let is not None:
                assert Scripted.let.acquire(timeout=10)
            others = [
                (id if j == i else 30 + j, -math.log(2) * (j + 1)) for j in range(N_ALTERNATIVES)
            ]  # the first token is the likeliest, ...
            self.infos[0].append(TokenInfo(id, others[i][1] if i < N_ALTERNATIVES else math.log(0.001), tuple(others)))
            yield [id]


@pytest.fixture
def scripted(tokenizer, monkeypatch):
    """The chatting model says SAID; the texts of its tokens."""
    monkeypatch.setattr(chat_module, "TokenIterator", Scripted)
    monkeypatch.setattr(Scripted, "ids", tokenizer.encode(SAID))
    yield [tokenizer.decode([id]) for id in Scripted.ids]


@pytest.fixture
def slow(scripted, monkeypatch):
    """As `scripted`, and says a token when the semaphore allows one."""
    monkeypatch.setattr(Scripted, "let", threading.Semaphore(0))
    yield Scripted.let
    Scripted.let.release(1000)


@pytest.fixture
def visit(browser, running):
    """Opens the page in a context of its own (another visitor), and collects what a page must not do: errors, requests elsewhere."""
    wrong, contexts = [], []

    def open_page(context=None, **options):
        if context is None:
            context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
            contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if "Content Security Policy" in message.text else None)
        page.on("request", lambda request: wrong.append(request.url) if not request.url.startswith((running.url, "data:")) else None)
        page.goto(running.url)
        until(page, "window.ready === true")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def until(page, expression):
    """Waits for it to become true, from outside: the page's policy lets no text become code, playwright's `wait_for_function` neither."""
    deadline = time.monotonic() + 10
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, expression
        time.sleep(0.01)


def send(page, text):
    page.fill("#message", text)
    page.press("#message", "Enter")


def done(page):
    until(page, "!busy")


def said(page):
    return page.locator("#log > li .body").all_inner_texts()


class TestInABrowser:
    def test_a_conversation_by_keyboard_alone(self, visit, slow, scripted, running):
        page = visit()
        assert page.evaluate("document.activeElement.id") == "message" and page.title() == "Chat: chatty <b>"
        page.keyboard.press("Enter")
        assert page.inner_text("#alert") == "Type a message first."
        page.keyboard.type("sort <b>it</b>")
        page.keyboard.press("Enter")
        assert page.is_enabled("#stop") and not page.is_enabled("#send") and page.inner_text("#alert") == ""
        slow.release(3)
        until(page, "document.querySelectorAll('.token').length === 3")  # each token as it is made
        assert said(page) == ["sort <b>it</b>", "".join(scripted[:3])]
        page.keyboard.type("typed in the meantime")
        page.keyboard.press("Escape")
        while not running.conversations._stop.is_set():
            time.sleep(0.01)
        slow.release(1)
        done(page)
        assert page.inner_text("#says") == "Stopped after 4 tokens." and said(page)[1] == "".join(scripted[:4]).strip()
        assert page.inner_text("#log > li >> nth=1").endswith("Stopped here.") and page.input_value("#message") == "typed in the meantime"
        slow.release(1000)
        page.keyboard.press("Tab")  # Send
        page.keyboard.press("Tab")  # Stop is not there: Regenerate
        assert page.evaluate("document.activeElement.id") == "again"
        page.keyboard.press("Enter")
        done(page)
        assert page.evaluate("document.activeElement.id") == "message"  # not lost with a button that is off
        assert said(page)[1] == SAID and "Complete" not in page.inner_text("#says") and "Cut off after" in page.inner_text("#says")
        page.focus("#log button >> nth=0")
        page.keyboard.press("Enter")  # Edit
        assert page.evaluate("document.activeElement.id") == "edited"
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement.textContent") == "Edit" and said(page)[0] == "sort <b>it</b>"
        page.keyboard.press("Enter")
        page.fill("#edited", "edited")
        page.keyboard.press("Enter")
        done(page)
        assert said(page) == ["edited", SAID] and page.evaluate("document.activeElement.id") == "message"
        page.on("dialog", lambda dialog: dialog.accept())
        page.click("#clear")
        until(page, "!here().messages.length")
        assert said(page) == [] and page.is_visible("#empty") and page.inner_text("#says") == "The conversation is empty."

    def test_the_probabilities_of_a_token(self, visit, scripted):
        page = visit()
        assert "Point at a token" in page.inner_text("#hint")
        send(page, "x")
        done(page)
        page.hover(".token >> nth=2")
        assert (
            page.inner_text("#which")
            == f"Token 3 of {len(scripted)}, “{scripted[2].replace(' ', '␣')}”: 12.5 %, number 3 of the likeliest."
        )
        rows = page.locator("#top tr").all_inner_texts()
        assert [row.split("\t")[1] for row in rows] == ["50.0 %", "25.0 %", "12.5 %", "6.3 %", "3.1 %", "1.6 %", "0.8 %", "0.4 %"]
        assert page.locator("#top tr.chosen").count() == 1 and page.locator("#top tr.chosen td >> nth=1").inner_text() == "12.5 %"
        widths = page.eval_on_selector_all("#top .share", "all => all.map(e => e.getBoundingClientRect().width)")
        assert widths[0] == pytest.approx(4 * widths[2], rel=0.05)
        page.click(".token >> nth=1")  # held
        page.hover(".token >> nth=9")
        assert page.inner_text("#which").startswith("Token 2 of") and page.inner_text("#which").endswith("Held.")
        page.click(".token >> nth=1")
        page.hover(".token >> nth=9")
        assert "below the likeliest shown here" in page.inner_text("#which") and page.locator("#top tr").count() == N_ALTERNATIVES + 1
        page.focus("#log .assistant .body")
        for key, token in (
            ("Home", 1),
            ("ArrowRight", 2),
            ("ArrowRight", 3),
            ("ArrowLeft", 2),
            ("End", len(scripted)),
            ("ArrowRight", len(scripted)),
        ):
            page.keyboard.press(key)
            assert page.inner_text("#which").startswith(f"Token {token} of {len(scripted)},")
        page.keyboard.press("Escape")
        assert "Point at a token" in page.inner_text("#hint") and page.inner_text("#which") == ""
        page.click("text=Tokens")
        cells = page.locator(".tokens tbody tr >> nth=0").locator("td").all_inner_texts()
        assert (
            cells[:2] == [scripted[0], "50.0 %"] and cells[2].count("%") == 3 and page.locator(".tokens tbody tr").count() == len(scripted)
        )

    def test_a_screen_reader_hears_complete_sentences(self, visit, slow, scripted):
        page = visit()
        send(page, "x")
        first = next(i for i in range(len(scripted)) if "." in "".join(scripted[: i + 1]))
        slow.release(first + 1)
        until(page, f"document.querySelectorAll('.token').length === {first + 1}")
        assert page.inner_text("#spoken") == ""  # the sentence may be 1.5 times as long
        slow.release(1000)
        done(page)
        assert page.locator("#spoken p").all_inner_texts() == [
            "The lamp sorts a list.",
            "It returns a copy!",
            "Is it lower?",
            "1.5 times",
            "New line",
        ]
        assert page.get_attribute("#spoken", "aria-live") == page.get_attribute("#says", "aria-live") == "polite"
        assert page.locator("#log[aria-live], #log [aria-live]").count() == 0  # not token by token
        unnamed = page.eval_on_selector_all(
            "button, input, select, textarea, [role=group], [tabindex='0']",
            "all => all.filter(e => !(e.ariaLabel || e.textContent.trim() && e.tagName === 'BUTTON' || e.labels?.length)).map(e => e.outerHTML)",
        )
        assert unnamed == []

    def test_settings_are_shown_changed_checked_and_kept(self, visit, scripted, running):
        page = visit()
        for setting in SETTINGS:
            assert float(page.input_value(f"#{setting.name}")) == {"max_tokens": 40, "seed": 7}.get(setting.name, setting.value)
        page.fill("#max_tokens", "3")
        send(page, "x")
        done(page)
        assert said(page)[1] == "".join(scripted[:3]) and page.inner_text("#says") == "Cut off after 3 tokens, the limit of the settings."
        page.fill("#top_p", "1.5")
        send(page, "kept")
        done(page)
        assert page.inner_text("#alert") == "top_p: 1.5, expected 0 < top_p <= 1; 1 allows all tokens"
        assert page.get_attribute("#top_p", "aria-invalid") == "true" and page.evaluate("document.activeElement.id") == "top_p"
        assert page.input_value("#message") == "kept" and len(said(page)) == 2
        page.fill("#top_p", "0.5")
        page.fill("#system", "Be brief.")
        page.press("#message", "Enter")
        done(page)
        chat = running.conversations.find(page.evaluate("here().id")).chat
        assert (chat.sampling.top_p, chat.max_tokens, chat.system, page.inner_text("#alert")) == (0.5, 3, "Be brief.", "")
        page.reload()
        until(page, "window.ready")
        assert len(said(page)) == 4 and page.input_value("#top_p") == "0.5" and page.input_value("#system") == "Be brief."
        page.hover(".token >> nth=1")
        assert "25.0 %" in page.inner_text("#which")  # after a reload, too
        page.click("#reset")
        assert page.input_value("#top_p") == "1" and page.input_value("#max_tokens") == "40"

    def test_conversations_are_kept_apart(self, visit, scripted, running):
        page = visit()
        send(page, "the first")
        done(page)
        tab = visit(page.context)  # another tab of the same browser
        assert said(tab) == []
        send(tab, "the second")
        done(tab)
        page.click("#new")
        until(page, "conversations.length === 2")
        assert said(page) == []
        send(page, "the third")
        done(page)
        page.select_option("#conversation", "0")
        until(page, "at === 0 && document.querySelector('#log > li .body')?.innerText === 'the first'")  # it asks the server first
        assert said(page)[0] == "the first" and said(tab)[0] == "the second"
        assert page.locator("#conversation option").all_inner_texts() == ["1: the first", "2: the third"]
        post(running, "/api/reply", id=page.evaluate("here().id"), text="from another tab")
        send(page, "mine")
        done(page)
        assert "changed in another tab" in page.inner_text("#alert") and page.input_value("#message") == "mine"
        assert said(page)[2] == "from another tab"
        running.conversations._open.clear()  # the server was started again
        send(page, "x")
        done(page)
        assert "no longer has this conversation" in page.inner_text("#alert") and page.input_value("#message") == "x"
        page.press("#message", "Enter")
        done(page)
        assert said(page) == ["x", SAID]

    def test_a_model_that_continues_texts_and_the_end_of_its_context(self, visit):
        page = visit()
        page.select_option("#offer", "1")
        until(page, "here().model === 1")
        assert page.title() == "Chat: plain" and "learned no conversations" in page.inner_text("#mode") and not page.is_enabled("#system")
        assert page.inner_text("#send") == "Continue" and page.locator("#conversation option").count() == 1
        page.fill("#max_tokens", "60")
        for _ in range(2):
            send(page, "The lamp")
            done(page)
        assert re.match(r"The (message|\d messages) above no longer fits? into the context of 64 tokens", page.inner_text(".trim"))
        assert page.locator(".unseen").count() >= 1

    def test_a_closed_page_ends_the_answer(self, visit, slow, scripted, running):
        page = visit()
        send(page, "x")
        slow.release(2)
        until(page, "document.querySelectorAll('.token').length === 2")
        other = visit(page.context)
        send(other, "waits")
        done(other)
        assert "gives one at a time" in other.inner_text("#alert") and other.input_value("#message") == "waits"
        page.close()
        n_more = 0
        while running.conversations._answering:  # the server sees it with the next token, or the one after
            slow.release(1)
            time.sleep(0.05)
            n_more += 1
        assert n_more < 10 < len(scripted) - 2
        slow.release(1000)
        other.press("#message", "Enter")
        done(other)
        assert said(other) == ["waits", SAID]

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_on_a_phone_in_light_and_dark(self, visit, scripted, scheme):
        options = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
        page = visit(color_scheme=scheme, reduced_motion="reduce", **options)
        assert not page.is_visible("#fields") and not page.is_visible("#token")  # settings are folded
        page.fill("#message", "W" * 30)
        page.tap("#send")
        done(page)
        page.tap("summary >> nth=0")
        assert page.is_visible("#temperature") and page.evaluate("document.documentElement.scrollWidth") <= 390
        page.evaluate("$('shade').click()")
        page.tap(".token >> nth=1")
        assert page.is_visible("#token") and "25.0 %" in page.inner_text("#which")
        page.tap("#close")
        assert not page.is_visible("#token")
        sizes = page.eval_on_selector_all(
            "button:not(li button), select, .field input", "all => all.filter(e => e.offsetParent).map(e => e.offsetHeight)"
        )
        assert min(sizes) >= 38  # a finger hits it
        assert contrast(page, "p, label, h1, h2, h3, button:enabled, summary, .token, .body, .dim, dd, dt") >= 4.5
        page.evaluate("document.querySelector('.assistant').classList.add('answering')")
        assert page.evaluate("getComputedStyle(document.querySelector('.answering .body'), '::after').animationName") == "none"


def contrast(page, selector):
    """The least contrast of a visible text with what is behind it (WCAG 2.2, 1.4.3: 4.5)."""
    return page.evaluate(
        """selector => {
          const rgba = c => { const n = c.match(/[\\d.]+/g).map(Number), f = c.startsWith("color(") ? 255 : 1;
            return [n[0] * f, n[1] * f, n[2] * f, n[3] ?? 1]; };
          const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((s, v, i) => s + v * [0.2126, 0.7152, 0.0722][i], 0);
          let least = 21;
          for (const e of document.querySelectorAll(selector)) {
            if (!e.offsetParent || !e.textContent.trim()) continue;
            let ground = [0, 0, 0, 0];
            for (let p = e; p && ground[3] < 1; p = p.parentElement) {
              const c = rgba(getComputedStyle(p).backgroundColor), a = c[3] * (1 - ground[3]);
              ground = [0, 1, 2].map(i => ground[i] + c[i] * a).concat(ground[3] + a);
            }
            const [a, b] = [light(rgba(getComputedStyle(e).color)), light(ground)];
            least = Math.min(least, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
          }
          return least;
        }""",
        selector,
    )
