"""The exercises: each is broken in the way it says, each solution is right, and the checker tells where without telling why."""

import importlib.util
import re
import shutil
import subprocess
import sys

import pytest

from autograd import backend
from tinygpt.__main__ import EXERCISES as FOLDER
from tinygpt.errors import InvalidInput, MissingFile

spec = importlib.util.spec_from_file_location("check", FOLDER / "check.py")
checker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(checker)
check, exercises, main = checker.check, checker.exercises, checker.main

pytestmark = pytest.mark.skipif(backend.name != "numpy", reason="the exercises are written in NumPy")

# Exercise -> (inputs whose gradient is wrong, inputs whose gradient is right)
WRONG = {
    1: ("x", ""), 2: ("b", "a"), 3: ("b", "x"), 4: ("x", ""), 5: ("x", ""), 6: ("x", ""),
    7: ("weight", ""), 8: ("x", ""), 9: ("v", "qk"), 10: ("z", ""), 11: ("x", ["weight"]), 12: ("gate", ["up"]),
    13: ("x", ""),
}  # fmt: skip

# Exercise whose function breaks laws -> (a law that does not hold, one that does)
LAWS = {
    14: ("sum of each row", "weights of later tokens"), 15: ("output of each token", "tokens in the cache"),
    16: ("loss of ones of 2 and 10 tokens", "loss of three equal ones"), 17: ("largest rate, in peaks", "last rate"),
    18: ("h.0.ln_1.weight", "wte.weight"), 19: ("norm with a tied output layer", "norm with one of the same numbers"),
    20: ("share of each token, k = 3", "share of each token, k = 6"), 21: ("tokens that are in both parts", "tokens of a window"),
    22: ("first move, for any gradient", None), 23: ("gradient on each of 2 ranks", "gradient on each of 1 ranks"),
}  # fmt: skip


def test_exercises_each_with_a_solution_and_a_line_in_the_readme():
    found = exercises()
    assert list(found) == [*WRONG, *LAWS]
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
        rf"^gradient of {wrong} \([\d, ]+\): wrong in \d+ of \d+ elements.*worst at \[[\d, ]+\]: backward says", text, re.MULTILINE
    )
    for name in right:
        assert re.search(rf"^gradient of {name} \([\d, ]+\): right$", text, re.MULTILINE)


@pytest.mark.parametrize("number", WRONG)
def test_the_solution_is_right_and_differs_in_backward_only(number):
    path = exercises()[number]
    solution = FOLDER / "solutions" / path.name
    assert check(solution, seed=1).right
    broken, fixed = (p.read_text(encoding="utf-8").partition('"""\n\n')[2].partition("def backward") for p in (path, solution))
    assert broken[0] == fixed[0] and broken[2] != fixed[2]


@pytest.mark.parametrize("number", LAWS)
def test_the_checker_names_the_law_that_does_not_hold(number, capsys):
    broken, holds = LAWS[number]
    assert main([str(number)]) == 1
    text = capsys.readouterr().out
    assert re.search(
        rf"^  {re.escape(broken)}: (wrong in \d+ of \d+ numbers; worst at \[[\d, ]+\]: )?[-.\de]+, expected [-.\de]+$", text, re.MULTILINE
    )
    assert holds is None or f"  {holds}: right\n" in text
    assert text.endswith("not yet\n")


@pytest.mark.parametrize("number", LAWS)
def test_the_solution_keeps_the_laws_and_differs_in_the_function_only(number):
    path = exercises()[number]
    solution = FOLDER / "solutions" / path.name
    assert all(check(solution, seed=seed).right and not check(path, seed=seed).right for seed in range(3))
    broken, fixed = (p.read_text(encoding="utf-8").partition('"""\n\n')[2].partition("def laws") for p in (path, solution))
    assert broken[0] != fixed[0] and broken[2] == fixed[2]


