"""Whether this process is one of several that `mpiexec` has started: asked before anything else is imported. How they end together.

A rank that fails has to end the others, which would wait for it: `abort`. `connect` sees to it for errors that nobody catches, for a rank
that is killed (`witness.py`), and for one that does not come (`watch.py`), also where a script was started without `-m mpi4py`.
"""

import atexit
import contextlib
import os
import sys
import threading
import time
from types import TracebackType
from typing import NoReturn

from tinygpt.errors import InvalidInput, MissingPackage
from tinygpt.parallel.witness import Witness

_VARIABLES = {
    "PMI_SIZE": ("PMI_RANK", "MPI_LOCALNRANKS", "MPICH"),
    "OMPI_COMM_WORLD_SIZE": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE", "Open MPI"),
}
"""Environment variables for the number of ranks -> (variable for the rank, for the number of ranks on this machine, what sets them)."""

KEPT = "the last checkpoint is kept: resume from it"

_START_S = 60.0  # programs that start on a busy machine may be this far apart, however short the limit

_witness: Witness | None = None
_aborted = False


def _variable() -> str:
    return next((name for name in _VARIABLES if os.environ.get(name)), "")


def n_started() -> int:
    """How many ranks there are; 1 without `mpiexec`."""
    return int(os.environ.get(_variable()) or 1)


def started_rank() -> int:
    """Which one this is; 0 without `mpiexec`."""
    return int(os.environ[_VARIABLES[_variable()][0]]) if _variable() else 0


def started_by() -> str:
    """Which MPI's `mpiexec`."""
    return _VARIABLES[_variable()][2] if _variable() else ""


def limit_s() -> float:
    """Seconds that a rank waits for others before it ends the job: 600, or TINYGPT_RANK_LIMIT_S; 0 for ever. Raises ValueError."""
    given = os.environ.get("TINYGPT_RANK_LIMIT_S", "600")
    try:
        limit = float(given)
    except ValueError:
        limit = -1.0
    if not 0 <= limit < float("inf"):
        raise InvalidInput(f"TINYGPT_RANK_LIMIT_S: {given!r}, expected a number of seconds, 0 or more; 0 waits for ever")
    return limit


def who() -> str:
    """How messages call this rank."""
    return f"rank {started_rank()} of {n_started()}"


def connect() -> None:
    """Joins the other ranks. Raises ImportError, naming the extra, where mpi4py is missing or finds no MPI."""
    global _witness
    if _witness is not None:
        return
    limit = limit_s()
    variable, here, _ = _VARIABLES.get(_variable(), ("", "", ""))
    n_here = int(os.environ.get(here) or 0)
    _witness = Witness(started_rank(), n_started(), n_here, variable, KEPT, limit and max(limit, _START_S))
    atexit.register(_witness.dismiss)
    try:
        from mpi4py import MPI  # whose import joins: it returns when all ranks are there
    except (ImportError, RuntimeError) as error:
        found = f"{started_by()}: {n_started()} ranks were started, and mpi4py is missing or finds no MPI ({error})"
        raise MissingPackage(f'{found}, expected it for more than one; pip install "tinygpt[mpi]"') from error
    _witness.joined()
    if MPI.COMM_WORLD.Get_size() != n_started():
        library = MPI.Get_library_version().partition("\n")[0].strip("\0 ")
        found = f"{started_by()}: {n_started()} ranks were started, and mpi4py, with {library}, sees {MPI.COMM_WORLD.Get_size()}"
        raise MissingPackage(f"{found}, expected one MPI for both; start with the mpiexec of that library")
    _end_all_on_errors()


def abort(status: int) -> None:
    """Ends all ranks: what an error of one of them has to do, since the others would wait for it. May return: MPI ends this process soon."""
    global _aborted
    _aborted = True
    if _witness is not None:
        _witness.dismiss()
    MPI = sys.modules.get("mpi4py.MPI")
    if MPI is not None:
        sys.stderr.flush()
        time.sleep(0.5)  # mpiexec must have read what was said: it drops what is in its pipes when it ends
        MPI.COMM_WORLD.Abort(status)


def end_job(text: str) -> NoReturn:
    """Says why, and ends all ranks: for a thread, which cannot raise an error in the main one, that may compute or wait for long."""
    print(f"error: {text}", file=sys.stderr, flush=True)
    threading.Timer(3, os._exit, [1]).start()  # where MPI itself hangs
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    abort(1)
    os._exit(1)


def _end_all_on_errors() -> None:
    """An error that nobody catches, or an exit status with `-m mpi4py`, is said with the rank, and ends all."""
    before, runner = sys.excepthook, sys.modules.get("mpi4py.run")

    def show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):  # all get it
            abort(130)
        before(kind, error, traceback)
        print(f"error: {who()}: {kind.__name__}: {error}", file=sys.stderr)
        abort(1)

    sys.excepthook = show
    if runner is None:
        return
    set_status = vars(runner)["set_abort_status"]

    def exits(status: object) -> None:
        code = status.code if isinstance(status, SystemExit) else None
        if getattr(status, "agreed", False) or _aborted:
            return
        if code:
            print(f"error: {who()} ends with {code}", file=sys.stderr)
            abort(code if isinstance(code, int) else 1)
        set_status(status)

    vars(runner)["set_abort_status"] = exits
