"""Ranks over NCCL, on the strict stand-in for CuPy: they keep the laws of the other communicators, and compute what one process computes."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autograd import backend
from tests.tinygpt.rank_programs import laws, training
from tinygpt.errors import InvalidInput
from tinygpt.parallel.communicator import OneRank, run_ranks
from tinygpt.parallel.nccl import NCCLRank, over_gpus

pytestmark = pytest.mark.skipif(backend.name == "numpy" or "fake" not in backend.reason, reason="on the fake device: pytest --fake-cupy")


@given(n=st.integers(1, 4), seed=st.integers(0, 10_000))
@settings(max_examples=10)
def test_laws(n, seed):
    assert run_ranks(n, lambda ranks: laws(NCCLRank(ranks), seed)) == ["ok"] * n


@pytest.mark.parametrize("n_batches", [1, 2])
def test_sums_that_overlap_with_the_backward_pass(n_batches):
    alone = training(OneRank(), 3, "float64", "adamw", n_batches)
    together = run_ranks(2, lambda host: training(NCCLRank(host), 3, "float64", "adamw", n_batches))
    assert together[0] == together[1]  # bit for bit
    np.testing.assert_allclose(together[0], alone, rtol=0, atol=1e-12)


def test_sixteen_bits_and_the_hosts_arrays():
    def program(host):
        ranks = NCCLRank(host)
        half = backend.to_device(np.full(3, 1.5 + ranks.rank, np.float32)).astype(backend.bfloat16)
        ranks.all_reduce(half)
        own = np.array([1.0 + ranks.rank])
        ranks.all_reduce(own)
        return half.astype(np.float32).tolist(), own.tolist(), ranks.agree(ranks.rank)

    assert run_ranks(2, program) == [([4.0] * 3, [3.0], 1.0)] * 2


def test_a_dtype_that_nccl_does_not_know():
    def program(host):
        NCCLRank(host).all_reduce(backend.to_device(np.array([True])))

    with pytest.raises(InvalidInput, match="NCCL: an array of dtype bool, expected one of float32"):
        run_ranks(2, program)


@pytest.mark.parametrize(
    ("available", "devices", "why"), [(True, 1, "2 ranks share 1 GPUs, and NCCL wants one for each"), (False, 2, "no NCCL")]
)
def test_without_nccl_arrays_pass_through_the_host(monkeypatch, available, devices, why):
    monkeypatch.setattr(backend.xp.cuda.nccl, "available", available)
    monkeypatch.setattr(backend.xp.cuda.runtime, "getDeviceCount", lambda: devices)

    def program(host):
        host.here = host.size
        return over_gpus(host).kind

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert run_ranks(2, program) == ["threads", "threads"]
    assert said and why in str(said[0].message)
    monkeypatch.setattr(backend.xp.cuda.nccl, "available", True)
    monkeypatch.setattr(backend.xp.cuda.runtime, "getDeviceCount", lambda: 2)
    assert run_ranks(2, program) == ["NCCL", "NCCL"]
