"""The forward passes of a few rows: the same numbers as the plain product, whichever way it is cut."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autograd import backend, inference
from tests.strategies import seeds

if backend.name != "numpy":
    pytest.skip("these functions are NumPy's", allow_module_level=True)


def check_linear(b, i, o, bias, by_rows, rng):
    x, weight, shift = rng.standard_normal((b, i)), rng.standard_normal((o, i)), rng.standard_normal(o) if bias else None
    stored = weight if by_rows else np.asfortranarray(weight)
    out = np.full((b, o), np.nan)
    inference.linear(x, stored, shift, out, np.empty(b * o))
    np.testing.assert_allclose(out, x @ weight.T + (0 if shift is None else shift), atol=1e-10)


@given(b=st.integers(1, 20), i=st.integers(1, 40), o=st.integers(1, 1500), bias=st.booleans(), by_rows=st.booleans(), seed=seeds)
def test_linear_is_the_plain_product(b, i, o, bias, by_rows, seed):
    check_linear(b, i, o, bias, by_rows or b > 1, np.random.default_rng(seed))


@pytest.mark.parametrize("shape", [(8, 3072, 70), (8, 768, 3000), (16, 2000, 130), (2, 5000, 33), (17, 768, 700)])
def test_linear_over_threads_with_blocks_left_over(shape):
    check_linear(*shape, True, True, np.random.default_rng(0))
