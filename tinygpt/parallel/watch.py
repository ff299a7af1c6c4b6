"""A thread of each rank that ends the job when others do not come: MPI would wait for ever.

Where this rank has waited for others longer than the limit (`launch.limit_s`), it asks the thread of every other rank what that one does: one
that waits, too, is innocent; one that computes, or does not answer, hangs. A rank that leaves says so to all, so that they do not wait for it.
"""

import atexit
import contextlib
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
from mpi4py import MPI

from tinygpt.parallel.launch import KEPT, end_job, limit_s

_PERIOD_S, _ANSWER_S, _LEFT_S = 0.2, 3.0, 2.0
"""How often a thread looks; how long it waits for answers; how long it lets this rank wait for one that has left: a message may be on its way."""
_QUESTION, _ANSWER, _LEFT = 1, 2, 3  # tags
_N_BYTES = 64  # of a message


class Watch:
    """Of this process, over all ranks. `with watch.over("all_reduce", ranks):` around each operation that waits for `ranks`."""

    def __init__(self) -> None:
        self.comm = MPI.COMM_WORLD.Dup()
        self.rank, self.n, self.limit = self.comm.Get_rank(), self.comm.Get_size(), limit_s()
        self.doing = "computes"  # or the operation that waits
        self.since = time.monotonic()
        self.partners: Sequence[int] = ()  # whom it waits for
        self._left: set[int] = set()
        self._answers: dict[int, tuple[str, float]] = {}
        self._sent: list[tuple[np.ndarray, MPI.Request]] = []
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._run, daemon=True)
        if MPI.Query_thread() == MPI.THREAD_MULTIPLE:
            self._thread.start()
            atexit.register(self.leave)

    @contextlib.contextmanager
    def over(self, what: str, ranks: Sequence[int]) -> Iterator[None]:
        self.since, self.partners, self.doing = time.monotonic(), ranks, what
        yield
        self.since, self.partners, self.doing = time.monotonic(), (), "computes"

    def leave(self) -> None:
        """Tells the others that this rank ends: who waits for it from now on waits for ever."""
        self._stop.set()
        self._thread.join(timeout=2)
        for other in self._others():
            self._send(other, _LEFT)
        until = time.monotonic() + 1
        while time.monotonic() < until and not all(request.Test() for _, request in self._sent):
            time.sleep(0.01)

    def _run(self) -> None:
        while not self._stop.wait(_PERIOD_S):
            self._read()
            waits = time.monotonic() - self.since if self.partners else 0.0
            left = sorted(self._left & set(self.partners))
            first = self.rank <= min(set(self.partners) - self._left, default=self.rank)
            if left and waits > _LEFT_S + (0 if first else _ANSWER_S):  # of several that wait, the first says it
                end_job(f"rank {left[0]} has ended, and rank {self.rank} waits for it ({self.doing}); {KEPT}")
            elif self.limit and waits > self.limit:
                self._ask(waits)

    def _others(self) -> list[int]:
        return [rank for rank in range(self.n) if rank != self.rank]

    def _send(self, to: int, tag: int) -> None:
        text = f"{time.monotonic() - self.since:.0f} {self.doing}".encode()[:_N_BYTES].ljust(_N_BYTES)
        message = np.frombuffer(text, np.uint8).copy()
        self._sent = [(kept, request) for kept, request in self._sent if not request.Test()]
        self._sent.append((message, self.comm.Isend(message, to, tag)))

    def _read(self) -> None:
        status, message = MPI.Status(), np.empty(_N_BYTES, np.uint8)
        while self.comm.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG, status):
            source, tag = status.Get_source(), status.Get_tag()
            self.comm.Recv(message, source, tag)
            if tag == _QUESTION:
                self._send(source, _ANSWER)
            elif tag == _LEFT:
                self._left.add(source)
            else:
                seconds, _, doing = message.tobytes().decode().strip().partition(" ")
                self._answers[source] = doing, float(seconds)

    def _ask(self, waits: float) -> None:
        """Finds out whom this rank waits for, and ends the job. Of several that find the same, the first says it."""
        self._answers.clear()
        for other in self._others():
            self._send(other, _QUESTION)
        until = time.monotonic() + _ANSWER_S
        while time.monotonic() < until and len(self._answers) < self.n - 1:
            time.sleep(0.05)
            self._read()
        if not self.partners:  # it has come after all
            return
        silent = [rank for rank in self._others() if rank not in self._answers]
        computing = {rank: seconds for rank, (doing, seconds) in self._answers.items() if doing == "computes"}
        if silent:
            found = f"rank {silent[0]} does not answer (stopped, or its machine is gone)"
        elif computing:
            rank = max(computing, key=computing.__getitem__)
            found = f"rank {rank} has not come for {computing[rank]:.0f} s"
        else:
            found = (
                "all ranks wait for each other (" + ", ".join(f"rank {r}: {doing}" for r, (doing, _) in sorted(self._answers.items())) + ")"
            )
        if any(rank < self.rank and doing != "computes" for rank, (doing, _) in self._answers.items()):
            time.sleep(_ANSWER_S)  # meanwhile that one ends all
        end_job(f"{found}, and rank {self.rank} has waited {waits:.0f} s ({self.doing}), expected at most {self.limit:g} s; {KEPT}")
