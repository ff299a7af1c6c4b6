"""The wheel, installed where there is no checkout: every command works there, or says in one line what it needs."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tinygpt import GPT, GPTConfig
from tinygpt.__main__ import COMMANDS
from tinygpt.data.tokenizer import CharacterTokenizer

pytestmark = pytest.mark.skipif(importlib.util.find_spec("setuptools") is None, reason="builds the wheel without a network")
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that holds what `pip install tinygpt` brings, and nothing else of this project."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("autograd", "tinygpt"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", source / "dist", source], check=True)
    (wheel,) = (source / "dist").glob("tinygpt-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", site, wheel], check=True)
    return site


@pytest.fixture
def tinygpt(installed, tmp_path):
    def call(*arguments, command=(sys.executable, "-m", "tinygpt")):
        environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONIOENCODING": "utf-8"}
        return subprocess.run(
            [*command, *map(str, arguments)], cwd=tmp_path, env=environment, capture_output=True, text=True, encoding="utf-8"
        )

    return call


def test_it_holds_all_that_the_packages_hold(installed):
    for package in ("autograd", "tinygpt"):
        files = {p.relative_to(ROOT) for p in (ROOT / package).rglob("*") if p.is_file() and "__pycache__" not in p.parts}
        assert {str(f) for f in files if not (installed / f).is_file()} == set()
    folders = {p.parent for p in (ROOT / "tinygpt").rglob("*.py")}
    assert {str(folder) for folder in folders if not (folder / "__init__.py").is_file()} == set()


def test_the_code_that_runs_is_the_installed_one(tinygpt, installed):
    code = "import tinygpt, autograd; print(tinygpt.__file__, autograd.__file__)"
    assert tinygpt("-c", code, command=(sys.executable,)).stdout.split() == [
        str(installed / name / "__init__.py") for name in ("tinygpt", "autograd")
    ]


def test_the_command_by_its_name(tinygpt, installed):
    (script,) = [p for p in (installed / "bin").iterdir() if p.stem == "tinygpt"]
    done = tinygpt(command=(sys.executable, script))
    assert done.returncode == 0 and [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")] == list(COMMANDS)


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "exercise"])
def test_every_command_answers_help(tinygpt, command):
    done = tinygpt(command, "--help")
    assert done.returncode == 0 and f"python -m tinygpt {command}" in done.stdout, done.stderr


def test_doctor(tinygpt):
    done = tinygpt("doctor")
    assert done.returncode == 0 and "numpy  works" in done.stdout and "not installed as a package" not in done.stdout, done.stderr


def test_explore_and_verify(tinygpt, tmp_path):
    done = tinygpt("explore")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: runs: no run"), done.stderr
    done = tinygpt("verify", "nowhere")
    assert done.returncode == 1 and "nowhere: no checkpoint" in done.stdout and done.stderr == ""
    tokenizer = CharacterTokenizer.train(["to be or not"])
    model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, n_positions=16, vocab_size=tokenizer.n_vocab), seed=0)
    model.save_pretrained(tmp_path / "small", tokenizer)
    done = tinygpt("explore", "--run", "small", "--prompt", "to be")
    assert done.returncode == 0 and (tmp_path / "explore.html").stat().st_size > 10_000, done.stderr
    done = tinygpt("verify", "small")
    assert done.returncode == 1 and "cannot be resumed" in done.stdout and done.stderr == ""


def test_exercise_needs_a_checkout_and_says_so(tinygpt):
    done = tinygpt("exercise", "1")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "source repository, not in the installed package" in done.stderr
    done = tinygpt("1", command=(sys.executable, ROOT / "examples" / "exercises" / "check.py"))
    assert done.returncode == 1 and "gradient of x" in done.stdout and done.stderr == ""
