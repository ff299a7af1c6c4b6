"""A small process next to each rank that says when the rank was killed: `mpiexec` ends the others then, but knows processes, not ranks.

It has a session of its own, which no signal to the job reaches, and reads a pipe that closes when the rank ends. A rank that ends by itself
has written a word into it. Without one it was killed, and the witness says so, unless another rank of the machine ended before: then `mpiexec`
kills all that are left, whose witnesses must not accuse them. Witnesses wake in any order, but the kernel keeps the one in which processes
end (epoll hands events out in the order of their arrival). Only one may speak, too: the first to take a name that goes with its process. On
Linux alone: elsewhere there is neither.
"""

import contextlib
import os
import subprocess
import sys

_PROGRAM = """
import os, select, signal, socket, sys, time
job, killed, late, limit, rank = sys.argv[1:]
joined, said, ended, ends, names = bool(select.select([0], [], [], float(limit) or None)[0]), b"", {}, select.epoll(), {}
try:
    ranks = open(f"/proc/{job}/task/{job}/children").read().split()
except OSError:
    ranks = []
for pid in {rank, *ranks}:
    try:
        names[os.pidfd_open(int(pid))] = pid
    except OSError:
        pass
for fd in (0, *names):
    ends.register(fd, select.EPOLLIN)
os.set_blocking(0, False)
while joined and rank not in ended and (rank in names.values() or 0 not in ended) and not (0 in ended and said.endswith(b"goodbye")):
    for fd, _ in ends.poll():
        text = os.read(0, 4096) if fd == 0 else b""
        said += text
        if not text:
            ended[names.get(fd, 0)] = time.monotonic()
            ends.unregister(fd)
before = next((other for other, when in ended.items() if other and when > time.monotonic() - 5), rank)
if joined and before != rank and not said.endswith(b"goodbye"):
    sys.exit()
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as first:
    try:
        first.bind(chr(0) + "tinygpt-" + job)
    except OSError:
        sys.exit()
    if not said.endswith(b"goodbye"):
        print(killed if joined else late, file=sys.stderr, flush=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # mpiexec waits for all that could still be written
    if not joined:
        time.sleep(0.5)  # for mpiexec to read it
        os.kill(int(rank), signal.SIGKILL)
    time.sleep(5)
"""
"""Arguments: what the job is called, what to say, the time limit for joining the others, the rank's process. A rank that ends by itself takes
the name, too: the others may be about to be ended. Joining is timed here because MPI lets no thread of the rank run meanwhile."""


class Witness:
    """Of this process, until it ends.

    who       how the message begins
    fix       how it ends
    limit_s   how long the rank may take to join the others; 0: for ever
    """

    def __init__(self, who: str, fix: str, limit_s: float) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        if sys.platform.startswith("linux"):
            killed = f"error: {who} was killed, or ended without a word (process {os.getpid()}), expected it to train on; {fix}"
            late = f"error: {who}: not all ranks have started after {limit_s:g} s, expected them; see what the others say"
            job = str(os.getppid())  # mpiexec's process on this machine
            command = [sys.executable, "-I", "-S", "-c", _PROGRAM, job, killed, late, str(limit_s), str(os.getpid())]
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
