"""What every test runs under: strict NumPy, hypothesis profiles, and the kernel modes as fixtures."""

import os
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import autograd as ag

pytest.register_assert_rewrite("tests.autograd.checks")

# Overflow, division by zero and NaN out of nowhere are errors; underflow to 0 is what exp(-1000) should do.
np.seterr(all="raise", under="ignore")

# No deadline: the first call of anything is slow, and machines differ. Health checks that measure speed are off for the same reason.
_common = {"deadline": None, "max_examples": 50, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
settings.register_profile("default", **_common)
settings.register_profile("ci", derandomize=True, print_blob=True, **_common)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(scope="module")
def reference_kernels() -> Iterator[None]:
    """The plain math of `autograd/ops` everywhere: for tests of the definitions."""
    with ag.use_kernels("reference"):
        yield


@pytest.fixture(scope="module", params=["reference", "unmeasured"])
def each_kernel_mode(request: pytest.FixtureRequest) -> Iterator[None]:
    """Once with the plain math, once with every kernel there is: for laws, which hold for both."""
    with ag.use_kernels(request.param):
        yield
