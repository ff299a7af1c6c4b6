"""Runs the tasks of a phase through datatrove's executors: processes of this machine, a Ray cluster, or Slurm. Imported only where it runs.

    run_tasks(function, 8, folder, Executor("local", workers=2))       # function(task, 8) for the tasks 0 to 7

A task that has finished leaves a marker in folder/completions: a run that was stopped does only what is missing. What a task writes is on
the disk before its marker is. All machines must see the folder under the same path, and have the same installation.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from subprocess import CalledProcessError

from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.utils.stats import PipelineStats
from loguru import logger

from autograd.limits import trim_heap
from tinygpt import errors
from tinygpt.curate.executors import Executor, Function
from tinygpt.curate.heap import give_back_freed_memory
from tinygpt.curate.report import StepReport
from tinygpt.errors import InvalidInput, MissingPackage, ProcessFailed, UserError
from tinygpt.storage.checked_json import read_json, to_json
from tinygpt.storage.durable import replace_file


class _Quiet:
    """datatrove resets all logging in each task, and logs to the terminal. Its messages are stopped where they arise."""

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        logger.disable("datatrove")
        return super()._run_for_rank(rank, local_rank, node_rank)  # type: ignore[misc]


class _Local(_Quiet, LocalPipelineExecutor):  # type: ignore[misc]
    """datatrove's own with another pool, one for all phases: with its multiprocess.Pool a killed worker is a run that never ends, a killed
    run leaves a process behind, and each phase starts all workers again."""

    def run(self) -> None:
        tasks = self.get_incomplete_ranks(range(self.tasks))
        if self.workers == 1:
            for task in tasks:
                self._run_for_rank(task)
            return
        running = [_pool(self.workers).submit(self._run_for_rank, task) for task in tasks]
        try:
            for done in as_completed(running):
                done.result()
        except BaseException as error:
            for future in running:
                future.cancel()
            if isinstance(error, BrokenProcessPool):
                rule = "expected all to finish; if memory ran out take fewer --workers, and run it again: what has finished is kept"
                raise ProcessFailed(f"{self.logging_dir.path}: a worker process was killed, {rule}") from error
            raise


_pools: dict[int, ProcessPoolExecutor] = {}
PRELOADED = [__name__, *(f"tinygpt.curate.{name}" for name in ("stages", "minhash", "mixing", "language", "repair", "rules"))]


def _pool(workers: int) -> ProcessPoolExecutor:
    """This process's pool of so many workers, which are started as they are needed."""
    if workers not in _pools:
        context = multiprocessing.get_context("forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn")
        context.set_forkserver_preload(PRELOADED)  # imported once, not by each worker: their pages are shared
        _pools[workers] = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker)
    return _pools[workers]


@contextlib.contextmanager
def workers() -> Iterator[None]:
    """Ends all workers with this block: at once if it ends by an error."""
    try:
        yield
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        for number in [*_pools]:
            _pools.pop(number).shutdown(cancel_futures=True)


def _begin_worker() -> None:
    """A worker leaves Ctrl-C to its parent, and ends when that is gone, which may have been killed: a run that is started again should not
    meet it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    give_back_freed_memory()

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            connection.wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Ray(_Quiet, RayPipelineExecutor):  # type: ignore[misc]
    pass


class _Slurm(_Quiet, SlurmPipelineExecutor):  # type: ignore[misc]
    def launch_merge_stats(self) -> None:
        """Not launched: a job of its own, for figures that nobody reads."""


@dataclass(frozen=True)
class _Task:
    """The one step of datatrove's pipeline: calls the function, and leaves its reports, or the error, next to the markers."""

    function: Function
    folder: Path

    def __call__(self, data: None, task: int, n_tasks: int) -> None:
        failure = self.folder / "failures" / f"{task:05d}.json"
        failure.unlink(missing_ok=True)
        try:
            reports = [report.to_json() for report in self.function(task, n_tasks)]
            path = self.folder / "reports" / f"{task:05d}.json"
            path.parent.mkdir(exist_ok=True)
            replace_file(path, to_json(reports), writer=f"{os.getpid()}-")
        except Exception as error:
            with contextlib.suppress(OSError):  # the disk may be what failed
                failure.parent.mkdir(exist_ok=True)
                said = {"kind": type(error).__name__, "message": str(error), "traceback": traceback.format_exc()}
                replace_file(failure, to_json(said), writer=f"{os.getpid()}-")
            raise
        finally:
            trim_heap()  # the next task of this process may need little


