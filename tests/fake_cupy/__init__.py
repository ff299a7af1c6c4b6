"""A strict stand-in for CuPy, so that a machine without a GPU can prove that the code would run on one.

`cupy/` and `cupyx/` here are found instead of the real ones when this folder is first on the path: `pytest --fake-cupy` puts it
there, and a script takes it with PYTHONPATH=tests/fake_cupy AUTOGRAD_BACKEND=cupy. Inside, NumPy computes; outside, what CuPy 14
refuses is refused, and what it does in silence to an invalid index, a dtype or the host's time is an error. It knows CuPy's names
and arguments from `api.txt`, which `make_api.py` writes from the real package.

It proves semantics, not kernels, rounding or speed: those need a device.
"""

import os
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def install() -> None:
    """Makes `import cupy` find the fake one in this process. Must come before autograd is imported."""
    assert "cupy" not in sys.modules, "cupy has been imported already"
    sys.path.insert(0, str(FOLDER))


def of_processes() -> dict[str, str]:
    """The variables with which a process that a test starts finds the fake device, if this one does."""
    if str(FOLDER) not in sys.path:
        return {}
    return {
        "PYTHONPATH": os.pathsep.join(map(str, (FOLDER, FOLDER.parent.parent))),
        "AUTOGRAD_KERNELS": "reference",
    }  # it runs no CUDA code
