"""Freed memory goes back to the system: tasks of very different needs run one after the other in one process, several processes at once.

`import autograd` tells glibc's allocator to keep what was freed, because a training step takes the same arrays again. A process of curation
would stay as large as its largest task, and hold holes between the arrays of that task. Elsewhere (macOS, Windows, musl) nothing changes.
"""

import ctypes
import platform

import autograd  # noqa: F401  (its settings come first: those made here stay)

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4  # malloc.h
BIG = 4 << 20  # bytes: smaller arrays (a document's) are reused at once, and would only fault in their pages again


def give_back_freed_memory() -> bool:
    """For a process that does nothing but curation: arrays of BIG bytes and more return as they are freed, the end of the heap soon after.
    True if the allocator accepted it."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_MMAP_MAX, 1 << 16), (_M_MMAP_THRESHOLD, BIG), (_M_TRIM_THRESHOLD, 4 * BIG), (_M_TOP_PAD, 1 << 17))
    accepted = [mallopt(ctypes.c_int(name), ctypes.c_int(value)) for name, value in settings]
    return accepted == [1] * len(settings)