def test_other_faults_of_functions_are_found_and_laws_are_the_solutions(tmp_path, capsys):
    """Changed laws do not count, a function that does not run says so, another right function is right."""
    wrong = {
        "14_mask.py": ("return np.tril(p)", "p = np.tril(p, -1)\n    return p / np.maximum(p.sum(axis=1, keepdims=True), 1e-9)"),
        "18_decay.py": ("- lr * decay * w for", "- lr * decay * w * (w.ndim == 1) for"),
        "19_tied.py": ("in gradients.values()", "in {g.tobytes(): g for g in gradients.values()}.values()"),
        "21_split.py": ("order = rng.permutation(len(windows))", "order = np.arange(len(windows))"),
        "22_bias_correction.py": ("(1 - beta1 ** (t + 1))) + eps", "(1 - beta2)) + eps"),
        "23_all_reduce.py": ("return [total.copy() for _ in gradients]", "return [total / len(gradients)] * len(gradients)"),
        "16_average.py": ("return np.mean(", "return np.means("),
    }
    for name, (old, new) in wrong.items():
        text = (FOLDER / name).read_text(encoding="utf-8")
        assert old in text
        (tmp_path / name).write_text(text.replace(old, new), encoding="utf-8")
        assert not check(tmp_path / name).right, name
    assert "AttributeError" in "\n".join(check(tmp_path / "16_average.py").lines)
    text = (FOLDER / "16_average.py").read_text(encoding="utf-8")
    (tmp_path / "16_average.py").write_text(
        text.partition("def laws")[0] + "def laws(loss, rng):\n    return {'all': (1, 1)}\n", encoding="utf-8"
    )
    assert not check(tmp_path / "16_average.py").right
    right = text.replace("np.mean([nats.mean() for nats in micro_batches])", "np.concatenate(micro_batches).mean()")
    (tmp_path / "16_average.py").write_text(right, encoding="utf-8")
    assert main(["16", "--folder", str(tmp_path)]) == 0 and capsys.readouterr().out.endswith("fixed: every law holds\n")


def test_fixing_a_file_changes_the_answer(tmp_path, capsys):
    for path in exercises().values():
        shutil.copy(path, tmp_path)
    assert main(["1", "--folder", str(tmp_path)]) == 1
    assert "not yet" in capsys.readouterr().out
    file = tmp_path / "01_tanh.py"
    file.write_text(file.read_text(encoding="utf-8").replace("(1 - y)", "(1 - y * y)"), encoding="utf-8")
    assert main(["1", "--folder", str(tmp_path)]) == 0
    assert "fixed: every gradient is right" in capsys.readouterr().out
    assert main(["--folder", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert " 1  fixed   tanh " in out and out.endswith(f"1 of {len(WRONG) + len(LAWS)} fixed\n")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("return dy * (1 - y)", "dy *= 1 - y * y\n        return dy", "backward wrote into dy"),
        ("return dy * (1 - y)", "y *= y\n        return dy * (1 - y)", "backward wrote into a saved array"),
        (
            "return dy * (1 - y)",
            "return (dy * (1 - y))[:1]",
            "backward returned shape (1, 4), float64, expected the input's own, (3, 4), float64",
        ),
        ("return dy * (1 - y)", "return dy * undefined", "NameError"),
        ("return dy * (1 - y)", "return None", "backward returned None, expected an array"),
        ("return dy * (1 - y)", "return dy * (1 - y", "SyntaxError"),
        ("return dy * (1 - y)", "return dy * float('nan')", "wrong in 12 of 12 elements"),
    ],
)
def test_mistakes_on_the_way_are_told_clearly(tmp_path, old, new, message):
    text = exercises()[1].read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "01_tanh.py").write_text(text.replace(old, new), encoding="utf-8")
    verdict = check(tmp_path / "01_tanh.py")
    assert not verdict.right and message in "\n".join(verdict.lines)


