"""Writes api.txt: which names CuPy has, and what arguments they take. Run it with a Python that has CuPy (no GPU needed) and ml_dtypes.

    python tests/fake_cupy/make_api.py

The file has the syntax of a stub: functions and methods as `def`, ufuncs as `exp = ufunc(1, 1, bfloat16=True)` (inputs, outputs,
whether a bfloat16 loop exists), everything else as a bare name. Defaults are left out: only whether there is one matters here.
"""

import inspect
import re
import warnings
from pathlib import Path
from typing import Any


def parameters(signature: inspect.Signature) -> str:
    """`(a, axis=..., *, out=...)`: names and kinds, without annotations and default values."""
    plain = [
        p.replace(annotation=p.empty, default=p.empty if p.default is p.empty else ...) for p in signature.parameters.values()
    ]  # fmt: skip
    return str(signature.replace(parameters=plain, return_annotation=signature.empty)).replace("Ellipsis", "...")


def method_signature(name: str, method: Any) -> str | None:
    """Methods are compiled: their parameters stand in the first line of the docstring, with C types that are dropped here."""
    found = re.match(rf"\w+\.{name}\((.*?)\)( ->|\n|$)", method.__doc__ or "")
    if not found:
        return None
    plain = re.sub(r"\b(int|bool|bint|Py_ssize_t|_ndarray_base) (\w)", r"\2", found.group(1))
    return "(" + re.sub(r"=[^,)]+", "=...", plain) + ")"


def lines() -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy warns that it sees no GPU
        import cupy
    out = [f"# CuPy {cupy.__version__}, written by make_api.py"]
    for name in sorted(n for n in dir(cupy) if not n.startswith("_")):
        value = getattr(cupy, name)
        if isinstance(value, cupy.ufunc):
            out.append(f"{name} = ufunc({value.nin}, {value.nout}, bfloat16={any('E' in t for t in value.types)})")
        elif callable(value) and not inspect.isclass(value):
            try:
                out.append(f"def {name}{parameters(inspect.signature(value))}: ...")
            except ValueError:
                out.append(f"def {name}(*args, **kwargs): ...")  # compiled, without a signature
        elif name != "ndarray":
            out.append(name)
    out.append("class ndarray:")
    for name in sorted(n for n in dir(cupy.ndarray) if not n.startswith("_")):
        signature = method_signature(name, getattr(cupy.ndarray, name))
        out.append(f"    def {name}{signature}: ..." if signature else f"    {name}")
    return out


if __name__ == "__main__":
    Path(__file__).with_name("api.txt").write_text("\n".join(lines()) + "\n", encoding="utf-8", newline="\n")
