"""Ranks over NCCL, on the strict stand-in for CuPy: they keep the laws of the other communicators, and compute what one process computes."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autograd import backend
from tests.tinygpt.mesh_programs import alone, differences, mesh_training, tiny_trainer
from tests.tinygpt.rank_programs import laws, training
from tinygpt.data.tokenizer import train_tokenizer
from tinygpt.errors import InvalidInput
from tinygpt.parallel.communicator import OneRank, run_ranks
from tinygpt.parallel.nccl import NCCLRank, over_gpus
from tinygpt.runs.run import Run
from tinygpt.storage.safetensors import read_safetensors_header, read_tensor

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


MESHES = pytest.mark.parametrize("shape", [(2, 2, 1), (2, 1, 2), (1, 2, 2)], ids=str)


@MESHES
@pytest.mark.parametrize(("shard", "optimizer"), [(True, "muon"), (False, "adamw")])
def test_meshes(shape, shard, optimizer):
    """What one process computes; half of the updates are made with the state that was gathered and read again."""
    options = {"optimizer": optimizer, "steps": 4}
    first, *_ = run_ranks(4, lambda host: mesh_training(NCCLRank(host), shape=shape, shard=shard, **options))
    assert max(differences(first, alone(**options))) < 1e-12


@MESHES
@pytest.mark.parametrize("shard", [True, False])
def test_a_checkpoint_of_a_mesh_is_that_of_one_process(shape, shard, tmp_path):
    tokenizer = train_tokenizer("bpe", ["a b c"] * 9, 300)

    def saved(trainer, folder, ranks):
        trainer.update()
        (tmp_path / folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        run = Run(tmp_path / folder)
        run.ranks, run.tokenizer = ranks, tokenizer
        run.save(trainer, best=True)
        run.wait()
        ranks.agree(0)
        return run

    def program(host):
        ranks = NCCLRank(host)
        run = saved(tiny_trainer(ranks, shape, shard=shard), "mesh", ranks)
        resumed = tiny_trainer(ranks, shape, shard=shard)
        run.restore(resumed)
        saved(resumed, "resumed", ranks)

    def arrays(folder):
        (path,) = (tmp_path / folder / "checkpoints").glob("step-*")
        return {name: read_tensor(t) for file in path.glob("*.safetensors") for name, t in read_safetensors_header(file).items()}

    run_ranks(4, program)
    one = tiny_trainer()
    for folder in ("one", "one_resumed"):
        saved(one, folder, OneRank())
    for folder, same in (("mesh", "one"), ("resumed", "one_resumed")):
        found, expected = arrays(folder), arrays(same)
        assert found.keys() == expected.keys() and any(name.startswith("m.") for name in found)
        for name, array in found.items():
            np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-6, err_msg=name)


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
