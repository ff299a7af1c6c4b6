"""A small process next to each rank that says when the rank was killed: `mpiexec` ends the others then, but knows processes, not ranks.

It has a session of its own, which no signal to the job reaches, and reads a pipe that closes when the rank ends. A rank that ends by itself
has written a word into it. Without one it was killed, and the witness says so, unless another rank of the machine ended before: then `mpiexec`
kills all that are left, whose witnesses must not accuse them. Witnesses wake in any order, and ranks may be seen to end in another than they
were killed in. But a process that ends closes its newest files first: its pipe before what `mpiexec` hears of it by. So witnesses look at each
other's pipes, and the kernel keeps the order (epoll hands events out as they have come). Only one may speak, too: the first to take a name
that goes with its process.

Who started the ranks ends them. Where it ends itself before it has (killed, or by an error of its own), they would compute, or wait for each
other, for ever: the witness ends its rank, which may save first. So it does where the shell of its rank has been killed, as mpiexec does, which
knows nothing of a shell's children and waits for what they write. On Linux alone: elsewhere there is nothing of all this.

This file is also the program of that process, which starts in a few milliseconds, as it imports nothing of the library.
"""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

_SILENT_S, _FOR_OTHERS_S = 5.0, 2.0
"""How long nobody accuses a rank after another has ended; how long a rank that was killed may take to be accused by its own witness."""
_OF_ITSELF_S, _SAVE_S = 1.0, 6.0
"""How long a rank whose launcher has ended may take to end of itself, and then to save."""
_LAUNCHER, _PARENT = -1, -2  # among the numbers of ranks


class Witness:
    """Of this process, until it ends.

    rank, n_ranks, n_here   which rank it is, of how many, how many of them on this machine (0: unknown)
    variable                where the environment of a rank has its number
    fix                     how the message ends
    limit_s                 how long the rank may take to join the others; 0: for ever
    """

    def __init__(self, rank: int, n_ranks: int, n_here: int, variable: str, fix: str, limit_s: float) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        if sys.platform.startswith("linux"):
            given = map(str, (limit_s, variable, os.getpid(), os.getppid(), rank, n_ranks, n_here, fix))
            command = [sys.executable, "-I", "-S", __file__, *given]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)

    def joined(self) -> None:
        """The rank has found the others."""
        self._say(b"joined ")

    def dismiss(self) -> None:
        """This rank ends by itself, or has said why it ends the others."""
        self._say(b"goodbye")
        process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            process.returncode = 0  # nobody waits for it
            with contextlib.suppress(OSError):
                process.stdin.close()

    def _say(self, word: bytes) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.write(word)
                self._process.stdin.flush()


# The process ------------------------------------------------------------------------------------------------------------------------------


def children_of(pid: int) -> list[int]:
    """Process ids. From all of /proc: not every kernel lists the children of a process, and each of its threads has a list of its own."""
    found = []
    for entry in os.listdir("/proc"):  # noqa: PTH208
        with contextlib.suppress(OSError):
            if entry.isdigit() and _parent(int(entry)) == pid:
                found.append(int(entry))
    return found


def number_in(pid: int, variable: str) -> int | None:
    """Which rank a process is, by its environment; None if it is none, or has ended."""
    with contextlib.suppress(OSError, ValueError):
        for setting in _read(f"/proc/{pid}/environ").split(b"\0"):
            name, _, value = setting.partition(b"=")
            if name == variable.encode():
                return int(value)
    return None


def launcher_of(parent: int, variable: str) -> int:
    """The process that has started the ranks of this machine: a rank's parent, but for a rank in a shell or in another program."""
    while number_in(parent, variable) is not None and len(children_of(parent)) == 1:
        with contextlib.suppress(OSError):
            parent = _parent(parent)
    return parent


def _parent(pid: int) -> int:
    return int(_read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[1])


def _read(path: str) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123 (pathlib takes as long to import as the rest)
        return file.read()


class Ends:
    """Which ranks of this machine have ended, in their order, and their launcher; and what the own rank has said before.

    Without `pidfd_open`, which old kernels and some builds of Python lack, it knows of the own rank alone, by the end of its pipe.
    """

    def __init__(self, own: int, pids: dict[int, int]) -> None:
        """own: this rank; pids: of all ranks of the machine, and of their launcher."""
        self.own, self.said, self.closed, self.when = own, b"", False, dict[int, float]()
        self.closings = dict[int, float]()  # of the ranks' pipes
        self._events, self._ranks, self._pipes = select.epoll(), dict[int, int](), {0: own}
        for rank, pid in pids.items():
            try:
                self._ranks[os.pidfd_open(pid)] = rank
            except ProcessLookupError:
                self.when[rank] = time.monotonic()
            except (OSError, AttributeError):
                continue
        os.set_blocking(0, False)
        for fd in (0, *self._ranks):
            self._events.register(fd, select.EPOLLIN)

    def follow(self, pids: dict[int, int]) -> None:
        """Looks at the pipes of the other ranks, too, which all have their witnesses by now. What is in them stays there."""
        for rank, pid in pids.items():
            for child in children_of(pid) if rank != self.own else ():
                with contextlib.suppress(OSError):
                    if __file__.encode() in _read(f"/proc/{child}/cmdline").split(b"\0"):
                        pipe = os.open(f"/proc/{child}/fd/0", os.O_RDONLY | os.O_NONBLOCK)
                        self._pipes[pipe] = rank
                        self._events.register(pipe, 0)  # 0: only when it closes

    @property
    def goodbye(self) -> bool:
        """Whether the own rank has said that it will end."""
        return self.closed and self.said.endswith(b"goodbye")

    @property
    def ended(self) -> bool:
        """Whether the own rank has."""
        return self.own in self.when or (self.closed and self.own not in self._ranks.values())

    @property
    def abandoned(self) -> bool:
        """Whether the launcher has ended, or the shell that has started the own rank, and that rank has not."""
        return not {_LAUNCHER, _PARENT}.isdisjoint(self.when) and not self.ended

    def end_others(self) -> None:
        """Kills the other ranks of this machine that have not ended, or the shells that have started them."""
        for fd, rank in self._ranks.items():
            if rank >= 0 and rank != self.own and rank not in self.when:
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(fd, signal.SIGKILL)

    def wait(self, limit_s: float, until: Callable[[], bool]) -> bool:
        """Until something holds; False where it does not in time (0: no limit)."""
        end = time.monotonic() + limit_s
        while not until():
            events = self._events.poll(max(0.0, end - time.monotonic()) if limit_s else None)
            if limit_s and not events:
                return until()
            for fd, _ in events:
                text = os.read(0, 4096) if fd == 0 else b""
                self.said += text
                if text:
                    continue
                self._events.unregister(fd)
                self.closed |= fd == 0
                if fd in self._pipes:
                    self.closings.setdefault(self._pipes[fd], time.monotonic())
                else:
                    self.when[self._ranks[fd]] = time.monotonic()
        return True

    def first(self) -> int:
        """The rank that ended first, of those that ended lately: by the pipes, if those of all are known."""
        lately, ranks = time.monotonic() - _SILENT_S, {rank: when for rank, when in self.when.items() if rank >= 0}
        order = self.closings if ranks.keys() <= self.closings.keys() else ranks
        return next((rank for rank, when in order.items() if when > lately), self.own)


