"""Whether this process is one of several that `mpiexec` has started: asked before anything else is imported."""

import os
import sys

from tinygpt.errors import MissingPackage

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


def connect() -> None:
    """Joins the other ranks. Raises ImportError, naming the extra, where mpi4py is missing or finds no MPI."""
    try:
        from mpi4py import MPI  # whose import joins
    except (ImportError, RuntimeError) as error:
        found = f"{started_by()}: {n_started()} ranks were started, and mpi4py is missing or finds no MPI ({error})"
        raise MissingPackage(f'{found}, expected it for more than one; pip install "tinygpt[mpi]"') from error
    if MPI.COMM_WORLD.Get_size() != n_started():
        library = MPI.Get_library_version().partition("\n")[0].strip("\0 ")
        found = f"{started_by()}: {n_started()} ranks were started, and mpi4py, with {library}, sees {MPI.COMM_WORLD.Get_size()}"
        raise MissingPackage(f"{found}, expected one MPI for both; start with the mpiexec of that library")


def abort(status: int) -> None:
    """Ends all ranks: what an error of one of them has to do, since the others would wait for it."""
    MPI = sys.modules.get("mpi4py.MPI")
    if MPI is not None:
        MPI.COMM_WORLD.Abort(status)
