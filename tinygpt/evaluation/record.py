"""Finished items on the disk, so that an evaluation that was stopped continues: evaluation.jsonl, a line each."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tinygpt.errors import InvalidInput
from tinygpt.evaluation.items import Task
from tinygpt.evaluation.scores import SCORED, Done, Kept
from tinygpt.storage.checked_json import Json, read_text


def _finite(value: Json) -> float:
    """The number. Raises ValueError for one that is not finite, TypeError for what is none."""
    if not math.isfinite(number := float(value)):
        raise ValueError(f"{value}, expected a finite number")
    return number


class Record:
    """The items of one model. Lines {"model", "key", "item", "values", "cut", "answer"} and {"model", "key", "seconds"}; a line that a crash has
    cut, or that is of another form or holds numbers that are not finite, is left out, and its item is scored again.

    model   says which weights were scored: other ones are another model
    """

    def __init__(self, path: Path, model: str) -> None:
        self.path, self.model = path, model
        self._items: dict[str, dict[int, Kept]] = {}
        self._seconds: dict[str, float] = {}
        try:
            lines = read_text(path).splitlines() if path.is_file() else []
        except InvalidInput as error:
            raise InvalidInput(f"{error}; it holds the finished items of earlier evaluations: restore or remove it") from None
        for line in lines:
            try:
                self._read(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
                continue

    def _read(self, entry: Json) -> None:
        if entry["model"] != self.model:
            return
        if "item" in entry:
            values = {str(name): _finite(value) for name, value in entry["values"].items()}
            kept = Kept(values, str(entry.get("answer", "")), bool(entry.get("cut", False)))
            self._items.setdefault(entry["key"], {})[entry["item"]] = kept
        else:
            self._seconds[entry["key"]] = self._seconds.get(entry["key"], 0.0) + _finite(entry["seconds"])

    def items(self, key: str, task: Task) -> dict[int, Kept]:
        """Those that are finished, by number. Left out is what the task does not have: numbers of other items, values of other names."""
        names, n = SCORED[task.kind], len(task.items)
        found = self._items.get(key, {}).items()
        return {i: kept for i, kept in found if type(i) is int and 0 <= i < n and kept.values.keys() == names}

    def seconds(self, key: str) -> float:
        """What they took, in all calls together."""
        return self._seconds.get(key, 0.0)

    @contextmanager
    def adding(self, key: str) -> Iterator[Done]:
        """Within the block, what it gives keeps an item; the time is kept however the block ends."""
        started = time.perf_counter()
        with self.path.open("a", encoding="utf-8") as file:

            def write(entry: dict[str, Json]) -> None:
                file.write(json.dumps({"model": self.model, "key": key, **entry}) + "\n")
                file.flush()

            def keep(number: int, kept: Kept) -> None:
                write(
                    {"item": number, "values": kept.values}
                    | ({"answer": kept.answer} if kept.answer else {})
                    | ({"cut": True} if kept.cut else {})
                )

            file.write("\n" if file.tell() and not self.path.read_bytes().endswith(b"\n") else "")  # after a line that was cut
            try:
                yield keep
            finally:
                seconds = time.perf_counter() - started
                self._seconds[key] = self.seconds(key) + seconds
                write({"seconds": seconds})