def test_unknown_numbers_and_empty_folders(tmp_path):
    with pytest.raises(InvalidInput, match="exercise: 24, expected one of 1 to 23"):
        main(["24"])
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


# Bodies of backward. Exercise -> wrong ones, by what is wrong with them.
WRONG_SOLUTIONS = {
    1: {
        "sign": "return -dy * (1 - y * y)",
        "no dy": "return 1 - y * y",
        "an axis more": "return (dy * (1 - y * y))[None]",
        "two axes more": "return np.stack([dy * (1 - y * y) / 2] * 2)",
        "transposed": "return (dy * (1 - y * y)).T",
        "writes into dy": "dy *= 1 - y * y\n        return dy",
        "writes into saved": "y *= -y\n        y += 1\n        return dy * y",
        "a list": "return (dy * (1 - y * y)).tolist()",
        "a tensor": "return ag.Tensor(dy * (1 - y * y))",
        "always float64": "return dy * (1 - y * y).astype(np.float64)",
        "always float32": "return (dy * (1 - y * y)).astype(np.float32)",
        "one gradient too many": "return dy * (1 - y * y), dy",
        "a small error": "return dy * (1 - y * y) * 1.0001",
        "one element": "dx = dy * (1 - y * y)\n        dx[0, 0] = 0\n        return dx",
        "only in float64": "return dy * (1 - y * y) if dy.dtype == np.float64 else dy",
    },
    2: {
        "factor not transposed": "a, b = saved\n        return dy @ b, a.T @ dy",
        "order": "a, b = saved\n        return b.T @ dy, a.T @ dy",
        "result transposed": "a, b = saved\n        return dy @ b.T, dy.T @ a",
        "sign": "a, b = saved\n        return dy @ b.T, -a.T @ dy",
        "swapped": "a, b = saved\n        return a.T @ dy, dy @ b.T",
        "element by element": "a, b = saved\n        return dy * b, a * dy",
        "an axis more": "a, b = saved\n        return (dy @ b.T)[None], a.T @ dy",
        "sum left to others": "a, b = saved\n        return dy[:, None, :] * b, a.T @ dy",
        "outer products": "a, b = saved\n        return dy @ b.T, a[:, :, None] * dy[:, None, :]",
        "writes into a factor": "a, b = saved\n        da = dy @ b.T\n        db = a.T @ dy\n        a[...] = 0\n        return da, db",
        "one gradient": "a, b = saved\n        return dy @ b.T",
        "None": "a, b = saved\n        return dy @ b.T, None",
    },
    3: {
        "no sum": "return dy, dy",
        "sum over one axis": "return dy, dy.sum(axis=0)",
        "axes kept": "return dy, dy.sum(axis=(0, 1), keepdims=True)",
        "one axis kept": "return dy, dy.sum(axis=(0, 1))[None]",
        "mean": "return dy, dy.mean(axis=(0, 1))",
        "mean over one axis": "return dy, dy.mean(axis=0).sum(axis=0)",
        "other axes": "return dy, dy.sum(axis=(1, 2))",
        "sum of all": "return dy, dy.sum() * np.ones(4)",
        "sign": "return -dy, dy.sum(axis=(0, 1))",
        "swapped": "return dy.sum(axis=(0, 1)), dy",
        "always float64": "return dy, dy.sum(axis=(0, 1), dtype=np.float64)",
        "dx an axis more": "return dy[None], dy.sum(axis=(0, 1))",
        "writes into dy": "db = dy.sum(axis=(0, 1))\n        dy *= 1\n        dy += 1\n        return dy - 1, db",
    },
    4: {
        "factor 2": "return dy[:, None] * deviation / deviation.shape[1]",
        "rows": "return dy[:, None] * 2 * deviation / len(deviation)",
        "sample variance": "return dy[:, None] * 2 * deviation / (deviation.shape[1] - 1)",
        "sign": "return -dy[:, None] * 2 * deviation / deviation.shape[1]",
        "no dy": "return 2 * deviation / deviation.shape[1]",
        "an axis more": "return (dy[:, None] * 2 * deviation / deviation.shape[1])[None]",
        "transposed": "return (dy[:, None] * 2 * deviation / deviation.shape[1]).T",
        "summed dy": "return dy.sum() * 2 * deviation / deviation.shape[1]",
        "writes into saved": "deviation *= 2 / deviation.shape[1]\n        return dy[:, None] * deviation",
        "always float64": "return dy[:, None] * np.float64(2) * deviation / deviation.shape[1]",
    },
    5: {
        "sum over the other axis": "return y * (dy - (dy * y).sum(axis=0, keepdims=True))",
        "sum over all": "return y * (dy - (dy * y).sum())",
        "mean": "return y * (dy - (dy * y).mean(axis=1, keepdims=True))",
        "sign": "return y * ((dy * y).sum(axis=1, keepdims=True) - dy)",
        "dy alone in the sum": "return y * (dy - dy.sum(axis=1, keepdims=True))",
        "log_softmax": "return dy - y * dy.sum(axis=1, keepdims=True)",
        "no y": "return dy - (dy * y).sum(axis=1, keepdims=True)",
        "an axis more": "return (y * (dy - (dy * y).sum(axis=1, keepdims=True)))[None]",
        "the Jacobian's terms": "j = y[:, :, None] * (np.eye(4, dtype=y.dtype) - y[:, None, :])\n        return (dy[:, :, None] * j).transpose(1, 0, 2)",
        "writes into dy": "dy -= (dy * y).sum(axis=1, keepdims=True)\n        return y * dy",
        "writes into y": "y *= dy - (dy * y).sum(axis=1, keepdims=True)\n        return y",
    },
    6: {
        "no second term": "x, t = saved\n        return dy * (1 + t) / 2",
        "no first term": "x, t = saved\n        return dy * x * (1 - t * t) * S * (1 + 3 * C * x * x) / 2",
        "sign of the second": "x, t = saved\n        return dy * ((1 + t) / 2 - x * (1 - t * t) * S * (1 + 3 * C * x * x) / 2)",
        "square missing": "x, t = saved\n        return dy * ((1 + t) / 2 + x * (1 - t) * S * (1 + 3 * C * x * x) / 2)",
        "no S": "x, t = saved\n        return dy * ((1 + t) / 2 + x * (1 - t * t) * (1 + 3 * C * x * x) / 2)",
        "no dy": "x, t = saved\n        return (1 + t) / 2 + x * (1 - t * t) * S * (1 + 3 * C * x * x) / 2",
        "writes into x": "x, t = saved\n        s = S * (1 + 3 * C * x * x)\n        x *= (1 - t * t) * s / 2\n        return dy * ((1 + t) / 2 + x)",
        "always float64": "x, t = saved\n        s = np.sqrt(2 / np.pi) * (1 + 3 * C * x * x)\n        return dy * ((1 + t) / 2 + x * (1 - t * t) * s / 2)",
        "an axis more": "x, t = saved\n        return (dy * ((1 + t) / 2 + x * (1 - t * t) * S * (1 + 3 * C * x * x) / 2))[None]",
    },
    7: {
        "assignment": "d = np.zeros(saved[0], dtype=dy.dtype)\n        d[saved[1]] = dy\n        return d, None",
        "the rows alone": "return dy, None",
        "always float64": "d = np.zeros(saved[0])\n        np.add.at(d, saved[1], dy)\n        return d, None",
        "as many rows as ids": "d = np.zeros_like(dy)\n        np.add.at(d, saved[1], dy)\n        return d, None",
        "mean of the uses": "d = np.zeros(saved[0], dtype=dy.dtype)\n        np.add.at(d, saved[1], dy)\n        d[0] /= 2\n        return d, None",
        "sign": "d = np.zeros(saved[0], dtype=dy.dtype)\n        np.subtract.at(d, saved[1], dy)\n        return d, None",
        "one-hot not transposed": "e = np.eye(5, dtype=dy.dtype)[saved[1]]\n        return e @ np.concatenate([dy, dy[:1]]), None",
        "per use": "e = np.eye(5, dtype=dy.dtype)[saved[1]]\n        return e[:, :, None] * dy[:, None, :], None",
        "sorts the ids": "d = np.zeros(saved[0], dtype=dy.dtype)\n        np.add.at(d, saved[1], dy)\n        saved[1].sort()\n        return d, None",
        "one gradient": "d = np.zeros(saved[0], dtype=dy.dtype)\n        np.add.at(d, saved[1], dy)\n        return d",
    },
    8: {
        "no mean of dn": "n, r = saved\n        return r * (dn - n * (dn * n).mean(axis=1, keepdims=True))",
        "no second mean": "n, r = saved\n        return r * (dn - dn.mean(axis=1, keepdims=True))",
        "sums": "n, r = saved\n        return r * (dn - dn.sum(axis=1, keepdims=True) - n * (dn * n).sum(axis=1, keepdims=True))",
        "other axis": "n, r = saved\n        return r * (dn - dn.mean(axis=0, keepdims=True) - n * (dn * n).mean(axis=0, keepdims=True))",
        "sign": "n, r = saved\n        return r * (dn - dn.mean(axis=1, keepdims=True) + n * (dn * n).mean(axis=1, keepdims=True))",
        "no r": "n, r = saved\n        return dn - dn.mean(axis=1, keepdims=True) - n * (dn * n).mean(axis=1, keepdims=True)",
        "by C - 1": "n, r = saved\n        return r * (dn - dn.mean(axis=1, keepdims=True) - n * (dn * n).sum(axis=1, keepdims=True) / 3)",
        "writes into n": "n, r = saved\n        n *= (dn * n).mean(axis=1, keepdims=True)\n        return r * (dn - dn.mean(axis=1, keepdims=True) - n)",
        "an axis more": "n, r = saved\n        return (r * (dn - dn.mean(axis=1, keepdims=True) - n * (dn * n).mean(axis=1, keepdims=True)))[None]",
    },
    9: {
        "no scale": "q, k, v, p = saved\n        dp = dy @ v.T\n        ds = p * (dp - (dp * p).sum(axis=1, keepdims=True))\n        return ds @ k, ds.T @ q, p.T @ dy",
        "scale by T": "q, k, v, p = saved\n        dp = dy @ v.T\n        ds = p * (dp - (dp * p).sum(axis=1, keepdims=True)) / math.sqrt(len(q))\n        return ds @ k, ds.T @ q, p.T @ dy",
        "dk transposed": "q, k, v, p = saved\n        dp = dy @ v.T\n        ds = p * (dp - (dp * p).sum(axis=1, keepdims=True)) / math.sqrt(q.shape[1])\n        return ds @ k, ds @ q, p.T @ dy",
        "dv transposed": "q, k, v, p = saved\n        dp = dy @ v.T\n        ds = p * (dp - (dp * p).sum(axis=1, keepdims=True)) / math.sqrt(q.shape[1])\n        return ds @ k, ds.T @ q, p @ dy",
        "sum over queries": "q, k, v, p = saved\n        dp = dy @ v.T\n        ds = p * (dp - (dp * p).sum(axis=0, keepdims=True)) / math.sqrt(q.shape[1])\n        return ds @ k, ds.T @ q, p.T @ dy",
        "swapped": "q, k, v, p = saved\n        dp = dy @ v.T\n        ds = p * (dp - (dp * p).sum(axis=1, keepdims=True)) / math.sqrt(q.shape[1])\n        return ds.T @ q, ds @ k, p.T @ dy",
        "dv first, then into p": "q, k, v, p = saved\n        dv = p.T @ dy\n        dp = dy @ v.T\n        p *= (dp - (dp * p).sum(axis=1, keepdims=True)) / math.sqrt(q.shape[1])\n        return p @ k, p.T @ q, dv",
        "writes into q": "q, k, v, p = saved\n        dp = dy @ v.T\n        ds = p * (dp - (dp * p).sum(axis=1, keepdims=True))\n        q /= math.sqrt(q.shape[1])\n        return ds @ k / math.sqrt(q.shape[1]), ds.T @ q, p.T @ dy",
        "always float64": "q, k, v, p = saved\n        dp = dy @ v.T\n        ds = p * (dp - (dp * p).sum(axis=1, keepdims=True)) / np.sqrt(q.shape[1])\n        return ds @ k, ds.T @ q, p.T @ dy",
    },
    10: {
        "ignored rows": "p, targets, counted = saved\n        dz = p.copy()\n        rows = np.flatnonzero(counted)\n        dz[rows, targets[rows]] -= 1\n        dz *= dloss / counted.sum()\n        return dz, None",
        "divided by all": "p, targets, counted = saved\n        dz = p * counted[:, None]\n        rows = np.flatnonzero(counted)\n        dz[rows, targets[rows]] -= 1\n        dz *= dloss / len(targets)\n        return dz, None",
        "divided by the classes": "p, targets, counted = saved\n        dz = p * counted[:, None]\n        rows = np.flatnonzero(counted)\n        dz[rows, targets[rows]] -= 1\n        dz *= dloss / p.shape[1]\n        return dz, None",
        "-100 as an index": "p, targets, counted = saved\n        dz = p.copy()\n        dz[np.arange(len(targets)), targets % 4] -= 1\n        dz *= counted[:, None] * (-dloss / counted.sum())\n        return dz, None",
        "no dloss": "p, targets, counted = saved\n        dz = p * counted[:, None]\n        rows = np.flatnonzero(counted)\n        dz[rows, targets[rows]] -= 1\n        return dz / int(counted.sum()), None",
        "writes into p": "p, targets, counted = saved\n        rows = np.flatnonzero(counted)\n        p[rows, targets[rows]] -= 1\n        p *= counted[:, None] * (dloss / counted.sum())\n        return p, None",
        "an axis more": "p, targets, counted = saved\n        dz = p * counted[:, None]\n        rows = np.flatnonzero(counted)\n        dz[rows, targets[rows]] -= 1\n        dz *= dloss / counted.sum()\n        return dz[None], None",
        "always float64": "p, targets, counted = saved\n        dz = p * counted[:, None]\n        rows = np.flatnonzero(counted)\n        dz[rows, targets[rows]] -= 1\n        return dz * (dloss / counted.sum()), None",
        "changes the targets": "p, targets, counted = saved\n        dz = p * counted[:, None]\n        rows = np.flatnonzero(counted)\n        dz[rows, targets[rows]] -= 1\n        dz *= dloss / counted.sum()\n        targets[~counted] = 0\n        return dz, None",
    },
    13: {
        "A held constant": "x, a = saved\n        return 1.5 * dy - 0.5 * (a @ dy)",
        "the other half": "x, a = saved\n        return 1.5 * dy - 0.5 * (a @ dy) - 0.5 * (x @ dy.T @ x)",
        "twice the same": "x, a = saved\n        return 1.5 * dy - 0.5 * (a @ dy) - dy @ x.T @ x",
        "the derivative for a number": "x, a = saved\n        return 1.5 * dy - 1.5 * (a @ dy)",
        "always float64": "x, a = saved\n        da = -np.float64(0.5) * (dy @ x.T)\n        return 1.5 * dy - 0.5 * (a @ dy) + (da + da.T) @ x",
        "writes into dy": "x, a = saved\n        da = -0.5 * (dy @ x.T)\n        da = (da + da.T) @ x - 0.5 * (a @ dy)\n        dy *= 1.5\n        return dy + da",
    },
}  # fmt: skip