class Word:
    """The right to speak, for all ranks below a launcher: a name that its holder keeps."""

    def __init__(self, launcher: int) -> None:
        self._name, self._socket = f"\0tinygpt-{launcher}", socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def take(self) -> bool:
        with contextlib.suppress(OSError):
            self._socket.bind(self._name)
            return True
        return False

    def release(self) -> None:
        self._socket.close()

    def wait_until_taken(self, limit_s: float) -> bool:
        until = time.monotonic() + limit_s
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                self._socket.connect(self._name)
                return True
            time.sleep(0.02)
        return False


def watch(pid: int, parent: int, rank: int, n_ranks: int, n_here: int, variable: str, fix: str, limit_s: float) -> None:
    """Waits for the end of rank `rank`, process `pid`, and says how it has ended, if nobody else does. See `Witness`.

    A rank that ends by itself takes the right to speak, too: the others may be about to be ended. Joining is timed here because MPI lets no
    thread of the rank run meanwhile.
    """
    launcher = launcher_of(parent, variable)
    pids = {rank: pid}
    for child in children_of(launcher):
        if (number := number_in(child, variable)) is not None:
            pids.setdefault(number, child)
    gone = number_in(pid, variable) is None  # the rank itself, already; this process has the same variables, and keeps them
    missing = number_in(os.getpid(), variable) == rank and len(pids) < n_here  # one has ended already
    ends, word = Ends(rank, pids | {_LAUNCHER: launcher, _PARENT: parent}), Word(launcher)
    joined = ends.wait(limit_s, lambda: bool(ends.said) or ends.ended or ends.abandoned)
    if joined:
        ends.follow(pids)
        ends.wait(0, lambda: ends.goodbye or ends.ended or ends.abandoned)
    if not ends.abandoned:
        one_machine = n_here in (0, n_ranks)
        first = min(set(range(n_ranks)) - set(pids)) if missing and one_machine else ends.first()
        if joined:
            process = "before all had joined" if missing else f"process {pids[first]}"
            rule = "expected it to train on" + ("" if one_machine else ", unless a rank of another machine ended before")
            who = f"one of {n_ranks} ranks" if missing and (gone or not one_machine) else f"rank {first} of {n_ranks}"
            found = f"{who} was killed, or ended without a word ({process}), {rule}; {fix}"
        else:
            found = f"rank {rank} of {n_ranks}: not all ranks have started after {limit_s:g} s, expected them; see what the others say"
        innocent = ends.ended and not ends.goodbye and (missing or first != rank)
        said = innocent and word.wait_until_taken(_FOR_OTHERS_S)  # by the witness of the one that ended first
        if not said and word.take() and not ends.goodbye:
            with contextlib.suppress(OSError):
                print(f"error: {found}", file=sys.stderr, flush=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # mpiexec waits for all that could still be written
    if not joined:
        time.sleep(0.5)  # for mpiexec to read it
        os.kill(pid, signal.SIGKILL)
    ends.wait(_FOR_OTHERS_S, lambda: ends.abandoned)
    if joined and ends.ended and not ends.goodbye:
        ends.end_others()  # as mpiexec does at once; where a shell has started the ranks, MPICH's does not always hear of the end
    ends.wait(_SILENT_S - _FOR_OTHERS_S, lambda: ends.abandoned)
    word.release()
    see_off(ends, pid)


def see_off(ends: Ends, pid: int) -> None:
    """Waits for the end of a rank that has said goodbye, and ends one whose launcher has ended."""
    ends.wait(0, lambda: ends.ended or ends.abandoned)
    for limit_s, number in ((_OF_ITSELF_S, signal.SIGTERM), (_SAVE_S, signal.SIGKILL)):
        if ends.wait(limit_s, lambda: ends.ended):
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


if __name__ == "__main__":
    _fix = sys.argv.pop()
    _limit, _variable, *_numbers = sys.argv[1:]
    _pid, _parent_pid, _rank, _n_ranks, _n_here = map(int, _numbers)
    watch(_pid, _parent_pid, _rank, _n_ranks, _n_here, _variable, _fix, float(_limit))
