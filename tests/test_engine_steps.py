"""The engine in ten steps: every step runs, its numbers are right, and it changes few lines of the one before."""

import itertools
import runpy
from pathlib import Path

import pytest

from docs import hooks

ROOT = Path(__file__).parent.parent
STEPS = sorted((ROOT / "examples" / "engine").glob("[0-9]*.py"))

PRINTS = {
    "01_slopes.py": ["slope along c, nudged by 1, 0.1, 0.000001: 21.00000  20.10000  20.00000"],
    "02_record.py": ["      slope -3 toward\n      a = 2\n"],
    "03_chain_rule.py": ["a, b, c: -3, 2, 20", "15   32768              65,535"],
    "04_order.py": ["a, b, c: -3, 2, 20", "15   3.277e+04                 16", "slope 10,001"],
    "05_arrays.py": ["(3,) added to (4, 3) gets a gradient of shape (4, 3)"],
    "06_broadcasting.py": ["gradient of shape (4, 1)  [3.0, 12.0, 21.0, 30.0]", "gradient of shape ()      [66.0]"],
    "07_ops.py": ["y = [0.    0.762]  dx = [1.   0.42]"],
    "08_nodes.py": ["Tanh from MatMul from None and the leaf w", "first node saved is freed", "no_grad the result has no record"],
    "09_heap.py": ["gradient 10,001", "gradient [4. 4. 4.]"],
    "10_today.py": [f"{shape}: step 9 and autograd, same bits: True" for shape in ("(4, 5)", "(5,)", "(5, 3)")] + ["right 100%"],
}


def test_every_step_has_its_points():
    assert [step.name for step in STEPS] == sorted(PRINTS)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.stem)
def test_a_step_prints_what_it_says(step, capsys):
    runpy.run_path(str(step), run_name="__main__")
    printed = capsys.readouterr().out
    assert [point for point in PRINTS[step.name] if point not in printed] == []
    for line in printed.splitlines():  # what it measures by nudging is what backward says
        if "measured" in line:
            backward, measured = line.split("backward ")[1].split(", measured ")
            assert float(backward) == pytest.approx(float(measured), abs=2e-6)


def test_steps_are_short_and_so_are_their_changes():
    assert all(len(step.read_text(encoding="utf-8").splitlines()) <= 150 for step in STEPS)
    for old, new in itertools.pairwise(STEPS[:-1]):  # the tenth is the project's own
        changes = hooks.changes(*(f"examples/engine/{step.name}" for step in (old, new))).splitlines()
        assert 5 < sum(line[0] in "+-" for line in changes) <= 95, (old.name, new.name)
