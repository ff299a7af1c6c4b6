"""Errors meant for the user: a script prints their message alone, and shows the traceback of every other one.

Each keeps the kind of the built-in exception that callers would catch anyway.
"""

import difflib
from collections import abc


def did_you_mean(word: str, known: abc.Iterable[str], otherwise: str = "check the spelling") -> str:
    """The last part of a message: the nearest of the known words, or what to do if none is near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else otherwise


class UserError(Exception):
    """What was asked cannot be done, and the message says what was found, what was expected and what to do."""


class InvalidInput(UserError, ValueError):
    """A setting, file or argument with a value outside the rule."""


class WrongType(UserError, TypeError):
    """An argument of another type."""


class MissingFile(UserError, FileNotFoundError):
    """A file or directory that does not exist."""


class PathExists(UserError, FileExistsError):
    """A file or directory that would have to be overwritten."""


class InUse(UserError, BlockingIOError):
    """A run that another process writes to."""


class WriteFailed(UserError, OSError):
    """A file that could not be written, without an error of the system's own."""


class DownloadFailed(UserError, ConnectionError):
    """A file that could not be fetched."""


class MissingPackage(UserError, ImportError):
    """An optional library that is not installed."""


class Diverged(UserError, FloatingPointError):
    """Training or sampling met numbers that are not finite."""


class NotDeterministic(UserError, ArithmeticError):
    """Two runs of the same step gave different numbers."""


class ProcessFailed(UserError, RuntimeError):
    """A worker process that did not start, or ended early."""
