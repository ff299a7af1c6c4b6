"""How long after Enter the chat page shows the first token, and how fast it goes from there: through the command, its server and a browser.

    python benchmarks/chat_page.py --base runs/docs-001 --output benchmarks/results/chat_page.json

About a minute. Starts `python -m tinygpt chat RUN --page` in a process of its own, as its users do, and measures from here:

    page        from the start of the command to the line that says where the page is: reading the model, its first two tokens
    short       from sending a short text to the first token of the answer, over HTTP
    full        the same where the text fills the context: the most that there is to read before the first token
    browser     from Enter to the first token as the page's script has it, of a short text, in Chromium; where playwright is installed
    tokens/s    of a complete answer, each with its probability and alternatives

Each round is a conversation of its own. The table gives medians, and the least and the most in brackets.
"""

import contextlib
import http.client
import importlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from train_step import processor

from tinygpt import GPT, GPTConfig
from tinygpt.arguments import parse_args
from tinygpt.cli import run, table
from tinygpt.data.tokenizer import BPETokenizer
from tinygpt.errors import ProcessFailed
from tinygpt.fields import PathName
from tinygpt.runs.layout import newest_run

TEXT = "Return a sorted copy of an array, along the given axis. "


@dataclass(frozen=True)
class Options:
    base: PathName = ""
    """A run or checkpoint directory; default: the newest run below runs/."""
    rounds: int = 20
    """How often each is measured."""
    browser: bool = True
    """Measure in Chromium, too, where playwright and Chromium are installed."""
    output: PathName = ""
    """Where the figures go, as JSON."""
    quick: bool = False
    """A tiny model: shows that the script runs, measures nothing."""


def main() -> None:
    options = parse_args(Options(), __doc__)
    rounds = 1 if options.quick else options.rounds
    with tempfile.TemporaryDirectory() as directory:
        if options.quick:
            tokenizer = BPETokenizer.train(TEXT * 3, 280)
            GPT(GPTConfig.preset("quick", vocab_size=tokenizer.n_vocab)).save_pretrained(directory, tokenizer)
        model = directory if options.quick else options.base or str(newest_run())
        started = time.perf_counter()
        with serving(model) as url:
            measured = {"page": [time.perf_counter() - started], **over_http(url, rounds)}
            if options.browser and (found := in_browser(url, rounds)):
                measured["browser"] = found
    rows = {f"{name}{'' if name == 'tokens/s' else ', s'}": spread(values) for name, values in measured.items()}
    print(table(f"chat page of {'a tiny model' if options.quick else model}, {rounds} rounds, {processor()}", rows))
    if options.output:
        result = {"date": date.today().isoformat(), "processor": processor(), "model": Path(model).name, "table": rows, "rounds": measured}
        Path(options.output).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8", newline="\n")


@contextlib.contextmanager
def serving(model: str) -> Iterator[str]:
    """The address of the page, which a process of its own serves."""
    command = [sys.executable, "-m", "tinygpt", "chat", model, "--page", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        try:
            assert process.stdout is not None
            words = process.stdout.readline().split()
            if words[:1] != ["page"]:
                raise ProcessFailed(f"{' '.join(command)}: ended, expected the address of the page; see its error above")
            yield words[1].rstrip(":")
        finally:
            process.terminate()


def over_http(url: str, rounds: int) -> dict[str, list[float]]:
    """Seconds to the first token of short and of full contexts, and tokens per second."""
    found: dict[str, list[float]] = {"short": [], "full": [], "tokens/s": []}
    answer(url, TEXT, 2)
    for _ in range(rounds):
        for name, text in (("short", TEXT), ("full", TEXT * 40)):
            first_s, rate = answer(url, text, 100)
            found[name].append(first_s)
        found["tokens/s"].append(rate)
    return found


def answer(url: str, text: str, max_tokens: int) -> tuple[float, float]:
    """(seconds to the first token, tokens per second from there on) of an answer in a new conversation."""
    id = json.loads(post(url, "/api/new", {}).read())["id"]
    started, times = time.perf_counter(), []
    for line in post(url, "/api/reply", {"id": id, "text": text, "settings": {"max_tokens": max_tokens, "top_k": 0}}):
        event = json.loads(line)
        if "error" in event:
            raise ProcessFailed(f"chat page: {event['error']}")
        if "token" in event:
            times.append(time.perf_counter())
    return times[0] - started, (len(times) - 1) / max(times[-1] - times[0], 1e-9)


def post(url: str, path: str, body: dict[str, object]) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise ProcessFailed(f"chat page: {path}: {response.read().decode()}")
    return response


def in_browser(url: str, rounds: int) -> list[float]:
    """Seconds from Enter to the first token, as the page's own script has measured them; none without playwright or Chromium."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    try:
        playwright = importlib.import_module("playwright.sync_api")
    except ImportError:
        playwright = None
    if path is None or playwright is None:
        print("browser    not measured: it needs Chromium, and pip install -e .[browser]")
        return []
    found = []
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for _ in range(rounds):
            page = browser.new_page()
            page.goto(url)
            page.fill("#message", TEXT)
            page.press("#message", "Enter")
            while not page.evaluate("window.firstTokenMs !== undefined && !busy"):
                time.sleep(0.01)
            found.append(page.evaluate("firstTokenMs") / 1000)
            page.close()
        browser.close()
    return found


def spread(values: list[float]) -> str:
    return f"{np.median(values):.3f} ({min(values):.3f}-{max(values):.3f})"


if __name__ == "__main__":
    run(main)
