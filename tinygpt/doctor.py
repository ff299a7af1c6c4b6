"""What this machine has and what is missing, as plain text to read or to paste into a bug report.

    python -m tinygpt doctor

Versions, processor and memory, BLAS and threads, GPU, a short training run on each backend (in a separate process, so that a crash
does not end the report), and the command that installs each missing optional library. Exit code 1 if the backend that
AUTOGRAD_BACKEND asks for does not work.
"""

import ctypes
import json
import math
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata, util
from pathlib import Path
from types import SimpleNamespace

from tinygpt.arguments import command_parser
from tinygpt.cli import table
from tinygpt.storage.checked_json import Json

Rows = dict[str, str]

_NOT_INSTALLED = "not installed as a package; pip install -e . in its directory"
_OUR_VARIABLES = ("AUTOGRAD_BACKEND", "AUTOGRAD_KERNELS", "AUTOGRAD_THREADS", "AUTOGRAD_DEBUG", "AUTOGRAD_TF32")
_BLAS_VARIABLES = ("OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE", "GOTO_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
_SMOKE_TEST_TIMEOUT_S = 180
_SMOKE_TEST = """
import json, time
start = time.perf_counter()
import numpy as np
from autograd import backend
from autograd.optim import AdamW
from tinygpt import GPT, GPTConfig
model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, n_positions=8, vocab_size=32, dropout=0.1), seed=0)
optimizer = AdamW(model, lr=0.01)
ids = np.random.default_rng(0).integers(0, 32, (4, 9))
losses = []
for _ in range(5):
    optimizer.zero_grad()
    loss = model.loss(ids[:, :-1], ids[:, 1:])
    loss.backward()
    optimizer.step(max_norm=1.0)
    losses.append(loss.item())
model.generate(ids[:, :4], 2)
assert losses[-1] < losses[0], f"the loss rose from {losses[0]:.4f} to {losses[-1]:.4f}"
facts = {"reason": backend.reason, "first": losses[0], "last": losses[-1], "seconds": time.perf_counter() - start}
if backend.name == "cupy":
    cuda = backend.xp.cuda.runtime
    facts |= {"runtime": cuda.runtimeGetVersion(), "memory": cuda.memGetInfo()}
print(json.dumps(facts))
"""


def main(argv: list[str] | None = None) -> int:
    command_parser("doctor", __doc__).parse_args(argv)
    text, works = report()
    print(text)
    return 0 if works else 1


def report() -> tuple[str, bool]:
    """(the whole text, True if the requested backend works)."""
    backends, works = _backends()
    sections: dict[str, Callable[[], Rows]] = {
        "versions": _versions,
        "machine": _machine,
        "BLAS and threads": _blas,
        "GPU": _gpu,
        "backends": lambda: backends,
        "optional libraries": _optional,
    }
    blocks = ["tinygpt doctor"]
    for title, rows in sections.items():
        try:
            found = rows()
        except Exception as error:  # a report with a hole is better than none
            found = {"failed": _one_line(error)}
        blocks.append(table(title, found))
    return "\n\n".join(blocks), works


def _versions() -> Rows:
    """Python, this package and what it requires."""
    rows = {"Python": f"{platform.python_version()} ({platform.python_implementation()})", "platform": platform.platform()}
    rows["tinygpt"] = _version_of("tinygpt") or _NOT_INSTALLED
    needed = [name for name, extra in _requirements() if extra is None] or ["numpy"]
    return rows | {name: _version_of(name) or "missing: pip install tinygpt" for name in needed}


def _machine() -> Rows:
    """Processor, cores and memory, and what a container leaves of them."""
    limits = _limits()
    quota, total, available = limits.cpu_quota(), limits.machine_bytes(), limits.meminfo("MemAvailable")
    share = "" if quota == math.inf else f", limited to the time of {quota:g}"
    model = re.search(r"^model name\s*:(.*)", limits.read("/proc/cpuinfo"), re.MULTILINE)
    processor = f"{model[1].strip()} ({platform.machine()})" if model else platform.processor() or platform.machine() or "unknown"
    rows = {"processor": processor, "cores": f"{os.cpu_count()}, {limits.allowed_cores()} for this process{share}"}
    rows["memory"] = (_gib(total) if total else "unknown") + (f", {_gib(available)} available" if available else "")
    groups = [n for _, n in limits.memory_of_control_groups()]
    rows["memory limit"] = f"{_gib(min(groups))} (cgroup)" if groups else "none (cgroup)"
    return rows


def _blas() -> Rows:
    """Which BLAS NumPy calls, on how many threads, and which variables say so."""
    import numpy  # noqa: F401  (loads the BLAS that threadpoolctl then finds)
    from threadpoolctl import threadpool_info

    rows = {}
    for library in threadpool_info():
        if library.get("user_api") == "blas":
            core = f", core type {library['architecture']}" if library.get("architecture") else ""
            threads = f"{library['num_threads']} threads ({library.get('threading_layer', 'unknown')})"
            rows["BLAS"] = f"{library['internal_api']} {library.get('version')}{core}, {threads}"
    rows.setdefault("BLAS", "unknown to threadpoolctl (Accelerate, for one)")
    pins = [f"{name}={os.environ[name]}" for name in _BLAS_VARIABLES if os.environ.get(name)]
    rows["thread limits"] = ", ".join(pins) or f"none set ({', '.join(_BLAS_VARIABLES)})"
    rows |= {name: os.environ.get(name) or "not set" for name in _OUR_VARIABLES}
    if not os.environ.get("AUTOGRAD_THREADS"):
        rows["AUTOGRAD_THREADS"] += ": one thread for each core of this process"
    return rows


def _gpu() -> Rows:
    """Driver, the CUDA version that it brings, devices."""
    rows, smi = {"CUDA driver": _cuda_driver()}, shutil.which("nvidia-smi")
    if smi is None:
        rows["devices"] = "no nvidia-smi on PATH, so no NVIDIA driver here"
    else:
        fields = "index,name,driver_version,compute_cap,memory.total,memory.free"
        done = _run([smi, f"--query-gpu={fields}", "--format=csv,noheader"], timeout_s=20)
        if done.returncode:
            rows["devices"] = _one_line(done.stdout + done.stderr)
        for line in () if done.returncode else done.stdout.splitlines():
            index, name, driver, capability, total, free = line.split(", ")
            rows[f"device {index}"] = f"{name}, compute capability {capability}, {total}, {free} free, driver {driver}"
    return rows


def _backends() -> tuple[Rows, bool]:
    """A short training run on each backend; True if the requested one works."""
    rows, works = {}, {}
    for name in ("numpy", "cupy"):
        facts, error = _smoke_test(name)
        works[name] = facts is not None
        if facts is None:
            rows[name] = f"does not run: {error}"
            continue
        runtime = ""
        if "runtime" in facts:
            free, total = map(_gib, facts["memory"])
            runtime = f", CUDA runtime {_cuda_version(facts['runtime'])}, {free} of {total} free"
        fell = f"loss {facts['first']:.3f} -> {facts['last']:.3f} in 5 steps, {facts['seconds']:.1f} s with imports"
        rows[name] = f"works: {facts['reason']}{runtime}; {fell}"
    return rows, works.get(os.environ.get("AUTOGRAD_BACKEND", "").strip().lower() or "numpy", False)


def _optional() -> Rows:
    """For each extra: its libraries, and the command that adds what is missing."""
    extras: dict[str, list[str]] = {}
    if not (requirements := _requirements()):
        return {"unknown": f"tinygpt is {_NOT_INSTALLED}"}
    for name, extra in requirements:
        if extra is not None:
            extras.setdefault(extra, []).append(name)
    of_cuda = [extra for extra in extras if extra.startswith("cuda")]  # alternatives: only one of them is ever wanted
    wanted = [extra for extra in of_cuda if all(map(_version_of, extras[extra]))]
    if not wanted:
        major = re.match(r"CUDA (\d+)", _cuda_driver())
        wanted = [extra for extra in of_cuda if major and extra == f"cuda{major.group(1)}"] or of_cuda
    rows = {}
    for extra in [extra for extra in extras if extra in wanted or extra not in of_cuda]:
        versions = {name: _version_of(name) for name in extras[extra]}
        rows[extra] = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        if missing := ", ".join(name for name, version in versions.items() if not version):
            which = f" (for drivers of CUDA {extra.removeprefix('cuda')})" if extra in of_cuda and len(wanted) > 1 else ""
            rows[extra] += f'{"; " if rows[extra] else ""}{missing} missing: pip install "tinygpt[{extra}]"{which}'
    return rows


def _smoke_test(backend: str) -> tuple[dict[str, Json] | None, str]:
    """(facts, "") from a short run in a separate process, or (None, why it failed)."""
    try:
        done = _run([sys.executable, "-c", _SMOKE_TEST], timeout_s=_SMOKE_TEST_TIMEOUT_S, AUTOGRAD_BACKEND=backend)
    except subprocess.TimeoutExpired:
        return None, f"no answer within {_SMOKE_TEST_TIMEOUT_S} s"
    if done.returncode:
        return None, (f"killed by signal {-done.returncode}; " if done.returncode < 0 else "") + _one_line(done.stderr)
    return json.loads(done.stdout.splitlines()[-1]), ""


def _run(command: list[str], *, timeout_s: float, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a command with these environment variables changed."""
    environment = os.environ | variables
    return subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=timeout_s, env=environment)


def _one_line(said: object) -> str:
    """The last line of an error, which is where Python says what happened."""
    lines = [line.strip() for line in str(said).splitlines() if line.strip()]
    return re.sub(r"^(error|[\w.]+(Error|Exception)): ", "", lines[-1]) if lines else "no message"


def _requirements() -> list[tuple[str, str | None]]:
    """(library, extra that brings it or None) as the installed package declares them; none where it is not installed."""
    declared = (metadata.requires("tinygpt") or ()) if _version_of("tinygpt") else ()
    found = [re.match(r"([\w.-]+)(?:.*extra\s*==\s*['\"](.+?)['\"])?", line) for line in declared]
    return [(line[1], line[2]) for line in found if line]


def _version_of(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _limits() -> SimpleNamespace:
    """autograd/limits.py alone: the package around it does not start where its backend does not."""
    package = util.find_spec("autograd")
    assert package is not None and package.origin is not None
    return SimpleNamespace(**runpy.run_path(str(Path(package.origin).with_name("limits.py"))))


def _cuda_driver() -> str:
    """The CUDA version of the driver library, asked of the library itself."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return f"not installed ({name} not found)"
    version = ctypes.c_int()
    status = driver.cuDriverGetVersion(ctypes.byref(version))
    return f"cuDriverGetVersion failed with code {status}" if status else f"CUDA {_cuda_version(version.value)}"


def _cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / (1 << 30):.1f} GiB"