# Other ways to write a right one: the checker must not be narrower than the formula.
RIGHT_SOLUTIONS = {
    1: "return dy / np.cosh(np.arctanh(y)) ** 2",
    2: "a, b = saved\n        return (b @ dy.T).T, np.einsum('ni,nj->ij', a, dy)",
    3: "return dy.copy(), dy.reshape(-1, dy.shape[-1]).sum(axis=0)",
    4: "return np.einsum('n,nc->nc', dy, deviation) * (2 / deviation.shape[1])",
    5: "j = y[:, :, None] * (np.eye(4, dtype=y.dtype) - y[:, None, :])\n        return np.einsum('ni,nij->nj', dy, j)",
    6: "x, t = saved\n        return dy * (1 + t) / 2 * (1 + x * (1 - t) * S * (1 + 3 * C * x * x))",
    7: "return np.eye(saved[0][0], dtype=dy.dtype)[saved[1]].T @ dy, None",
    8: "n, r = saved\n        c = n.shape[1]\n        return r / c * (c * dn - dn.sum(axis=1)[:, None] - n * (dn * n).sum(axis=1)[:, None])",
    9: "q, k, v, p = saved\n        dp = dy @ v.T\n        y = p @ v\n        ds = p * (dp - (dy * y).sum(axis=1)[:, None]) / math.sqrt(q.shape[1])\n        return ds @ k, (q.T @ ds).T, p.T @ dy",
    10: "p, targets, counted = saved\n        w = (np.arange(p.shape[1]) == targets[:, None])\n        return (p - w) * counted[:, None] * dloss / int(counted.sum()), None",
    13: "x, a = saved\n        return 1.5 * dy - 0.5 * (dy @ x.T @ x + x @ dy.T @ x + x @ x.T @ dy)",
}  # fmt: skip


