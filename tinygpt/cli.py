"""What the example scripts share: flags from dataclasses, errors in one line, reports, prompts, and progress in a terminal or in plain lines."""

import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from autograd import backend
from tinygpt.runs.settings import check_changes, stored_settings
from tinygpt.training.metrics import Metrics, Result

Config = TypeVar("Config")


def flags(default: Config, description: str | None, argv: list[str] | None = None) -> Config:
    """Reads the command line into a copy of the dataclass `default`; nested fields become plain flags.

    An unknown flag ends the program with exit code 2 and a suggestion, --help with a list of all flags and defaults.
    """
    import tyro

    return tyro.cli(type(default), args=argv, default=default, description=description, config=(tyro.conf.OmitArgPrefixes,))


def settings(default: Config, description: str | None, argv: list[str] | None = None) -> Config:
    """As `flags`, for a script that trains: with --resume RUN, flags that are not given are the run's own.

    Raises ValueError for a flag that contradicts the run, naming both values and what may change; FileNotFoundError without that run.
    """
    argv = sys.argv[1:] if argv is None else argv
    run = _value_of("--resume", argv)
    if not run:
        return flags(default, description, argv)
    stored = stored_settings(type(default), run)
    config = flags(stored, description, argv)
    check_changes(stored, config)
    return config


def _value_of(flag: str, argv: list[str]) -> str:
    """The value that a flag is given on the command line, before the rest is parsed."""
    for i, argument in enumerate(argv):
        if argument == flag and i + 1 < len(argv):
            return argv[i + 1]
        if argument.startswith(f"{flag}="):
            return argument.removeprefix(f"{flag}=")
    return ""


def run(main: Callable[[], Any]) -> None:
    """Runs a script's main function: a user's error becomes one line on standard error and exit code 1, Ctrl-C exit code 130."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character shows a "?" instead of failing
    warnings.showwarning = _show_warning
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, TypeError, OSError, ImportError, ArithmeticError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except backend.out_of_memory_errors as error:
        print(f"error: {backend.memory_message(error)}", file=sys.stderr)
        sys.exit(1)


def _show_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
    """A warning in one line, without the place in the code that it comes from."""
    print(f"warning: {message}", file=sys.stderr)


def table(title: str, rows: dict[str, Any]) -> str:
    """A two-column list as text."""
    width = max(len(key) for key in rows)
    return "\n".join([title, *(f"  {key:<{width}}  {value}" for key, value in rows.items())])


class Report:
    """What a script has to say of its run: printed at once, and kept for a file."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def say(self, text: str) -> None:
        print("\n" + text)
        self.parts.append(text)

    def write(self, path: Path) -> None:
        path.write_text("\n\n".join(self.parts) + "\n", encoding="utf-8")


def end_if_interrupted(result: Result, what_now: str) -> None:
    """Ends the program with 128 + the signal's number if that ended the training, or with 0 after `stop_at`; says what can be done now."""
    if result.interrupted:
        print(what_now)
        sys.exit(128 + result.signal if result.signal else 0)


def typed_lines() -> Iterator[str]:
    """What is typed at a prompt, line by line, until an empty line or the end of the input (Ctrl-D)."""
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return
        if not line:
            return
        yield line


class Progress:
    """A `Reporter`: a live bar in a terminal, a plain line per update logged elsewhere (files, pipes, CI)."""

    def __init__(self, n_steps: int, first_step: int = 0, unit: str = "nats per token") -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self.console = Console(highlight=False, soft_wrap=True)
        self.n_steps, self.unit = n_steps, unit
        self.bar: Bar | None = None
        if self.console.is_terminal:
            self.bar = Bar(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(bar_width=None),
                TextColumn("{task.description}"),
                TimeRemainingColumn(compact=True),
                console=self.console,
            )
            self.task = self.bar.add_task("", total=n_steps, completed=first_step)

    def __enter__(self) -> "Progress":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.bar:
            self.bar.stop()

    def update(self, metrics: Metrics) -> None:
        m = metrics
        text = f"loss {m.loss_nats:.3f}  lr {m.lr:.1e}  norm {m.gradient_norm:.2f}  {m.tokens_per_s:,.0f} tokens/s"
        if self.bar:
            self.bar.update(self.task, completed=m.step, description=text)
            return
        left_s = (self.n_steps - m.step) * m.elapsed_s / m.step
        self.note(f"step {m.step:>5}/{self.n_steps}  {text}  left {_clock(left_s)}")

    def evaluated(self, step: int, validation_nats: float, best: bool) -> None:
        self.note(f"step {step:>5}/{self.n_steps}  validation {validation_nats:.4f} {self.unit}{'  best so far, saved' if best else ''}")

    def note(self, text: str) -> None:
        self.console.print(text, markup=False)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
