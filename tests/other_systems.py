"""Runs a script as on Windows or macOS, as far as Linux can play them: python tests/other_systems.py SYSTEM SCRIPT_OR_MODULE FLAGS...

windows   no fcntl, resource, termios, fork, posix_fallocate, sysconf, affinity, SIGHUP, SIGKILL, /proc, /sys or /dev; os.name is "nt" for this
          project's modules (pathlib's own look at it cannot be changed); a file that is open or mapped can neither be renamed, replaced nor
          deleted, nor can its folders; a directory cannot be opened
macos     no posix_fallocate, affinity, /proc, /sys or /dev/shm
"""

import builtins
import importlib.abc
import io
import os
import pathlib
import runpy
import signal
import subprocess  # noqa: F401  (before msvcrt can be imported: it would take that for Windows)
import sys
import types

MODULES = {"windows": ("fcntl", "resource", "termios", "pty", "pwd", "grp", "posix", "msvcrt"), "macos": ()}
OS_NAMES = {
    "windows": ("fork", "forkpty", "posix_fallocate", "posix_fadvise", "sysconf", "sysconf_names", "sched_getaffinity", "getuid", "geteuid",
                "fchmod", "statvfs", "killpg", "getpgid", "setsid", "mkfifo", "fdatasync", "pread", "pwrite", "sync"),
    "macos": ("posix_fallocate", "posix_fadvise", "sched_getaffinity"),
}  # fmt: skip
SIGNALS = {"windows": ("SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGQUIT"), "macos": ()}
PATHS = {"windows": ("/proc", "/sys", "/dev"), "macos": ("/proc", "/sys", "/dev/shm")}


class Missing(importlib.abc.MetaPathFinder):
    def __init__(self, names):
        self.names = names

    def find_spec(self, name, path=None, target=None):
        if name in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def become(system):
    """Takes away what the other system lacks."""
    for name in MODULES[system]:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, Missing(MODULES[system]))
    listdir, readlink, real_open, real_os_open = os.listdir, os.readlink, io.open, os.open
    for name in OS_NAMES[system]:
        if hasattr(os, name):
            delattr(os, name)
    for name in SIGNALS[system]:
        if hasattr(signal, name):
            delattr(signal, name)

    def hidden(path):
        return isinstance(path, (str, os.PathLike)) and any(f"{os.fspath(path)}/".startswith(f"{p}/") for p in PATHS[system])

    def visible(call):
        def checked(path, *args, **options):
            if hidden(path):
                raise FileNotFoundError(2, "No such file or directory", os.fspath(path))
            return call(path, *args, **options)

        return checked

    builtins.open = io.open = visible(real_open)
    os.stat = visible(os.stat)
    if system != "windows":
        return

    def in_use(path):
        """True if this process holds the file, or one below it: open or mapped."""
        path = os.path.realpath(path)
        held = set()
        for descriptor in listdir("/proc/self/fd"):
            try:
                held.add(readlink(f"/proc/self/fd/{descriptor}"))
            except OSError:
                continue
        with real_open("/proc/self/maps", encoding="utf-8") as maps:
            held |= {line.split(maxsplit=5)[5].rstrip("\n") for line in maps if len(line.split(maxsplit=5)) == 6}
        return any(h == path or h.startswith(path + "/") for h in held)

    def refuses(call):
        def guarded(path, *args, **options):
            for name in (path, *args[:1]):
                if isinstance(name, (str, os.PathLike)) and not isinstance(name, int) and os.path.lexists(name) and in_use(name):
                    raise PermissionError(13, "The process cannot access the file because it is being used by another process", str(name))
            return call(path, *args, **options)

        return guarded

    for name in ("rename", "replace", "unlink", "remove", "rmdir"):
        setattr(os, name, refuses(getattr(os, name)))

    def no_directories(path, *args, **options):
        if sys._getframe(1).f_globals["__name__"].split(".")[0] in ("tinygpt", "autograd") and pathlib.Path(path).is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        return real_os_open(path, *args, **options)

    os.open = no_directories
    msvcrt = types.ModuleType("msvcrt")
    msvcrt.LK_NBLCK = 2
    msvcrt.locking = lambda descriptor, mode, n_bytes: None
    sys.modules["msvcrt"] = msvcrt
    windows = types.ModuleType("os")

    class Windows(types.ModuleType):
        """The module os with another name of the system."""

        name = "nt"

        def __getattr__(self, attribute):
            return getattr(os, attribute)

    windows = Windows("os")
    real_import = builtins.__import__

    def our_import(name, globals=None, locals=None, fromlist=(), level=0):
        ours = globals and str(globals.get("__name__")).split(".")[0] in ("tinygpt", "autograd", "__main__")
        return windows if name == "os" and ours else real_import(name, globals, locals, fromlist, level)

    builtins.__import__ = our_import


if __name__ == "__main__":
    _, system, *sys.argv = sys.argv
    become(system)
    sys.path[0] = str(pathlib.Path(sys.argv[0]).parent)
    if sys.argv[0].endswith(".py"):
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module(sys.argv[0], run_name="__main__")
