"""What readers of all formats give: records, and what is wrong with one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tinygpt.errors import InvalidInput
from tinygpt.storage.checked_json import Json


@dataclass(frozen=True)
class Record:
    """Fields by name. place: its position, "line 17" or "row 3", for messages and ids; "" if it is all of the file."""

    place: str
    fields: Mapping[str, Json]


class BadRecord(InvalidInput):
    """What cannot be read, and why. kind: under which it is counted."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


Report = Callable[[BadRecord], None]
"""Takes what is wrong with a record that is left out; may raise."""
