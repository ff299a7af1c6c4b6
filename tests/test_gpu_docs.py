"""The commands of docs/gpu.md for a GPU machine without a network, rehearsed in empty environments: NVIDIA's and CuPy's wheels are stubs of
the same names, the fake device in CuPy's; all others are the real ones."""

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests import fake_cupy

ROOT = Path(__file__).parent.parent
STUBS = {  # name -> version, what it requires
    "cupy_cuda13x": ("14.99", ['cuda-toolkit[nvrtc]==13.*; extra == "ctk"', "numpy"]),
    "cuda_toolkit": ("13.99", ['nvidia-cuda-nvrtc==13.*; extra == "nvrtc"']),
    "nvidia_cuda_nvrtc": ("13.99", []),
    "nvidia_cudnn_cu13": ("9.99", []),
    "nvidia_cudnn_frontend": ("1.23.99", []),
}


def blocks():
    """The commands for the machine with a network, and those for the one without."""
    section = (
        (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8").partition("## On a machine without a network\n")[2].partition("\n## ")[0]
    )
    there, here = re.findall(r"^```\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)
    return there, here


def write_stub(folder, name, version, requires):
    """A wheel with metadata alone; CuPy's holds the fake one."""
    extras = re.findall(r'extra == "(\w+)"', " ".join(requires))
    metadata = [f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}"]
    metadata += [f"Provides-Extra: {extra}" for extra in extras] + [f"Requires-Dist: {each}" for each in requires]
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        if name.startswith("cupy"):
            for path in fake_cupy.FOLDER.rglob("*"):
                if path.suffix in (".py", ".txt") and "__pycache__" not in path.parts:
                    wheel.write(path, path.relative_to(fake_cupy.FOLDER).as_posix())
        wheel.writestr(f"{info}/METADATA", "\n".join(metadata) + "\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def run(script, cwd, environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AUTOGRAD_", "PYTEST_", "PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(["bash", "-euc", script], cwd=cwd, env=kept | environment, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def with_network(tmp_path):
    """An empty environment whose pip reaches an index."""
    venv.create(tmp_path / "with", with_pip=True)
    pip = tmp_path / "with" / "bin" / "pip"
    if subprocess.run([pip, "download", "-q", "--no-deps", "-d", tmp_path / "probe", "threadpoolctl"], capture_output=True).returncode:
        pytest.skip("no network: nothing to download wheels from")
    return tmp_path / "with"


@pytest.mark.seldom
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the commands are for Linux")
def test_the_commands_for_a_machine_without_a_network(with_network, tmp_path):
    checkout, stubs = tmp_path / "checkout", tmp_path / "stubs"
    stubs.mkdir()
    for name, (version, requires) in STUBS.items():
        write_stub(stubs, name, version, requires)
    for name in ("autograd", "tinygpt", "benchmarks", "tests"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__", "results", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout / name)
    there, here = blocks()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    find_links = f"{stubs} {os.environ.get('PIP_FIND_LINKS', '')}".strip()
    run(there.replace("3.12", version), checkout, {"PATH": f"{with_network / 'bin'}:{os.environ['PATH']}", "PIP_FIND_LINKS": find_links})
    wheels = {path.name.partition("-")[0] for path in (checkout / "wheels").iterdir()}
    assert wheels >= STUBS.keys() | {"pytest", "pytest_xdist", "hypothesis", "setuptools", "ml_dtypes", "numpy"}
    shutil.rmtree(stubs)
    # No CUDA code runs here: the suite's own option for that instead of what measures.
    assert here.count("python benchmarks/gpu.py --out report") == 1
    script = here.replace("python3.12", sys.executable).replace(
        "python benchmarks/gpu.py --out report",
        "python benchmarks/gpu.py --dry-run && pytest --fake-cupy tests/autograd/test_activation.py",
    )
    nothing = "http://127.0.0.1:9"
    said = run(
        script, checkout,
        {"AUTOGRAD_KERNELS": "reference", "PIP_FIND_LINKS": "", "PIP_INDEX_URL": nothing, "http_proxy": nothing, "https_proxy": nothing},
    )  # fmt: skip
    assert "fake device" in said and "check" in said and re.search(r"\d+ passed|\[100%\]", said), said
