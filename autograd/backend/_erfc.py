"""The complementary error function as a polynomial, for NumPy, which has neither erf nor erfc."""

import math
from functools import cache

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial

from autograd.backend._common import DType

ERFC_END = 6.0
"""From here on erfc is below half a unit in the last place of 1 - erfc, in float64 too."""


@cache
def erfc_polynomial(dtype: DType) -> list[float]:
    """Coefficients, highest power first, of P(t) = e^(z^2) erfc(z), t = 1 / (1 + z / 2), for 0 <= z <= ERFC_END.

    Interpolated at Chebyshev points of `math.erfc`. With degree 18 e^(-z^2) P is erfc to 4e-15, with degree 8, for float32, to 2e-8.
    Source  Abramowitz and Stegun 1964, Handbook of mathematical functions, 7.1.26, has the form (with degree 5).
    """

    def scaled_tail(t: np.ndarray) -> np.ndarray:
        return np.array([math.exp(z * z) * math.erfc(z) for z in (2 / t - 2).tolist()])

    degree = 18 if dtype == np.float64 else 8
    interpolated = Chebyshev.interpolate(scaled_tail, degree, domain=[1 / (1 + ERFC_END / 2), 1])
    return [float(c) for c in interpolated.convert(kind=Polynomial).coef[::-1]]
