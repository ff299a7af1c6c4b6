"""The commands: `python -m tinygpt COMMAND`, or `tinygpt COMMAND` where the package is installed."""

import importlib
import runpy
import sys
from pathlib import Path

from tinygpt.cli import run
from tinygpt.errors import MissingFile, did_you_mean

EXERCISES = Path(__file__).resolve().parent.parent / "examples" / "exercises"

COMMANDS = {
    "doctor": ("tinygpt.doctor", "what this machine has and what is missing"),
    "verify": ("tinygpt.runs.verify", "are the checkpoints of a run intact and resumable?"),
    "evaluate": ("tinygpt.evaluation.command", "how good is a model? scores on tasks, with chance and intervals"),
    "judge": (
        "tinygpt.evaluation.judge_command",
        "how good are answers? a score sheet for people, raters' agreement, a judge trained here",
    ),
    "plan": ("tinygpt.planner.command", "what would training cost? memory, time, money and energy, on any number of devices"),
    "chat": ("tinygpt.chat.command", "talk to a model that has learned conversations"),
    "curate": ("tinygpt.curate.command", "from files to a corpus: filter, remove copies, redact, mix, with a report of every step"),
    "instruct": ("tinygpt.curate.generated", "new instructions and answers from a model of yours, filtered"),
    "explore": ("tinygpt.inspect.explore", "one prompt, one HTML page with every attention weight, prediction and gradient"),
    "export": ("tinygpt.runs.export", "a model as one GGUF file for llama.cpp, tokenizer included, or as safetensors in another dtype"),
    "exercise": ("", "check the exercises: which gradient is wrong, where and by how much"),
}
"""Name -> (module with a `main(argv)`, imported only when the command runs, or "": a file of the checkout; what it is for)."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command that the arguments name; the exit code."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        lines = [f"  {command:<{width}}  {purpose}" for command, (_, purpose) in COMMANDS.items()]
        print("\n".join(["usage: python -m tinygpt COMMAND ...", "", *lines, "", "python -m tinygpt COMMAND --help says more."]))
        return 0
    if name not in COMMANDS:
        print(f"error: command {name!r}, expected one of {', '.join(COMMANDS)}; {did_you_mean(name, COMMANDS)}", file=sys.stderr)
        return 2
    if name == "exercise":
        checker = EXERCISES / "check.py"
        if not checker.is_file():
            rule = "the exercises, which are in the source repository, not in the installed package"
            raise MissingFile(f"{checker}: no such file, expected {rule}; run python examples/exercises/check.py there")
        return runpy.run_path(str(checker))["main"](rest) or 0
    return importlib.import_module(COMMANDS[name][0]).main(rest) or 0


def start() -> None:
    """What `tinygpt` on the command line calls."""
    run(main)


if __name__ == "__main__":
    start()
