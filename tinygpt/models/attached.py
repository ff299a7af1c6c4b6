"""Methods that layers above give to a model, as ops are given to `Tensor`: the model names none of them, and imports none of them.

`tinygpt/__init__.py` says where each stands; the module is imported when the method is first used.
"""

import importlib

HOMES: dict[str, str] = {}
"""Method -> "module:function" that implements it; architecture of a checkpoint -> "module:class" with a class method `from_checkpoint`."""


class Attached:
    """A method whose function stands in a layer above: `generate = Attached()` in the class takes `HOMES["generate"]`.

    to_class   a class method
    """

    def __init__(self, to_class: bool = False) -> None:
        self.to_class = to_class

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: object, owner: type | None = None) -> object:
        module, function = HOMES[self.name].split(":")
        return getattr(importlib.import_module(module), function).__get__(owner if self.to_class else instance, owner)
