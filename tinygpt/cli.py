"""What scripts and commands share: flags from dataclasses, errors in one line, reports, prompts, progress in a terminal or in plain lines.

Imports neither backend nor model, so that commands can report on a backend that does not start.
"""

import argparse
import contextlib
import io
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from tinygpt.arguments import expand_home, parse_args
from tinygpt.errors import UserError
from tinygpt.fields import Config
from tinygpt.parallel.launch import abort, connect, n_started, started_rank, who

if TYPE_CHECKING:
    from tinygpt.training.metrics import Metrics, Result

_FIRST_SAYS_S = 8.0  # how long a rank waits with an error that all have: the first says it and ends the others


def settings(
    default: Config, description: str | None, argv: list[str] | None = None, *, recipes: Mapping[str, Config] | None = None,
    prog: str | None = None,
) -> Config:  # fmt: skip
    """As `parse_args`, for a script that trains: with --resume RUN, flags that are not given are the run's own.

    recipes   by name, what `--recipe NAME` takes instead of `default`
    prog      what --help calls the program, where that is no script
    Raises ValueError for a flag that contradicts the run, naming both values and what may change; FileNotFoundError without that run; ValueError
    on all ranks of `mpiexec` where one has other settings than the first: it would wait for what no other rank sends.
    """
    read = _settings_of_another_rank if started_rank() else _settings
    config = read(default, description, argv, recipes, prog)
    if n_started() > 1:
        from tinygpt.parallel.communicator import check_same, world  # here, because they import the backend
        from tinygpt.runs.settings import flat_settings

        check_same(world(), {f"--{name.replace('_', '-')}": value for name, value, _ in flat_settings(config)})
    return config


def _settings_of_another_rank(
    default: Config, description: str | None, argv: list[str] | None, recipes: Mapping[str, Config] | None, prog: str | None
) -> Config:
    """Those of a rank that leaves wrong flags, and --help, to the first."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            return _settings(default, description, argv, recipes, prog)
        except SystemExit as error:
            if error.code:
                time.sleep(_FIRST_SAYS_S)
            text = said.getvalue()
    print(text, file=sys.stderr)  # the first did not have it
    raise SystemExit(2 if text else 0)


def _settings(
    default: Config, description: str | None, argv: list[str] | None, recipes: Mapping[str, Config] | None, prog: str | None
) -> Config:
    argv = sys.argv[1:] if argv is None else argv
    from tinygpt.runs.settings import check_changes, stored_settings  # here, because it imports the backend

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--resume", nargs="?", const="", default="")
    parser.add_argument("--recipe", nargs="?", const="", default="")
    known = parser.parse_known_args(argv)[0]
    run = expand_home(known.resume)
    if not run:
        return parse_args((recipes or {}).get(known.recipe, default), description, argv, prog)
    stored = stored_settings(type(default), run)
    config = parse_args(stored, description, argv, prog)
    check_changes(stored, config)
    return config


def run(main: Callable[[], object], *, needs_reader: bool = False) -> None:
    """Runs a script's main function; if it returns an exit code, ends with that.

    A `UserError`, an error of the system and a lack of memory become one line on standard error, any other error shows its traceback
    (all of them with AUTOGRAD_DEBUG=1); exit code 1. Ctrl-C is exit code 130. Standard output may go away (`| head`, a closed terminal):
    the script continues without it, or ends like the tools of a shell if its output is all that it makes (`needs_reader`).
    """
    # A terminal that lacks a character shows a "?"; typed bytes that are no text reach the tokenizer, which says what to do.
    for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "replace"), (sys.stdin, "surrogateescape")):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=errors)
    if started_rank():  # the first rank speaks for all
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (until the end of the process)
    outputs = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Output(sys.stdout, needs_reader), _Output(sys.stderr, False)
    warnings.showwarning = lambda message, *position, **more: print(f"warning: {message}", file=sys.stderr)  # not where in the code
    try:
        if n_started() > 1:
            connect()  # all ranks at once: MPI begins when the last one is there
        status = main()
        sys.stdout.flush()
    except AgreedExit:
        raise
    except SystemExit as error:
        status = error.code  # of one rank alone: the others are told below
        if status and n_started() > 1:
            print(f"error: {who()} ends with {status}", file=sys.stderr)
    except KeyboardInterrupt:
        status = 130
    except _ReaderGone:
        status = 141  # as a program that SIGPIPE ends
    except Exception as error:
        text = _text_for_user(error)
        if text is None or os.environ.get("AUTOGRAD_DEBUG") == "1":
            if n_started() == 1:
                raise
            text = traceback.format_exc()
        which = f"{who()}: " if n_started() > 1 else ""
        if started_rank() and isinstance(error, UserError):
            time.sleep(_FIRST_SAYS_S)
        print(f"error: {which}{text}", file=sys.stderr)
        status = 1
    finally:
        with contextlib.suppress(_ReaderGone):
            _Output(outputs[0], True).flush()
        sys.stdout, sys.stderr = outputs
    if isinstance(status, int) and status and n_started() > 1:
        sys.stderr.flush()
        abort(status)  # the others would wait for this one
    if isinstance(status, int | str) and status:
        sys.exit(status)


def _text_for_user(error: Exception) -> str | None:
    """What to print instead of the traceback; None for an error that only a change of the code can fix."""
    backend = sys.modules.get("autograd.backend")
    if isinstance(error, getattr(backend, "out_of_memory_errors", MemoryError)):
        return backend.memory_message(error) if backend else "out of memory"
    from_system = isinstance(error, OSError) and error.errno is not None  # disk full, no permission, ...
    return str(error) if isinstance(error, UserError) or from_system else None


class _ReaderGone(BaseException):
    """Standard output cannot be written to, and there is nothing else to do."""


class _Output:
    """A standard stream that may go away: what is written afterwards is dropped, with one line on standard error."""

    def __init__(self, stream: TextIO, needs_reader: bool) -> None:
        self._stream, self._needs_reader = stream, needs_reader

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, call: Callable[..., object], *arguments: str) -> None:
        try:
            call(*arguments)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # what is still buffered, and all that follows, goes there
            os.close(nowhere)
            if self._needs_reader:
                raise _ReaderGone from error
            print(f"warning: {self._stream.name} is gone ({error.strerror}): continuing without it", file=sys.stderr)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def table(title: str, rows: Mapping[str, object]) -> str:
    """A two-column list as text."""
    width = max(map(len, rows), default=0)
    return "\n".join([title, *(f"  {key:<{width}}  {value}" for key, value in rows.items())])


class Report:
    """A script's report: printed at once, and kept for a file."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def say(self, text: str) -> None:
        print("\n" + text)
        self.parts.append(text)

    def write(self, path: Path) -> None:
        path.write_text("\n\n".join(self.parts) + "\n", encoding="utf-8")


