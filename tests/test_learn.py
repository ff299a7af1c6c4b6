"""The path in examples/learn: every script runs, is short, quick, and measures what its text says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

resource = pytest.importorskip("resource", reason="processor time of a child is measured with POSIX's getrusage")

LEARN = Path(__file__).parent.parent / "examples" / "learn"
SCRIPTS = sorted(LEARN.glob("[0-9]*.py"))


def run(name, *flags):
    """What a script prints, and the seconds of processor time that it took."""
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "OPENBLAS_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, str(LEARN / name), *flags], env=environment, capture_output=True, text=True, encoding="utf-8", timeout=120
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


# Per script: lines that carry its point (as regular expressions).
POINTS = {
    "01_tokens.py": [r"the <unk> lamp", r"merge 10: ", r"t\|h\|e\| \|s\|l\|ower\| lamp -> nothing is lost: True"],
    "02_windows.py": [r"given \[100, 101\] predict 102", r"= 5$", r"epoch 0 again: "],
    "03_embeddings.py": [r"gives the same: True", r"\[101\. 101\. 101\.\]"],
    "04_attention.py": [
        r"zero it, renormalise +1\.0000 +1\.0000 +nan",
        r"minus infinity +1\.0000 +1\.0000 +1\.0000",
        r"largest difference \d\.\de-1[5-9]",
    ],
    "05_layer_norm.py": [r"plain .*lost"],
    "06_model.py": [r"= 1888; the model says 1888", r"124,439,808", r"\(T,\) = \(4,\) \[0\.000 0\.000 0\.000 0\.[1-9]"],
    "07_loss.py": [r"\[\[ 0\.125 -0\.750  0\.625\]\]", r"= 0\.9281; the op says 0\.9281"],
    "08_training.py": [r"It writes:\nThe "],
    "09_sampling.py": [r"top-k 2 +0\.667  0\.333  0\.000", r"10,000 draws"],
    "10_fine_tuning.py": [r"trained in step 2"],
    "11_autograd.py": [
        r"dz = \[0\.125, -0\.75, 0\.625\]   that",
        r"dz = \[\[0\.125, -0\.75, 0\.625\]\]",
        r"dz\[1\]: measured -0\.75000, backward -0\.75000",
    ],
}


def test_every_script_has_its_points_and_its_line_in_the_readme():
    assert [s.name for s in SCRIPTS] == sorted(POINTS) and len(POINTS) == 11
    readme = (LEARN / "README.md").read_text(encoding="utf-8")
    linked = re.findall(r"^\| \d+ \| \[(\w+\.py)\]\(\1\)", readme, flags=re.MULTILINE)
    assert linked == sorted(POINTS)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.stem)
def test_script(script):
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 120
    out, seconds = run(script.name)
    assert seconds < 20
    for point in POINTS[script.name]:
        assert re.search(point, out, flags=re.MULTILINE), f"{point} not in\n{out}"
    if script.name == "05_layer_norm.py":
        check_layer_norm(out)
    elif script.name == "08_training.py":
        check_training(out)
    elif script.name == "10_fine_tuning.py":
        check_fine_tuning(out)


def check_layer_norm(out):
    """What the text below the table claims: plain loses everything, a norm keeps the size but not the direction, a residual both."""
    rows = re.findall(r"^(\S.*?) +x = .*10\^([\d.]+) (lost|more) +(-?[\d.]+)$", out, flags=re.MULTILINE)
    assert len(rows) == 10
    for table in (rows[:5], rows[5:]):
        power = {name: float(p) for name, p, _, _ in table}
        cosine = {name: float(c) for name, _, _, c in table}
        assert power["plain"] > 6 and power["plain + norm"] < 1 and power["post-norm"] < 1 and power["pre-norm"] < 1
        assert cosine["plain + norm"] < 0.8 < min(cosine[way] for way in ("residual", "post-norm", "pre-norm"))
    assert float(rows[2][1]) > 2 * float(rows[4][1])  # large weights: without a norm, what the layers add piles up


def check_training(out):
    losses = [float(x) for x in re.findall(r"validation (\d\.\d+)", out)]
    assert len(losses) == 7 and losses[-1] < 2.6 < 4.3 < losses[0]


def check_fine_tuning(out):
    rows = re.findall(r"^ +\d+ +([\d.]+)% +([\d.]+)%$", out, flags=re.MULTILINE)
    gains = [float(pretrained) - float(scratch) for scratch, pretrained in rows]
    assert len(gains) == 3 and min(gains) > 0 and sum(gains) / 3 > 3  # percentage points; the texts change with Python and NumPy


def test_the_picture_of_the_gradients(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install -e .[plot]")
    out, _ = run("05_layer_norm.py", "--plot", str(tmp_path / "gradients.png"))
    assert f"picture: {tmp_path / 'gradients.png'}" in out
    assert (tmp_path / "gradients.png").read_bytes().startswith(b"\x89PNG")
