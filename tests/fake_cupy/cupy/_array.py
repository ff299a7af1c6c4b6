"""The device array, and the one way in which everything on it is computed: refuse, unwrap, let NumPy work, check, wrap."""

import contextlib
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

try:
    import ml_dtypes

    bfloat16: Any = np.dtype(ml_dtypes.bfloat16)
except ImportError:  # as in CuPy: without ml_dtypes there is no bfloat16
    bfloat16 = None

import cupy_api

API = cupy_api.read()

ARITHMETIC = frozenset(
    "all any argmax argmin average clip cumprod cumsum dot einsum inner max mean min outer prod ptp round std sum tensordot trace var".split()
)
"""Functions and methods that compute with bfloat16 in float32; all others only move elements (ufuncs have a table of their own)."""

WAITING = frozenset(
    "nonzero flatnonzero argwhere unique extract compress bincount asnumpy get item tolist tobytes tofile dump dumps".split()
)
"""Functions and methods whose result, or its shape, must come back to the host."""


# Synchronisation -------------------------------------------------------------------------------------------------------------


class DeviceSynchronized(RuntimeError):
    """Something waited for the device inside `cupyx.allow_synchronize(False)`."""


_thread = threading.local()


def synchronize() -> None:
    """To be called wherever the host waits for the device."""
    if not getattr(_thread, "allowed", True):
        raise DeviceSynchronized("Device synchronization was detected while disallowed.")


@contextlib.contextmanager
def allow_synchronize(allow: bool) -> Iterator[None]:
    warnings.warn("cupyx.allow_synchronize will be removed in future releases", stacklevel=3)  # the real one warns too
    before = getattr(_thread, "allowed", True)
    _thread.allowed = allow
    try:
        yield
    finally:
        _thread.allowed = before


# Between the two sides --------------------------------------------------------------------------------------------------------


def host(x: Any) -> Any:
    """A device array's own NumPy array; lists and tuples item by item; NumPy arrays are refused, as mixing is."""
    if isinstance(x, ndarray):
        return x._host
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}: a NumPy array of shape {x.shape} among device arrays")
    if isinstance(x, (list, tuple)):
        return type(x)(host(item) for item in x)
    return x


def device(x: Any) -> Any:
    """NumPy's result as CuPy would give it: arrays, also of a single number, live on the device."""
    if isinstance(x, (np.ndarray, np.generic)):
        return wrap(np.asarray(x))
    if isinstance(x, (list, tuple)):
        return type(x)(device(item) for item in x)
    return x


def wrap(x: np.ndarray) -> "ndarray":
    out = object.__new__(ndarray)
    out._host = x
    return out


def _arrays(x: Any) -> Iterator[np.ndarray]:
    if isinstance(x, ndarray):
        yield x._host
    elif isinstance(x, (list, tuple)):
        for item in x:
            yield from _arrays(item)


def _widened(x: Any) -> Any:
    if isinstance(x, np.ndarray):
        return x.astype(np.float32) if x.dtype == bfloat16 else x
    return type(x)(_widened(item) for item in x) if isinstance(x, (list, tuple)) else x


def compute(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, arithmetic: bool, asked: Any = None
) -> Any:  # fmt: skip
    """function(*args, **kwargs) on the device. arithmetic: it computes, and does not only move elements; asked: the dtype in the call.

    bfloat16 is computed in float32 and rounded where CuPy has a loop for it: every floating operand is bfloat16, Python numbers
    aside. float64 out of narrower floats is refused unless asked for: on a device it costs thirty times the speed.
    """
    inputs = [a for x in (*args, *kwargs.values()) for a in _arrays(x)]
    out, kwargs = kwargs.get("out"), {k: v for k, v in kwargs.items() if k != "out"}
    narrow = arithmetic and bfloat16 is not None and any(a.dtype == bfloat16 for a in inputs)
    host_args, host_kwargs = [host(a) for a in args], {k: host(v) for k, v in kwargs.items()}
    if narrow:
        host_args, host_kwargs = [_widened(a) for a in host_args], {k: _widened(v) for k, v in host_kwargs.items()}
    scalars = [a for a in args if isinstance(a, np.floating)]
    with np.errstate(all="ignore"):  # a device does not stop at an overflow
        if isinstance(out, ndarray) and not narrow and bfloat16 != out.dtype:
            function(*host_args, **host_kwargs, out=out._host)
            return out
        result = function(*host_args, **host_kwargs)
        if isinstance(out, ndarray):
            if not np.can_cast(result.dtype, np.float32, "same_kind"):
                raise TypeError(f"output (dtype {result.dtype}) cannot be cast to {out.dtype} by 'same_kind'")
            out._host[...] = result.astype(out.dtype)
            return out
        floating = [a.dtype for a in inputs if a.dtype.kind == "f" or a.dtype == bfloat16]
        for part in result if isinstance(result, (tuple, list)) else (result,):
            if getattr(part, "dtype", None) == np.float64 and asked is None and floating and np.float64 not in floating:
                raise TypeError(
                    f"{getattr(function, '__name__', function)}: float64 out of {', '.join(str(a.dtype) for a in inputs)}"
                    f"{' and a NumPy float64 scalar' if scalars else ''}; CuPy would promote in silence"
                )
        if narrow and asked is None and not scalars and {*floating} == {bfloat16} and getattr(result, "dtype", None) == np.float32:
            result = result.astype(bfloat16)
    return device(result)


