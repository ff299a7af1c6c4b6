"""Errors of environment variables, which are raised while a script imports us, before the script could handle them."""

import sys
from types import TracebackType
from typing import TypeVar

Error = TypeVar("Error", bound=BaseException)


def message_only(error: Error) -> Error:
    """Makes this error, if nobody catches it, print its message without a traceback, which would add nothing to it."""
    before = sys.excepthook

    def show(kind: type[BaseException], uncaught: BaseException, traceback: TracebackType | None) -> None:
        if uncaught is error:
            print(f"error: {error}", file=sys.stderr)
        else:
            before(kind, uncaught, traceback)

    sys.excepthook = show
    return error
