"""The example scripts and the README's Python blocks, run as a reader would run them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SMALL = "--n-layer 1 --n-head 2 --n-embd 16 --n-positions 32 --vocab-size 300 --micro-batch 4 --eval-batches 2 --sample-tokens 20".split()


def script(name, *flags, cwd, ok=True):
    environment = {**os.environ, "COLUMNS": "200", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *flags],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout if ok else done.stderr


def test_pretrain_leaves_a_run_and_generate_continues_from_it(tmp_path):
    out = script("pretrain.py", *SMALL, "--steps", "4", "--eval-every", "2", "--log-every", "1", cwd=tmp_path)
    for line in (
        "backend    numpy",
        "corpus     ",
        "tokenizer  ",
        "sample before training",
        "sample after training",
        "bigram model",
        "bits per byte",
    ):
        assert line in out
    assert "step     4/4" in out and "tokens/s" in out  # plain lines: this is no terminal
    run = tmp_path / "runs" / "docs-001"
    names = {p.name for p in run.iterdir()}
    assert names >= {"config.json", "metrics.jsonl", "samples.txt", "checkpoints"}
    assert (run / "checkpoints" / "last").read_text(encoding="utf-8") == "step-00000004\n"
    assert script("generate.py", "--prompt", "numpy.sort", "--max-new-tokens", "5", cwd=tmp_path).startswith("numpy.sort")


@pytest.mark.parametrize(
    "more", ["--window 8 --window-pattern SL", "--no-attention-output-bias --no-mlp-bias"], ids=["own form", "Llama's"]
)
def test_a_model_with_options_is_trained_resumed_and_generates(tmp_path, more):
    """Llama's parts by flags, saved under its names where it has all of them; what resuming may change does not include them."""
    (tmp_path / "mine.txt").write_text("to be, or not to be, that is the question: " * 60, encoding="utf-8")
    llama = f"--norm rms --positions rotary --n-kv-head 1 --activation silu --gated --n-inner 24 --no-qkv-bias {more}"
    scaling = "--rope-scaling rope_type linear factor 2"
    flags = [*SMALL, "--corpus", "mine.txt", "--run", "out", "--steps", "4", "--eval-every", "2", *llama.split(), *scaling.split()]
    out = script("pretrain.py", *flags, "--stop-at", "2", cwd=tmp_path)
    assert ("note       saved with model_type 'tinygpt', which transformers cannot read" in out) == ("window" in more)
    resumed = script("pretrain.py", "--resume", "out", "--stop-at", "0", cwd=tmp_path)
    assert "resume     from " in resumed and "step     4/4" in resumed
    assert "--norm 'layer', expected 'rms' as in the run" in script(
        "pretrain.py", "--resume", "out", "--norm", "layer", cwd=tmp_path, ok=False
    )
    assert script("generate.py", "--run", "out", "--prompt", "to be", "--max-new-tokens", "40", cwd=tmp_path).startswith("to be")


def test_own_text_and_characters(tmp_path):
    (tmp_path / "mine.txt").write_text("to be, or not to be, that is the question: " * 60, encoding="utf-8")
    script("pretrain.py", *SMALL, "--steps", "2", "--corpus", "mine.txt", "--tokenizer", "characters", "--run", "out", cwd=tmp_path)
    assert "to be" in script("generate.py", "--run", "out", "--prompt", "to be", "--max-new-tokens", "3", cwd=tmp_path)
    err = script("generate.py", "--run", "out", "--prompt", "TO ☃", "--max-new-tokens", "3", cwd=tmp_path, ok=False)
    assert "error: " in err and "'☃'" in err and "'T'" in err
    err = script("generate.py", "--run", "out", "--prompt", "to be " * 20, "--no-slide", cwd=tmp_path, ok=False)
    assert "generate: 120 tokens, expected at most 32" in err
    err = script(
        "pretrain.py", *SMALL, "--steps", "2", "--corpus", "mine.txt", "--tokenizer", "characters", "--run", "out", cwd=tmp_path, ok=False
    )
    assert "out: already holds a run" in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--n-layers", "3"], "--n-layer"),
        (["--n-embd", "100", "--n-head", "6"], "try n_embd 96 or 102"),
        (["--corpus", "nowhere.txt"], "nowhere.txt"),
        (["--corpus", "empty.txt"], "empty.txt"),
        (["--corpus", "short.txt"], "expected at least"),
        (["--corpus", "latin1.txt"], "UTF-8"),
        (["--tokens-per-update", "1000"], "expected a multiple of"),
    ],
)
def test_bad_input_is_one_clear_error_and_leaves_nothing(tmp_path, flags, message):
    (tmp_path / "empty.txt").write_text("", encoding="utf-8")
    (tmp_path / "short.txt").write_text("to be or not", encoding="utf-8")
    (tmp_path / "latin1.txt").write_bytes("caf\u00e9 au lait".encode("latin-1") * 50)
    err = script("pretrain.py", *SMALL, "--steps", "2", *flags, cwd=tmp_path, ok=False)
    assert message in err and "Traceback" not in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "examples").glob("*.py")))
def test_a_backend_that_cannot_run_is_one_message_from_every_script(tmp_path, name):
    code = f"import sys, runpy; sys.modules['cupy'] = None; runpy.run_path({str(ROOT / 'examples' / name)!r}, run_name='__main__')"
    environment = {**os.environ, "AUTOGRAD_BACKEND": "cupy", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: AUTOGRAD_BACKEND=cupy: step 1, `import cupy`, failed") and done.stderr.count("\n") == 1


def test_generate_without_a_run_says_what_to_do(tmp_path):
    assert "train first: python examples/pretrain.py" in script("generate.py", cwd=tmp_path, ok=False)


def test_backward_by_hand_agrees_with_the_engine(tmp_path):
    out = script("backward_by_hand.py", cwd=tmp_path)
    assert re.search(r"dw     = dz \* x    = \[-1, -2\]", out) and "w.grad = [-1, -2]" in out


def test_python_blocks_of_the_readme_print_what_they_say():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        printed: list[str] = []
        exec(compile(block, "README.md", "exec"), {"print": lambda *values, out=printed: out.append(" ".join(map(str, values)))})
        expected = re.findall(r"print\(.*\)\s+# (.*)", block)
        assert printed == expected


def test_importing_the_package_is_quick_and_touches_no_optional_library():
    code = (
        "import sys, time; t = time.perf_counter(); import tinygpt; s = time.perf_counter() - t; "
        "print(s, [m for m in ('rich', 'tyro', 'pooch', 'matplotlib', 'cupy', 'tiktoken', 'safetensors') if m in sys.modules])"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split(maxsplit=1) for _ in range(3)
    ]
    assert all(modules.strip() == "[]" for _, modules in runs)


def test_another_package_named_autograd_is_a_clear_error(tmp_path):
    (tmp_path / "autograd").mkdir()
    (tmp_path / "autograd" / "__init__.py").write_text("def grad(f): ...\n", encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", "import tinygpt"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode and "PyPI's unrelated `autograd` has the same name: pip uninstall autograd" in done.stderr
