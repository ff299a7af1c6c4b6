"""Whether this process is one of several that `mpiexec` has started: asked before anything else is imported."""

import os

_VARIABLES = {"PMI_SIZE": ("PMI_RANK", "MPICH"), "OMPI_COMM_WORLD_SIZE": ("OMPI_COMM_WORLD_RANK", "Open MPI")}
"""Environment variables for the number of ranks -> (variable for the rank, what sets them)."""


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
    return _VARIABLES[_variable()][1] if _variable() else ""


def abort(status: int) -> None:
    """Ends all ranks: what an error of one of them has to do, since the others would wait for it."""
    from mpi4py import MPI  # where ranks were started, it is there

    MPI.COMM_WORLD.Abort(status)
