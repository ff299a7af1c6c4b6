"""The exercises: each is broken in the way it says, each solution is right, and the checker tells where without telling why."""

import re
import shutil
import subprocess
import sys

import pytest

from autograd import backend
from tinygpt.errors import InvalidInput, MissingFile
from tinygpt.exercise import FOLDER, check, exercises, main

pytestmark = pytest.mark.skipif(backend.name != "numpy", reason="the exercises are written in NumPy")

# Exercise -> (inputs whose gradient is wrong, inputs whose gradient is right)
WRONG = {
    1: ("x", ""), 2: ("b", "a"), 3: ("b", "x"), 4: ("x", ""), 5: ("x", ""), 6: ("x", ""),
    7: ("weight", ""), 8: ("x", ""), 9: ("v", "qk"), 10: ("z", ""),
}  # fmt: skip


def test_ten_exercises_each_with_a_solution_and_a_line_in_the_readme():
    found = exercises()
    assert list(found) == list(WRONG)
    assert {p.name for p in found.values()} == {p.name for p in (FOLDER / "solutions").glob("*.py")}
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| (\d+) \| \[([\w.]+)\]\(\2\)", readme, flags=re.MULTILINE) == [(str(n), p.name) for n, p in found.items()]


@pytest.mark.parametrize("number", WRONG)
def test_the_checker_names_the_input_that_is_wrong(number):
    verdict = check(exercises()[number])
    text = "\n".join(verdict.lines)
    wrong, right = WRONG[number]
    assert not verdict.right
    assert re.search(
        rf"^gradient of {wrong} \([\d, ]+\): wrong in \d+ of \d+ places.*worst at \[[\d, ]+\]: backward says", text, re.MULTILINE
    )
    for name in right:
        assert re.search(rf"^gradient of {name} \([\d, ]+\): right$", text, re.MULTILINE)


@pytest.mark.parametrize("number", WRONG)
def test_the_solution_is_right_and_differs_in_backward_only(number):
    path = exercises()[number]
    solution = FOLDER / "solutions" / path.name
    assert check(solution, seed=1).right
    broken, mended = (p.read_text(encoding="utf-8").partition('"""\n\n')[2].partition("def backward") for p in (path, solution))
    assert broken[0] == mended[0] and broken[2] != mended[2]


def test_mending_a_file_turns_the_answer_round(tmp_path, capsys):
    for path in exercises().values():
        shutil.copy(path, tmp_path)
    assert main(["1", "--folder", str(tmp_path)]) == 1
    assert "not yet" in capsys.readouterr().out
    file = tmp_path / "01_tanh.py"
    file.write_text(file.read_text(encoding="utf-8").replace("(1 - y)", "(1 - y * y)"), encoding="utf-8")
    assert main(["1", "--folder", str(tmp_path)]) == 0
    assert "mended: every gradient is right" in capsys.readouterr().out
    assert main(["--folder", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert " 1  mended  tanh " in out and out.endswith("1 of 10 mended\n")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("return dy * (1 - y)", "dy *= 1 - y * y\n        return dy", "backward wrote into dy"),
        ("return dy * (1 - y)", "y *= y\n        return dy * (1 - y)", "backward wrote into a saved array"),
        ("return dy * (1 - y)", "return (dy * (1 - y))[:1]", "expected the input's shape"),
        ("return dy * (1 - y)", "return dy * undefined", "NameError"),
        ("return dy * (1 - y)", "return None", "expected its gradient"),
        ("return dy * (1 - y)", "return dy * (1 - y", "SyntaxError"),
        ("return dy * (1 - y)", "return dy * float('nan')", "wrong in 12 of 12 places"),
    ],
)
def test_mistakes_on_the_way_are_told_clearly(tmp_path, old, new, message):
    text = exercises()[1].read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "01_tanh.py").write_text(text.replace(old, new), encoding="utf-8")
    verdict = check(tmp_path / "01_tanh.py")
    assert not verdict.right and message in "\n".join(verdict.lines)


def test_unknown_numbers_and_empty_folders(tmp_path):
    with pytest.raises(InvalidInput, match="exercise: 11, expected one of 1 to 10"):
        main(["11"])
    with pytest.raises(MissingFile, match=r"no exercises, expected files such as .*; pass --folder CHECKOUT/examples/exercises"):
        main(["1", "--folder", str(tmp_path)])


def test_the_command():
    done = subprocess.run([sys.executable, "-m", "tinygpt", "exercise", "3"], capture_output=True, text=True, cwd=FOLDER)
    assert done.returncode == 1 and "gradient of b (4,): wrong" in done.stdout


def test_one_wrong_gradient_is_enough_whichever_it_is(tmp_path):
    solution = (FOLDER / "solutions" / "02_matmul.py").read_text(encoding="utf-8")
    (tmp_path / "02_matmul.py").write_text(solution.replace("dy @ b.T", "dy @ b"), encoding="utf-8")
    verdict = check(tmp_path / "02_matmul.py")
    assert not verdict.right and "gradient of a (3, 3): wrong" in verdict.lines[0] and verdict.lines[1] == "gradient of b (3, 3): right"
