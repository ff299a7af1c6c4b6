"""What every test runs under: strict NumPy, hypothesis profiles, and the kernel modes as fixtures."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("tests.autograd.checks")

# Overflow, division by zero and NaN out of nowhere are errors; underflow to 0 is what exp(-1000) should do.
np.seterr(all="raise", under="ignore")

# No deadline: the first call of anything is slow, and machines differ. Health checks that measure speed are off for the same reason.
_common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
settings.register_profile("default", max_examples=50, **_common)
settings.register_profile("ci", max_examples=50, derandomize=True, print_blob=True, **_common)
settings.register_profile("fake-cupy", max_examples=8, derandomize=True, print_blob=True, **_common)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fake-cupy", action="store_true", help="run on the cupy backend over a strict fake device (tests/fake_cupy)")


def pytest_configure(config: pytest.Config) -> None:
    """Chooses profile and backend before any test module imports autograd; in xdist's workers, too."""
    if config.getoption("--fake-cupy"):
        from tests import fake_cupy

        fake_cupy.install()
        os.environ["AUTOGRAD_BACKEND"] = "cupy"
        settings.load_profile("fake-cupy")  # the same tests on fewer examples: what they show is what the device refuses
        from autograd import dispatch

        dispatch._kernels.clear()  # the fake device runs no CUDA code: tests/autograd/test_cuda_kernels.py does, on the host
    else:
        settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Importing the tests of the CUDA kernels brings the CPU's kernels along, which have no business on a device."""
    return True if config.getoption("--fake-cupy") and collection_path.name == "test_cuda_kernels.py" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without kernels, both kernel modes are one."""
    if config.getoption("--fake-cupy"):
        twice = [item for item in items if getattr(item, "callspec", None) and item.callspec.params.get("each_kernel_mode") == "fast"]
        config.hook.pytest_deselected(items=twice)
        items[:] = [item for item in items if item not in twice]


@pytest.fixture(scope="session", autouse=True)
def no_notes_in_the_checkout() -> Iterator[None]:
    """Runs that tests make are not noted in the checkout's runs/elsewhere.txt, where scripts would find them as the newest."""
    from tinygpt.runs import layout  # not at the top: --fake-cupy comes first

    checkout, remember = Path(__file__).parent.parent, layout.remember
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "remember", lambda run: None if Path.cwd() == checkout else remember(run))
        yield


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A running Chromium, to open pages with; skips where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e .[browser]")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if path is None:
        pytest.skip("no Chromium here, expected chromium or google-chrome on the PATH")
    with playwright.sync_playwright() as p:
        running = p.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def reference_kernels() -> Iterator[None]:
    """The plain math of `autograd/ops` everywhere: for tests of the definitions."""
    import autograd as ag  # not at the top: --fake-cupy comes first

    with ag.use_kernels("reference"):
        yield


@pytest.fixture(scope="module", params=["reference", "fast"])
def each_kernel_mode(request: pytest.FixtureRequest, reference_kernels: None) -> Iterator[None]:
    """Once with the plain math, once with every kernel there is: for laws, which hold for both.

    Inside `reference_kernels`, so that a module with both leaves them in the reverse order, and the mode as it was.
    """
    import autograd as ag

    with ag.use_kernels(request.param):
        yield
