"""Where the tasks of a curation run. None of this decides what comes out."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from tinygpt.curate.report import StepReport
from tinygpt.fields import check_fields

Function = Callable[[int, int], Sequence[StepReport]]  # (task, number of tasks): what the task did, step by step; can be pickled
Run = Callable[[Function, int, str], Iterable[list[StepReport]]]  # (function, number of tasks, name of the phase): what each task returned


@dataclass(frozen=True)
class Executor:
    executor: Literal["local", "ray", "slurm"] = "local"
    """Processes of this machine, a Ray cluster that is running (else one on this machine), or jobs of Slurm."""
    workers: int = 0
    """How many tasks run at once; 0: as many as this machine has cores, or the cluster room for."""
    task_gb: int = 2
    """Memory that Ray and Slurm reserve for a task."""
    slurm_partition: str = ""
    """Slurm: the partition, as sinfo lists them."""
    slurm_time: str = "20:00:00"
    """Slurm: the time limit of a task."""

    def __post_init__(self) -> None:
        check_fields(self, {0: "workers", 1: "task_gb"})

    def n_workers(self) -> int:
        """How many processes of this machine work at once."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return self.workers or cores
