"""What the files around a vocabulary say: tokens that were added to it, and the parts that tokens play."""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as _short  # repr, cut to what an error message can hold

from tinygpt.data.conventions import Convention
from tinygpt.data.tokenizer import END_OF_TEXT, check_text
from tinygpt.errors import InvalidInput
from tinygpt.storage.checked_json import Json


@dataclass
class Added:
    """What files say of tokens that another program added to a vocabulary, and of the part that tokens play (`eos_token`).

    late       those to look for after the others
    lstrip     those that take white space before them
    trimmed    those that take white space around them, or stand between words only; and the file that says so
    """

    special: dict[str, int] = field(default_factory=dict)
    added: dict[str, int] = field(default_factory=dict)
    late: set[str] = field(default_factory=set)
    lstrip: set[str] = field(default_factory=set)
    roles: dict[str, str] = field(default_factory=dict)
    trimmed: dict[str, Path] = field(default_factory=dict)

    def end_among(self, special: Collection[str]) -> str:
        """The special token that ends a text: the one named for it, or an encoder's separator, else <|endoftext|>."""
        named = (self.roles.get(role, "") for role in ("eos_token", "sep_token"))
        return next((token for token in named if token in special), END_OF_TEXT)

    def assume(self, convention: Convention) -> None:
        """Roles that the files leave to the class of tokenizers."""
        self.roles = convention.roles | self.roles
        self.lstrip |= {self.roles[role] for role in convention.lstrip}


def read_added(directory: Path, data: dict[str, dict[str, Json]]) -> Added:
    """Tokens that were added to the vocabulary. One that is only named, without an id anywhere, is left out: no model was trained on it."""
    found = Added()
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        for role, value in data.get(file, {}).items():
            text = value.get("content") if isinstance(value, dict) else value
            if role.endswith("_token") and isinstance(text, str):
                found.roles[role] = text

    def listed(file: str, key: str, kind: type) -> Json:
        value = data.get(file, {}).get(key) or kind()
        if not isinstance(value, kind):
            raise InvalidInput(
                f"{directory / file}: {key} is a {type(value).__name__}, expected a {kind.__name__}; this is no tokenizer file"
            )
        return value

    named = ("special_tokens_map.json", "tokenizer_config.json")
    more = [value for file in named for value in listed(file, "additional_special_tokens", list)]
    special = [*found.roles.values(), *(value.get("content") if isinstance(value, dict) else value for value in more)]
    entries: list[tuple[str, Json]] = [("tokenizer.json", entry) for entry in listed("tokenizer.json", "added_tokens", list)]
    for id, entry in listed("tokenizer_config.json", "added_tokens_decoder", dict).items():
        entries.append(("tokenizer_config.json", {"id": int(id), **entry} if isinstance(entry, dict) and id.isdecimal() else entry))
    entries += [("added_tokens.json", {"content": text, "id": id}) for text, id in data.get("added_tokens.json", {}).items()]
    for path, entry in ((directory / file, entry) for file, entry in entries):
        text, id = (entry.get("content"), entry.get("id")) if isinstance(entry, dict) else (None, None)
        if not isinstance(text, str) or type(id) is not int:
            raise InvalidInput(f"{path}: added token {_short(entry)}, expected one with content and id; restore the file")
        check_text(str(path), text)
        if any(known.get(text, id) != id for known in (found.special, found.added)):
            raise InvalidInput(f"{path}: id {id} for {text!r}, expected the same as in the other files; restore them")
        is_special = bool(entry.get("special")) or text in special
        if entry.get("rstrip") or entry.get("single_word") or (entry.get("lstrip") and not is_special):
            found.trimmed[text] = path
        elif entry.get("lstrip"):
            found.lstrip.add(text)
        if text not in found.special and text not in found.added and entry.get("normalized", not is_special):
            found.late.add(text)
        (found.special if is_special else found.added)[text] = id
    return found


def check_vocabulary(path: Path, vocabulary: Json, more: Added) -> dict[str, int]:
    """A file's vocabulary with the tokens that were added to it. The ids must be 0, 1, 2, ..., in any order."""
    if not isinstance(vocabulary, dict) or not vocabulary:
        raise InvalidInput(f"{path}: {_short(vocabulary)}, expected a vocabulary that maps tokens to ids; this is no tokenizer file")
    for token, id in vocabulary.items():
        check_text(str(path), token)
        if type(id) is not int:
            raise InvalidInput(f"{path}: id {_short(id)} for {_short(token)}, expected an integer; this is no tokenizer file")
    whole = vocabulary | more.special | more.added
    for expected, (token, id) in enumerate(sorted(whole.items(), key=lambda item: item[1])):
        if id != expected or vocabulary.get(token, id) != id:
            raise InvalidInput(f"{path}: id {_short(id)} for {_short(token)}, expected {expected} (ids are 0, 1, 2, ...); restore the file")
    return whole
