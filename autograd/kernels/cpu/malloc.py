"""Keeps freed memory in the process.

Big arrays return to the system as soon as they are freed, and the next one of the same size faults in all its pages again, zeroed:
for small models that costs as much as the arithmetic. With glibc, two settings keep the pages: no allocation by `mmap`, and no
trimming of the heap's top. A training step then reuses the last step's pages. Elsewhere (macOS, Windows, musl) nothing changes.
"""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h


def keep_freed_memory() -> bool:
    """Tells glibc's allocator to keep freed memory; True if it accepted the settings."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 * 1024 * 1024))
    accepted = [mallopt(ctypes.c_int(name), ctypes.c_int(value)) for name, value in settings]
    return accepted == [1, 1, 1]
