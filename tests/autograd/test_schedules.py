"""Learning-rate schedules: peak, end points, no jump at a border, and what does not depend on how many updates there will be."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autograd.optim import warmup_constant, warmup_cosine, warmup_inverse_sqrt, warmup_stable_decay

peaks, warmups, shapes = st.floats(1e-5, 1.0), st.integers(0, 20), st.sampled_from(["1-sqrt", "linear"])


def check_warmup(rates, peak, warmup_steps):
    """Equal steps up to the peak, which the last update of the warm-up has; no rate is above it."""
    assert rates[:warmup_steps] == pytest.approx([peak * (i + 1) / warmup_steps for i in range(warmup_steps)])
    assert max(rates) <= peak * (1 + 1e-12)
    if warmup_steps:
        assert rates[warmup_steps - 1] == pytest.approx(peak)


def falls(rates):
    return all(a >= b * (1 - 1e-12) for a, b in itertools.pairwise(rates))


@given(peak=peaks, warmup_steps=warmups, n_more=st.integers(2, 50), share=st.none() | st.floats(0.0, 1.0))
def test_cosine_rises_to_the_peak_and_falls_to_the_floor(peak, warmup_steps, n_more, share):
    n_steps = warmup_steps + n_more
    floor = None if share is None else share * peak
    rates = [warmup_cosine(i, peak=peak, warmup_steps=warmup_steps, n_steps=n_steps, floor=floor) for i in range(n_steps + 3)]
    last = peak / 10 if floor is None else floor
    assert rates[warmup_steps] == pytest.approx(peak)
    assert rates[n_steps - 1] == rates[-1] == last
    check_warmup(rates, peak, warmup_steps)
    assert falls(rates[warmup_steps:])


def test_cosine_is_half_of_one():
    rates = [warmup_cosine(i, peak=1.0, warmup_steps=0, n_steps=5, floor=0.0) for i in range(5)]
    assert rates == pytest.approx([1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0.0])


def test_cosine_of_a_single_step():
    assert warmup_cosine(0, peak=1.0, warmup_steps=0, n_steps=1) == 0.1
    assert warmup_cosine(0, peak=1.0, warmup_steps=1, n_steps=1) == 1.0


@given(
    peak=peaks, warmup_steps=warmups, n_stable=st.integers(0, 30), decay_steps=st.integers(1, 40), share=st.floats(0.0, 1.0), shape=shapes
)  # fmt: skip
def test_wsd_stands_at_the_peak_and_then_falls_to_the_floor_in_decay_steps(peak, warmup_steps, n_stable, decay_steps, share, shape):
    n_steps, floor = warmup_steps + n_stable + decay_steps, share * peak
    rates = [
        warmup_stable_decay(i, peak=peak, warmup_steps=warmup_steps, n_steps=n_steps, decay_steps=decay_steps, floor=floor, shape=shape)
        for i in range(n_steps + 3)
    ]
    check_warmup(rates, peak, warmup_steps)
    begins = n_steps - decay_steps
    assert all(rate == peak for rate in rates[warmup_steps:begins])  # to the bit
    assert rates[n_steps - 1] == rates[-1] == floor
    decay = [peak, *rates[begins:n_steps]]
    assert falls(decay)
    # No jump: the first drop is that of the formula at 1 / decay_steps, and no later one is larger.
    drops = [a - b for a, b in itertools.pairwise(decay)]
    first = (peak - floor) * (math.sqrt(1 / decay_steps) if shape == "1-sqrt" else 1 / decay_steps)
    assert drops[0] == pytest.approx(first, abs=1e-12 * peak) and max(drops) <= drops[0] + 1e-12 * peak


def test_the_two_shapes_are_those_of_the_paper():
    fixed = {"peak": 1.0, "warmup_steps": 0, "n_steps": 6, "decay_steps": 4}
    roots = [warmup_stable_decay(i, **fixed) for i in range(6)]
    assert roots == pytest.approx([1, 1, 0.5, 1 - math.sqrt(0.5), 1 - math.sqrt(0.75), 0])
    assert [warmup_stable_decay(i, **fixed, shape="linear") for i in range(6)] == [1, 1, 0.75, 0.5, 0.25, 0]


@given(peak=peaks, warmup_steps=warmups, decay_steps=st.integers(0, 9), n_stable=st.integers(0, 20), more=st.integers(0, 50))
def test_wsd_does_not_depend_on_its_length_until_it_decays(peak, warmup_steps, decay_steps, n_stable, more):
    n_steps = warmup_steps + n_stable + decay_steps
    for step in range(warmup_steps + n_stable):
        given_now = {"peak": peak, "warmup_steps": warmup_steps, "decay_steps": decay_steps}
        assert warmup_stable_decay(step, n_steps=n_steps, **given_now) == warmup_stable_decay(step, n_steps=n_steps + more, **given_now)


def test_a_decay_within_the_warm_up_is_the_smaller_of_the_two():
    rates = [warmup_stable_decay(i, peak=1.0, warmup_steps=8, n_steps=6, decay_steps=4, shape="linear") for i in range(6)]
    assert rates == [1 / 8, 2 / 8, 3 / 8, 4 / 8, 1 / 4, 0]
    flat = [warmup_stable_decay(i, peak=1.0, warmup_steps=8, n_steps=6, decay_steps=4, floor=1.0) for i in range(6)]
    assert flat == [i / 8 for i in range(1, 7)]


@pytest.mark.parametrize(("decay_steps", "n_steps"), [(10, 9), (-1, 9)])
def test_wsd_refuses_a_decay_longer_than_the_run(decay_steps, n_steps):
    with pytest.raises(ValueError, match=rf"decay_steps = {decay_steps}, expected 0 to n_steps = {n_steps}"):
        warmup_stable_decay(0, peak=1.0, warmup_steps=5, n_steps=n_steps, decay_steps=decay_steps)


@given(peak=peaks, warmup_steps=warmups)
def test_inverse_square_root_halves_when_the_updates_quadruple(peak, warmup_steps):
    rates = [warmup_inverse_sqrt(i, peak=peak, warmup_steps=warmup_steps) for i in range(200)]
    check_warmup(rates, peak, warmup_steps)
    top = max(1, warmup_steps) - 1
    assert rates[top] == peak and falls(rates[top:])
    for n in range(top + 1, 51):
        assert rates[4 * n - 1] == pytest.approx(rates[n - 1] / 2)


@given(warmup_steps=st.integers(1, 20), d=st.integers(1, 1024))
def test_inverse_square_root_is_the_papers(warmup_steps, d):
    for n in (1, warmup_steps, warmup_steps + 1, 100):
        paper = d**-0.5 * min(n**-0.5, n * warmup_steps**-1.5)
        assert warmup_inverse_sqrt(n - 1, peak=(d * warmup_steps) ** -0.5, warmup_steps=warmup_steps) == pytest.approx(paper)


@given(peak=peaks, warmup_steps=warmups)
def test_constant_is_the_peak_to_the_bit(peak, warmup_steps):
    rates = [warmup_constant(i, peak=peak, warmup_steps=warmup_steps) for i in range(40)]
    check_warmup(rates, peak, warmup_steps)
    assert all(rate == peak for rate in rates[warmup_steps:])
