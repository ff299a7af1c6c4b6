"""Functions and ufuncs of the module, made from api.txt on first use."""

from collections.abc import Callable
from typing import Any

import numpy as np
from cupy._array import API, ARITHMETIC, WAITING, bfloat16, compute, host, ndarray, synchronize, wrap

SCALARS = (bool, int, float, complex, np.generic)


class ufunc:
    """An elementwise function: device arrays and single numbers only, and of NumPy's options only `out`, `dtype` and `casting`."""

    def __init__(self, name: str) -> None:
        self.name, self.__name__ = f"cupy_{name}", name
        self.api, self.function = API.ufuncs[name], getattr(np, name)
        self.nin, self.nout = self.api.nin, self.api.nout

    def __repr__(self) -> str:
        return f"<ufunc '{self.name}'>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        unknown = kwargs.keys() - {"out", "dtype", "casting"}
        if unknown or not self.nin <= len(args) <= self.nin + self.nout:
            raise TypeError(f"Wrong arguments for {self.name}: {len(args)} positional, {sorted(unknown)}")
        for x in args:
            if not isinstance(x, (ndarray, *SCALARS)):
                raise TypeError(f"Unsupported type {type(x)} for {self.name}")
        if not self.api.bfloat16 and any(isinstance(x, ndarray) and x.dtype == bfloat16 for x in args):
            raise TypeError(f"{self.name}: no loop for bfloat16")
        if len(args) > self.nin:
            args, kwargs = args[: self.nin], {**kwargs, "out": args[self.nin]}
        return compute(self.function, args, kwargs, arithmetic=True, asked=kwargs.get("dtype"))

    def reduce(self, array: ndarray, axis: Any = 0, dtype: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        if self.__name__ not in ("add", "multiply"):
            raise NotImplementedError(f"`{self.name}.reduce` is not supported yet")
        method = array.sum if self.__name__ == "add" else array.prod  # type: ignore[attr-defined]
        return method(axis=axis, dtype=dtype, out=out, keepdims=keepdims)

    def accumulate(self, array: ndarray, axis: int = 0, dtype: Any = None, out: Any = None) -> ndarray:
        if self.__name__ not in ("add", "multiply"):
            raise NotImplementedError(f"`{self.name}.accumulate` is not supported yet")
        method = array.cumsum if self.__name__ == "add" else array.cumprod  # type: ignore[attr-defined]
        return method(axis=axis, dtype=dtype, out=out)

    def reduceat(self, array: ndarray, indices: Any, axis: int = 0, dtype: Any = None, out: Any = None) -> ndarray:
        raise NotImplementedError(f"`{self.name}.reduceat`: CuPy's subtracts cumulative sums and so loses digits; sum another way")

    def at(self, a: ndarray, indices: Any, b: Any = None) -> None:
        if self.__name__ != "add":
            raise NotImplementedError(f"`{self.name}.at` is not supported yet")
        if a.dtype.name not in ("int32", "uint32", "uint64", "float16", "float32", "float64"):
            raise TypeError(f"scatter_add: dtype {a.dtype} is not supported")
        np.add.at(host(a), host(indices), host(b))


def function(name: str) -> Callable[..., Any]:
    """The fake of `cupy.<name>`: CuPy's arguments, NumPy's result."""
    signature, numpys = API.functions[name], getattr(np, name, None)
    if numpys is None:
        raise AttributeError(f"the fake device does not imitate cupy.{name}")

    def call(*args: Any, **kwargs: Any) -> Any:
        asked = signature.bind(*args, **kwargs).arguments.get("dtype")
        if name in WAITING:
            synchronize()
        return compute(numpys, args, kwargs, arithmetic=name in ARITHMETIC, asked=asked)

    call.__name__ = name
    return call


# Functions that need more than that --------------------------------------------------------------------------------------------


def array(obj: Any, dtype: Any = None, copy: bool = True, order: str = "K", subok: bool = False, ndmin: int = 0, *, blocking: bool = False) -> ndarray:  # fmt: skip
    """A copy on the device of anything that is an array, or could be one."""
    out = np.array(obj._host if isinstance(obj, ndarray) else _no_device_items(obj), dtype=dtype, copy=copy, order=order, ndmin=ndmin)
    if out.dtype.kind not in "biufc" and out.dtype != bfloat16:
        raise ValueError(f"Unsupported dtype {out.dtype}")
    return wrap(out)


def asarray(a: Any, dtype: Any = None, order: Any = None, *, copy: Any = None, blocking: bool = False) -> ndarray:
    """`a` itself if it is a device array of that dtype, else a copy on the device: never memory shared with the host."""
    if isinstance(a, ndarray):
        out = np.asarray(a._host, dtype=dtype, order=order)
        return a if out is a._host else wrap(out)
    return array(a, dtype=dtype, order=order or "K")


def _no_device_items(obj: Any) -> Any:
    if isinstance(obj, (list, tuple)):
        return [x.item() if isinstance(x, ndarray) and x.ndim == 0 else _no_device_items(x) for x in obj]
    return obj


def asnumpy(a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True) -> np.ndarray:
    return a.get() if isinstance(a, ndarray) else np.asarray(a)


def where(condition: Any, x: Any = None, y: Any = None) -> Any:
    """CuPy's has no loop for bfloat16: the result is float32."""
    condition = condition.astype(bool)  # a host array or a list has no business here
    if x is None or y is None:
        synchronize()
        return tuple(wrap(a) for a in np.nonzero(host(condition)))
    out = compute(np.where, (condition, x, y), {}, arithmetic=True)
    return wrap(out._host.astype(np.float32)) if out.dtype == bfloat16 else out


def matmul(*args: Any, **kwargs: Any) -> ndarray:
    API.functions["matmul"].bind(*args, **kwargs)
    for x in args:
        if not isinstance(x, ndarray):
            raise TypeError(f"Unsupported type {type(x)} for matmul")
    if bfloat16 is not None and any(x.dtype == bfloat16 for x in args) and any(x.ndim > 2 for x in args):
        raise TypeError("data type 'E' not understood")  # stacks of bfloat16 matrices: cupy/cupy#10317
    return compute(np.matmul, args, kwargs, arithmetic=True)


OPERATORS = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "true_divide", "floordiv": "floor_divide", "mod": "remainder",
    "pow": "power", "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor", "lshift": "left_shift", "rshift": "right_shift",
    "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal", "eq": "equal", "ne": "not_equal",
    "neg": "negative", "pos": "positive", "abs": "absolute", "invert": "invert",
}  # fmt: skip


def _defers(other: Any) -> bool:
    return getattr(other, "__array_ufunc__", 0) is None  # its own reflected operator takes over (NEP 13)


def _operator(operation: Callable[..., Any]) -> tuple[Any, Any, Any]:
    def forward(self: ndarray, *others: Any) -> Any:
        return NotImplemented if any(_defers(other) for other in others) else operation(self, *others)

    def reflected(self: ndarray, other: Any) -> Any:
        return operation(other, self)

    def in_place(self: ndarray, other: Any) -> Any:
        return NotImplemented if _defers(other) else operation(self, other, out=self)

    return forward, reflected, in_place


for _short, _name in OPERATORS.items():
    for _prefix, _made in zip(("", "r", "i"), _operator(ufunc(_name)), strict=True):
        setattr(ndarray, f"__{_prefix}{_short}__", _made)
for _prefix, _made in zip(("", "r"), _operator(matmul)[:2], strict=True):
    setattr(ndarray, f"__{_prefix}matmul__", _made)
