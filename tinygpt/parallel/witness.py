"""A small process next to each rank that says when the rank was killed: `mpiexec` ends the others then, but knows processes, not ranks.

It has a session of its own, which no signal to the job reaches, and reads a pipe that closes when the rank ends. A rank that ends by itself
has written a word into it. Without one it was killed, and the witness says so, if it is the first of its machine to find that out: then
`mpiexec` kills the others, whose witnesses must not accuse them. On Linux alone: elsewhere there is no name that can be taken only once and
goes with its process.
"""

import contextlib
import os
import subprocess
import sys

_PROGRAM = """
import os, select, signal, socket, sys, time
job, killed, late, limit, rank = sys.argv[1:]
joined = not float(limit) or bool(select.select([0], [], [], float(limit))[0])
said = sys.stdin.buffer.read() if joined else b""
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