def run_tasks(function: Function, n_tasks: int, folder: Path, how: Executor) -> Iterator[list[StepReport]]:
    """Calls function(task, n_tasks) for every task that has not finished in this folder, and returns what each returned, in order: read from
    the folder, one at a time.

    function   can be pickled: a function of a module, or functools.partial of one
    Raises what a task raised, and ProcessFailed for one that ended otherwise; tasks that had finished stay finished.
    """
    logger.disable("datatrove")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        executor = _executor(_Task(function, folder), n_tasks, folder, how)
        executor.run()
    except FileNotFoundError as error:
        if error.filename != "sbatch":
            raise
        raise MissingPackage("--executor slurm: no sbatch on this machine, expected Slurm; start it where jobs are submitted") from error
    except CalledProcessError as error:  # sbatch --wait ends as its jobs do
        _raise_failure(folder, f"{error.cmd[0]}, exit code {error.returncode}")
    except ImportError as error:
        if error.name != "ray":
            raise
        raise MissingPackage("--executor ray: ray is missing, expected it on all machines; pip install ray") from error
    if missing := executor.get_incomplete_ranks(skip_completed=True):
        _raise_failure(folder, f"{len(missing)} of {n_tasks} tasks")
    written = (read_json(folder / "reports" / f"{task:05d}.json") for task in range(n_tasks))
    return ([StepReport.from_json(values) for values in reports] for reports in written)


def _executor(task: _Task, n_tasks: int, folder: Path, how: Executor) -> PipelineExecutor:
    common = {"pipeline": [task], "tasks": n_tasks, "workers": how.workers or -1, "logging_dir": str(folder.resolve())}
    if how.executor == "local":
        n = how.n_workers()
        # a single task is done here, unless there are workers: this process, which stays to the end, should stay small
        return _Local(**common | {"workers": n if n_tasks > 1 or n in _pools else 1})
    if how.executor == "ray":
        import ray

        if not ray.is_initialized():
            ray.init(log_to_driver=False, logging_level="error")  # a cluster that runs here or that RAY_ADDRESS names, else a new one
        return _Ray(**common, mem_per_cpu_gb=how.task_gb)
    if not how.slurm_partition:
        raise InvalidInput("--slurm-partition: none, expected the partition to submit to; `sinfo` lists them")
    activate = Path(sys.prefix) / "bin" / "activate"
    return _Slurm(
        **common,
        time=how.slurm_time,
        partition=how.slurm_partition,
        mem_per_cpu_gb=how.task_gb,
        job_name=f"curate-{folder.name}",
        qos="",
        venv_path=str(activate) if activate.is_file() else None,
        sbatch_args={"wait": ""},  # the next phase needs all of this one; datatrove's own `depends` would have to know it before
    )


def _raise_failure(folder: Path, what: str) -> None:
    """The error that the first failed task has left."""
    for path in sorted((folder / "failures").glob("*.json")):
        said = read_json(path)
        kind = getattr(errors, said["kind"], ProcessFailed)
        if issubclass(kind, UserError):
            raise kind(said["message"] if kind is not ProcessFailed else f"task {path.stem}: {said['message']}\n{said['traceback']}")
    raise ProcessFailed(f"{folder}: {what} ended without a result, expected all to finish; see the logs in this folder, then run it again")
