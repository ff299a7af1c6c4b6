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
import os, socket, sys, time
said = sys.stdin.buffer.read()
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as first:
    try:
        first.bind(chr(0) + "tinygpt-" + sys.argv[1])
    except OSError:
        sys.exit()
    if not said:
        print(sys.argv[2], file=sys.stderr, flush=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # mpiexec waits for all that could still be written
    time.sleep(5)
"""
"""Arguments: what the job is called, what to say. A rank that ends by itself takes the name, too: the others may be about to be ended."""


class Witness:
    """Of this process, until it ends.

    who    how the message begins
    fix    how it ends
    """

    def __init__(self, who: str, fix: str) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        if sys.platform.startswith("linux"):
            text = f"error: {who} was killed, or ended without a word (process {os.getpid()}), expected it to train on; {fix}"
            command = [sys.executable, "-I", "-S", "-c", _PROGRAM, str(os.getppid()), text]  # the parent: mpiexec's process on this machine
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)

    def dismiss(self) -> None:
        """This rank ends by itself, or has said why it ends the others."""
        process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            process.returncode = 0  # nobody waits for it
            with contextlib.suppress(OSError):
                process.stdin.write(b"goodbye")
                process.stdin.close()
