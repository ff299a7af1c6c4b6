"""Answers that can be checked: problems with one right answer, and rewards as pure functions of problem and answer.

    data = load_problems("letters")                        # letters to sort, made by a seed; or "arithmetic", or a file of yours
    exact(data.rows[0], "a c q x")                         # 1.0 if that is the right answer, else 0.0
    graded(exact, problems, answers)                       # (N,) rewards, each checked to be a finite number

A reward is a function (problem, answer) -> float without memory and without chance: the same answer always earns the same, which is what
makes a training with it reproducible. It sees the answer's text alone, not the model.

Source  rewards by rule instead of by a learned model: DeepSeek-AI 2025, DeepSeek-R1, arXiv:2501.12948, section 2.2.2; Lambert et al. 2024,
        Tulu 3, arXiv:2411.15124, section 6, "verifiable rewards".
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tinygpt.errors import Diverged, InvalidInput, did_you_mean
from tinygpt.finetuning.instructions import Instruction, load_instructions
from tinygpt.finetuning.rows import Data, plain

Problem = Instruction
"""What is asked (`instruction`, perhaps with an `input`) and the right answer (`output`)."""

Reward = Callable[[Problem, str], float]


def question(problem: Problem) -> str:
    """What the user says."""
    return f"{problem.instruction}\n{problem.input}" if problem.input.strip() else problem.instruction


# ---- rewards -----------------------------------------------------------------------------------------------------------------------------


def exact(problem: Problem, answer: str) -> float:
    """1 for the right answer, else 0; case and the kind of white space do not count."""
    return float(plain(answer) == plain(problem.output))


def prefix(problem: Problem, answer: str) -> float:
    """The share of the right answer's words that are given before the first wrong one, 0 to 1; words too many cost as much as words missing."""
    given, right = plain(answer).split(), plain(problem.output).split()
    n = next((i for i, (a, b) in enumerate(zip(given, right, strict=False)) if a != b), min(len(given), len(right)))
    return n / max(len(given), len(right), 1)


REWARDS: dict[str, Reward] = {"exact": exact, "prefix": prefix}


def graded(reward: Reward, problems: Sequence[Problem], answers: Sequence[str]) -> np.ndarray:
    """(N,) rewards of the answers. Raises FloatingPointError, naming problem and answer, for one that is no finite number."""
    found = np.zeros(len(problems))
    for i, (problem, answer) in enumerate(zip(problems, answers, strict=True)):
        value = reward(problem, answer)
        if not isinstance(value, int | float | np.number) or not math.isfinite(value):
            what = f"{getattr(reward, '__name__', 'reward')}: {value!r} for the answer {answer!r:.80} to {problem.instruction!r:.80}"
            raise Diverged(f"{what}, expected a finite number; correct the reward: one such value would spoil every weight")
        found[i] = value
    return found


# ---- problems ----------------------------------------------------------------------------------------------------------------------------


def letters(rng: np.random.Generator) -> tuple[Problem, str]:
    """Three to six different letters to bring into the order of the alphabet; the same letters in another order count as the same problem."""
    given = [chr(ord("a") + i) for i in rng.permutation(26)[: rng.integers(3, 7)]]
    answer = " ".join(sorted(given))
    return Problem(f"Sort the letters: {' '.join(given)}", answer), answer


def arithmetic(rng: np.random.Generator) -> tuple[Problem, str]:
    """The sum or the difference of two numbers below 50, the larger one first."""
    a, b = sorted(rng.integers(0, 50, 2).tolist(), reverse=True)
    sign, answer = ("+", a + b) if rng.random() < 0.5 else ("-", a - b)
    return Problem(f"What is {a} {sign} {b}?", str(answer)), f"{a} {sign} {b}"


PROBLEMS: dict[str, Callable[[np.random.Generator], tuple[Problem, str]]] = {"letters": letters, "arithmetic": arithmetic}
"""By name: draws a problem, and a key that is equal for problems which count as the same."""

N_PROBLEMS = 1000  # that a name stands for, before they are split


def load_problems(name_or_path: str | Path, seed: int = 0) -> Data[Problem]:
    """Problems that all differ: those of a name in `PROBLEMS`, drawn by the seed, or the rows of a file as `load_instructions` reads them.

    Raises ValueError and FileNotFoundError as `load_instructions` does.
    """
    name = str(name_or_path)
    if name not in PROBLEMS:
        if not Path(name).suffix:
            rule = f"expected {', '.join(PROBLEMS)}, or a file with questions and answers"
            raise InvalidInput(f"problems {name!r}: {rule}; {did_you_mean(name, PROBLEMS)}")
        return load_instructions(name_or_path)
    make, rng, found = PROBLEMS[name], np.random.default_rng([seed, 3]), dict[str, Problem]()
    while len(found) < N_PROBLEMS:
        problem, key = make(rng)
        found.setdefault(key, problem)
    rows = [dataclasses.replace(problem, place=f"problem {i}", group=i) for i, problem in enumerate(found.values())]
    return Data(name, rows, f"{len(rows):,} problems made by seed {seed}: {(make.__doc__ or '').strip()}")
