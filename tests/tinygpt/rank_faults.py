"""Programs in which one rank fails; `test_rank_faults.py` runs them.

mpiexec -n 3 python [-m mpi4py] tests/tinygpt/rank_faults.py hang 1
"""

import os
import signal
import sys
import time

import numpy as np

from tinygpt.parallel.communicator import world


def fail(how: str) -> None:
    match how:
        case "raise":
            raise OSError("no space")
        case "exit":
            sys.exit(3)
        case "return":
            return
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "_exit":
            os._exit(5)
        case "hang":
            time.sleep(1000)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "deadlock":
            world().receive(np.zeros(1), (world().rank + 1) % world().size)


if __name__ == "__main__":
    how, which = sys.argv[1], int(sys.argv[2])
    ranks = world()
    ranks.all_reduce(np.zeros(1))
    if ranks.rank == which:
        fail(how)
    else:
        ranks.all_reduce(np.zeros(1))
        print("not reached")
