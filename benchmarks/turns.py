"""One side of a comparison in a process of its own: two libraries in one process would fight for the cores with their thread pools."""

import multiprocessing
from collections.abc import Callable
from typing import Any

from tinygpt.errors import ProcessFailed

_context = multiprocessing.get_context("spawn")


class Side:
    """Calls make(*args) in a new process; the function that it returns answers each `ask`."""

    def __init__(self, name: str, make: Callable[..., Callable[[Any], Any]], *args: Any) -> None:
        self.name = name
        self._pipe, theirs = _context.Pipe()
        self._process = _context.Process(target=_serve, args=(theirs, make, args), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, question: Any) -> Any:
        """The answer. Raises RuntimeError if the process has died; its own error is on the screen then."""
        try:
            self._pipe.send(question)
            return self._pipe.recv()
        except (EOFError, ConnectionError):
            raise ProcessFailed(f"{self.name}: its process died, expected an answer; see its error above") from None

    def close(self) -> None:
        self._pipe.close()
        self._process.join()


def _serve(pipe: Any, make: Callable[..., Callable[[Any], Any]], args: tuple[Any, ...]) -> None:
    answer = make(*args)
    while True:
        try:
            question = pipe.recv()
        except EOFError:
            return
        pipe.send(answer(question))


if __name__ == "__main__":
    print(__doc__)