# The array --------------------------------------------------------------------------------------------------------------------


class ndarray:
    """A NumPy array that behaves like one on a device."""

    __slots__ = ("__weakref__", "_host")
    __hash__ = None  # type: ignore[assignment]
    _host: np.ndarray

    def __init__(self, shape: Any, dtype: Any = float, memptr: Any = None, strides: Any = None) -> None:
        self._host = np.empty(shape, dtype) if memptr is None else np.lib.stride_tricks.as_strided(memptr.host, shape, strides)

    # What CuPy refuses: to become a NumPy array by itself, to be handed to NumPy's functions.

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array explicitly.")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method == "__call__" and any(isinstance(x, np.generic) for x in inputs):  # NumPy scalar, operator, array
            import cupy

            return getattr(cupy, ufunc.__name__)(*inputs, **kwargs)
        raise TypeError(f"np.{ufunc.__name__}: a device array among {[type(x).__name__ for x in inputs]}; use cupy.{ufunc.__name__}")

    def __array_function__(self, function: Any, *args: Any) -> Any:  # CuPy's own would dispatch: a stray `np.` would pass there
        raise TypeError(f"np.{function.__name__}: a device array; use cupy.{function.__name__}")

    # Attributes that stay on the host.

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    itemsize = property(lambda self: self._host.itemsize)
    nbytes = property(lambda self: self._host.nbytes)
    strides = property(lambda self: self._host.strides)
    T = property(lambda self: wrap(self._host.T))
    mT = property(lambda self: wrap(self._host.mT))

    @property
    def data(self) -> Any:
        """CuPy's MemoryPointer: an address in an allocation, which views share."""
        mem: Any = self._host
        while isinstance(mem.base, np.ndarray):
            mem = mem.base
        return types.SimpleNamespace(mem=mem, ptr=self._host.__array_interface__["data"][0], host=self._host)

    @property
    def flags(self) -> Any:
        found = self._host.flags  # CuPy's have no `writeable`: no array on a device is read-only
        return types.SimpleNamespace(c_contiguous=found.c_contiguous, f_contiguous=found.f_contiguous, owndata=found.owndata)

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Iterator["ndarray"]:
        if self.ndim == 0:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    # What waits for the device.

    def _value(self) -> np.ndarray:
        synchronize()
        return self._host

    def __bool__(self) -> bool:
        return bool(self._value())

    def __float__(self) -> float:
        return float(self._value())

    def __int__(self) -> int:
        return int(self._value())

    def __index__(self) -> int:
        return self._value().__index__()

    def __repr__(self) -> str:
        return repr(self._value())

    def __format__(self, spec: str) -> str:
        return format(self._value(), spec) if self.ndim else format(self._value().item(), spec)

    def get(self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True) -> np.ndarray:
        return self._value().copy(order)

    def item(self) -> Any:
        return self._value().item()

    def tolist(self) -> Any:
        return self._value().tolist()

    def tobytes(self, order: str = "C") -> bytes:
        return self._value().tobytes(order)

    # Elements.

    def __getitem__(self, key: Any) -> "ndarray":
        key = _key(key)
        view = key if any(k is Ellipsis for k in key) else (*key, Ellipsis)  # with an ellipsis even one element is an array, and a view
        return wrap(self._host[view])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._host[_key(key)] = host(value)


def _key(key: Any) -> tuple[Any, ...]:
    keys = key if isinstance(key, tuple) else (key,)
    if any(isinstance(k, ndarray) and k.dtype.kind == "b" for k in keys):
        synchronize()  # how many elements a mask takes is known on the device only
    return tuple(host(k) for k in keys)


def _method(name: str) -> Callable[..., Any]:
    signature, function = API.methods[name], getattr(np.ndarray, name)

    def method(self: ndarray, *args: Any, **kwargs: Any) -> Any:
        asked = signature.bind(self, *args, **kwargs).arguments.get("dtype")
        if name in WAITING:
            synchronize()
        return compute(function, (self, *args), kwargs, arithmetic=name in ARITHMETIC, asked=asked)

    method.__name__ = name
    return method


for _name in API.methods:
    if _name not in vars(ndarray) and hasattr(np.ndarray, _name):
        setattr(ndarray, _name, _method(_name))
