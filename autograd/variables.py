"""What the code that runs an op calls its result: `scores` in `scores = q @ k.T`. Pictures of graphs show it (`autograd/drawing.py`).

A result is a value, it does not know its variable. The bytecode does: the instruction behind the one that a frame is at stores the value.
"""

import dis
import functools
import sys
from bisect import bisect_right
from types import CodeType, FrameType

_STORES = ("STORE_FAST", "STORE_NAME", "STORE_GLOBAL", "STORE_DEREF")  # and, from Python 3.13 on, pairs that begin with one of them
_SILENT = ("COPY", "NOP", "EXTENDED_ARG")  # `a = b = f()` copies the value, then stores it


def assigned(n_values: int = 1, above: int = 1) -> tuple[str, ...]:
    """The variables that what a function returns is stored in: one name per value of the tuple, or none.

    n_values   how many values the function returns
    above      whose: 1 is the caller of `assigned`, 2 its caller, ...
    A frame that returns the value at once is left for its caller: `return MatMul.apply(a, b)` has its name in `y = ag.matmul(a, b)`.
    A value that goes into a larger expression, an attribute or a container has none.
    """
    frame: FrameType | None = sys._getframe(above + 1)
    while frame is not None:
        offsets, instructions = _instructions(frame.f_code)
        behind = instructions[bisect_right(offsets, frame.f_lasti) :][: n_values + 1]
        if not behind or behind[0].opname != "RETURN_VALUE":
            return _stored(behind, n_values)
        frame = frame.f_back
    return ()


@functools.lru_cache(maxsize=1000)
def _instructions(code: CodeType) -> tuple[list[int], list[dis.Instruction]]:
    shown = [i for i in dis.get_instructions(code) if i.opname not in _SILENT]
    return [i.offset for i in shown], shown


def _stored(behind: list[dis.Instruction], n_values: int) -> tuple[str, ...]:
    if n_values > 1:
        if not behind or behind[0].opname != "UNPACK_SEQUENCE" or behind[0].arg != n_values:
            return ()
        behind = behind[1:]
    names: list[str] = []
    for instruction in behind:
        if not instruction.opname.startswith(_STORES):
            break
        pair = instruction.argval if isinstance(instruction.argval, tuple) else (instruction.argval,)
        names += pair if instruction.opname.count("STORE") == 2 else pair[:1]
    return tuple(names[:n_values]) if len(names) >= n_values else ()