class AgreedExit(SystemExit):
    """The end of all ranks: the others need not be told."""

    agreed = True  # for `tinygpt.parallel.launch`


def exit_if_interrupted(result: "Result", what_now: str) -> None:
    """Ends the program with 128 + the signal's number if that ended the training, or with 0 after `stop_at`; says why and what to do now.
    Ends all ranks but the first, which reports, in any case."""
    if result.interrupted:
        print((f"stopped by {signal.Signals(result.signal).name}; " if result.signal else "") + what_now, flush=True)
        raise AgreedExit(128 + result.signal if result.signal else 0)
    if started_rank():
        raise AgreedExit(0)


def prompt_lines() -> Iterator[str]:
    """Lines typed at a prompt, until an empty one or the end of the input (Ctrl-D)."""
    with contextlib.suppress(EOFError):
        while line := input("> ").strip():
            yield line


class Progress:
    """A `Reporter`: a live bar in a terminal, a plain line per update logged elsewhere (files, pipes, CI)."""

    def __init__(self, n_steps: int, first_step: int = 0, unit: str = "nats per token") -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self.console = Console(highlight=False, soft_wrap=True)
        self.n_steps, self.unit = n_steps, unit
        step, loss = TextColumn("step {task.completed}/{task.total}"), TextColumn("{task.description}")
        bar = Bar(step, BarColumn(bar_width=None), loss, TimeRemainingColumn(compact=True), console=self.console)
        self.bar = bar if self.console.is_terminal else None
        if self.bar:
            self.task = self.bar.add_task("", total=n_steps, completed=first_step)

    def __enter__(self) -> "Progress":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar:
            self.bar.stop()

    def update(self, metrics: "Metrics") -> None:
        m = metrics
        text = f"loss {m.loss_nats:.3f}  lr {m.lr:.1e}  norm {m.gradient_norm:.2f}  {m.tokens_per_s:,.0f} tokens/s"
        if self.bar:
            self.bar.update(self.task, completed=m.step, description=text)
        else:
            minutes, seconds = divmod(round((self.n_steps - m.step) * m.elapsed_s / m.step), 60)
            self.note(f"step {m.step:>5}/{self.n_steps}  {text}  left {minutes}:{seconds:02d}")

    def evaluated(self, step: int, validation_nats: float, best: bool) -> None:
        self.note(f"step {step:>5}/{self.n_steps}  validation {validation_nats:.4f} {self.unit}{'  best so far, saved' if best else ''}")

    def note(self, text: str) -> None:
        self.console.print(text, markup=False)
