"""What this process may use of its machine, and what it uses: cores and memory, by Linux's control groups (containers), resource limits and
/proc. Elsewhere most of it is unknown: then nothing limits, and 0 bytes are in use.

LOGITS_BYTES is a limit that the engine sets itself.
"""

import ctypes
import math
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path

LOGITS_BYTES = 128 * 1024 * 1024
"""Logits that the output layer's CPU kernel holds at once, at most: two thirds of what 1,024 rows of GPT-2's take. The fewer the pieces,
the fewer times a product reads the weights (512 rows run a tenth faster than 256). The same whatever is frozen or recorded: BLAS may
round by the pieces."""


def n_cores() -> int:
    """Cores that this process may use: those that it may run on, at most as many as a container has time for, rounded up."""
    cores = allowed_cores()
    quota = cpu_quota()
    return cores if quota >= cores else max(1, math.ceil(quota))


def allowed_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_quota() -> float:
    """How many cores' time a container may use (control groups, version 2); infinity where nothing limits it."""
    try:
        quota, period = read("/sys/fs/cgroup/cpu.max").split()
        return int(quota) / int(period)
    except ValueError:  # "max", or no such file
        return math.inf


def memory_limit() -> tuple[int, str]:
    """(bytes that this process may have in all, what sets the limit): the least of control groups, resource limits and free memory.

    (sys.maxsize, "") where the system does not say.
    """
    limits = [(sys.maxsize, "")]
    limits += [(n, f"the limit of the control group {path}") for path, n in memory_of_control_groups()]
    with suppress(ImportError):  # Windows
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        if soft != resource.RLIM_INFINITY:
            limits.append((soft, "the limit of this process (ulimit -v)"))
    available = meminfo("MemAvailable")
    if available:
        limits.append((available + resident_bytes(), "what is free on this machine"))
    return min(limits)


def memory_of_control_groups() -> list[tuple[str, int]]:
    """(path, limit in bytes) of the control groups that this process is in, from its own up to the root. Linux, versions 1 and 2."""
    found = []
    for line in read("/proc/self/cgroup").splitlines():
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if controllers == "":
            root, name = Path("/sys/fs/cgroup"), "memory.max"
        elif "memory" in controllers.split(","):
            root, name = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
        else:
            continue
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder == root.parent:
                break
            text = read(str(folder / name)).strip()
            if text.isdecimal() and int(text) < 1 << 60:  # version 1 writes a number near 2^63 for no limit
                found.append((str(folder), int(text)))
    return found


def machine_bytes() -> int:
    """Memory of the machine; 0 where the system does not say."""
    try:
        return meminfo("MemTotal") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def meminfo(key: str) -> int:
    """An entry of /proc/meminfo in bytes; 0 without it."""
    return _kib(read("/proc/meminfo"), key)


def resident_bytes() -> int:
    """Memory of this process that is in use now."""
    return _kib(read("/proc/self/status"), "VmRSS")


def file_bytes() -> int:
    """How much of `resident_bytes` is files, which processes share."""
    return _kib(read("/proc/self/status"), "RssFile")


def peak_bytes(pid: int | str = "self") -> int:
    """The most memory that a program (this one) has had in use so far."""
    return _kib(read(f"/proc/{pid}/status"), "VmHWM")  # getrusage would count what the process was before it became this program


def private_peak_bytes(pid: int) -> int:
    """`peak_bytes` of a program without what it shares with its parent: shared memory, and the files of program and libraries."""
    status = read(f"/proc/{pid}/status")
    return max(0, _kib(status, "VmHWM") - _kib(status, "RssFile") - _kib(status, "RssShmem"))


def trim_heap() -> bool:
    """Returns memory that is free to the system, between what is in use, too; True if there was some. With glibc; elsewhere nothing happens."""
    return platform.libc_ver()[0] == "glibc" and bool(ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0)))


def read(path: str) -> str:
    """A file of the system, empty where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _kib(text: str, key: str) -> int:
    for line in text.splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return 0