def with_backward(tmp_path, number, body):
    """The exercise's file with another body of backward."""
    text = (FOLDER / "solutions" / exercises()[number].name).read_text(encoding="utf-8")
    start, signature, rest = re.split(r"(    def backward\(.*\):\n)", text)
    path = tmp_path / exercises()[number].name
    start = start if "import numpy" in start else start.replace("import autograd", "import numpy as np\n\nimport autograd")
    path.write_text(f"{start}{signature}        {body}\n\n\ndef inputs{rest.partition('def inputs')[2]}", encoding="utf-8")
    return path


@pytest.mark.parametrize(("number", "fault"), [(n, fault) for n, wrong in WRONG_SOLUTIONS.items() for fault in wrong])
def test_wrong_solutions_are_rejected(tmp_path, number, fault):
    verdict = check(with_backward(tmp_path, number, WRONG_SOLUTIONS[number][fault]))
    text = "\n".join(verdict.lines)
    assert not verdict.right
    assert "does not run" not in text or "gradients, expected" in text, text  # wrong for the reason that it is here for


@pytest.mark.parametrize("number", RIGHT_SOLUTIONS)
def test_other_right_solutions_are_accepted(tmp_path, number):
    verdict = check(with_backward(tmp_path, number, RIGHT_SOLUTIONS[number]))
    assert verdict.right, verdict.lines


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("y = np.tanh(x)", "y = np.sqrt(x * x + 1)"),
        ("y = np.tanh(x)", "y = np.tanh(x) * 1.001"),
        ('{"x": rng.standard_normal((3, 4))}', '{"x": np.zeros((3, 4))}'),
        ('{"x": rng.standard_normal((3, 4))}', '{"x": rng.standard_normal((1, 4))}'),
    ],
)
def test_only_backward_may_change(tmp_path, old, new):
    text = (FOLDER / "solutions" / "01_tanh.py").read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "01_tanh.py").write_text(text.replace(old, new), encoding="utf-8")
    assert check(tmp_path / "01_tanh.py").lines == [
        "forward or inputs() computes something else than at first, expected a change in backward alone"
    ]
