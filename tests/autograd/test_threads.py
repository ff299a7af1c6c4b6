"""What must hold whatever spreads the work over threads: errors reach the caller, and the same run gives the same bits."""

import os
import threading

import numpy as np
import pytest

import autograd as ag
from tests.autograd.checks import numpy_only, tensor
from tests.autograd.test_core import run_python

pytestmark = numpy_only

LARGE = 1_500_000  # elements: enough for several blocks in several threads


@pytest.mark.usefixtures("each_kernel_mode")
@pytest.mark.parametrize("place", [0, LARGE // 2, LARGE - 1])
def test_numpys_errors_inside_workers_are_raised(place):
    x = np.ones(LARGE)
    x[place] = 1e200  # its cube overflows
    with pytest.raises(FloatingPointError, match="overflow"):
        ag.gelu(tensor(x))
    with np.errstate(all="ignore"):
        assert np.isfinite(ag.gelu(tensor(np.ones(LARGE))).data).all()
        ag.gelu(tensor(x))


BITS = """
import hashlib
import os

import numpy as np
import autograd as ag
from autograd.nn import Module
from autograd.optim import AdamW

class Model(Module):
    def __init__(self):
        rng = np.random.default_rng(0)
        self.w, self.v = (ag.Parameter(0.1 * rng.standard_normal((64, 256)).astype("float32")) for _ in range(2))
        self.gamma, self.beta = ag.Parameter(np.ones(256, "float32")), ag.Parameter(np.zeros(256, "float32"))

    def loss(self):
        rng = np.random.default_rng(1)
        x = ag.Tensor(rng.standard_normal((8, 300, 64)).astype("float32"))
        h = ag.gelu(ag.layer_norm(ag.linear(x, self.w), self.gamma, self.beta))
        q = ag.transpose(ag.reshape(h, (8, 300, 4, 64)), (0, 2, 1, 3))
        h = ag.scaled_dot_product_attention(q, q, q, causal=True, dropout=0.1, stream=ag.RandomStream(0))
        h = ag.dropout(ag.softmax(h), 0.1, stream=ag.RandomStream(1))
        return ag.linear_cross_entropy(ag.reshape(ag.transpose(h, (0, 2, 1, 3)), (8, 300, 256)), self.v, rng.integers(0, 64, (8, 300)))

model = Model()
optimizer = AdamW(model)
for _ in range(2):
    optimizer.zero_grad()
    loss = model.loss()
    loss.backward()
    norm = optimizer.step(max_norm=1.0)
print(hashlib.sha256(optimizer.weight.tobytes() + loss.data.tobytes() + norm.tobytes()).hexdigest())
"""


@pytest.mark.exact
def test_the_same_run_gives_the_same_bits():
    first, second = (run_python(BITS, AUTOGRAD_KERNELS="fast") for _ in range(2))
    assert first == second and first[0] == 0 and len(first[1].strip()) == 64


def test_a_number_of_threads_that_is_none():
    code = f"import numpy as np, autograd as ag; ag.gelu(ag.Tensor(np.ones({LARGE})))"
    for wrong in ("0", "-2", "many", "1.5"):
        status, _, error = run_python(code, AUTOGRAD_THREADS=wrong)
        assert status != 0 and f"error: AUTOGRAD_THREADS: '{wrong}', expected a positive whole number; unset it to use every core" in error
    assert run_python(code, AUTOGRAD_THREADS="1")[0] == 0


@pytest.mark.parametrize("blas", ["1", "2"])
def test_blas_takes_no_more_threads_than_asked_for(blas):
    code = "from autograd.threads import blas; print(blas())"
    for asked in ("1", "2"):
        status, out, _ = run_python(code, AUTOGRAD_THREADS=asked, OPENBLAS_NUM_THREADS=blas)
        assert status == 0 and out.endswith(f"threads {min(asked, blas)}\n")


@pytest.mark.parametrize(("text", "expected"), [("max 100000", 16), ("250000 100000", 3), ("20000 100000", 1), ("no numbers", 16)])
def test_threads_follow_what_a_container_may_use(text, expected, monkeypatch):
    from autograd import limits
    from autograd.kernels.cpu import parallel

    monkeypatch.setattr(limits, "read", lambda path: text if path == "/sys/fs/cgroup/cpu.max" else "")
    monkeypatch.setattr(limits.os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.delenv("AUTOGRAD_THREADS", raising=False)
    assert parallel._default_threads.__wrapped__() == expected


def test_blas_has_its_threads_again_when_two_that_held_it_overlapped():
    from autograd.kernels.cpu import parallel

    def threads():
        return [library.get_num_threads() for library in parallel._blas()]

    before = threads()
    first, second, outer = parallel._blas_threads(1), parallel._blas_threads(1), parallel._blas_threads(2)
    with parallel._blas_threads(3):
        assert set(threads()) == {3}
        first.__enter__()  # of two Python threads, say: they end in the order in which they began
        second.__enter__()
        assert set(threads()) == {1}
        first.__exit__(None, None, None)
        assert set(threads()) == {1}, "the second still wants one"
        second.__exit__(None, None, None)
        assert set(threads()) == {3}
        outer.__enter__()
    assert set(threads()) == {2}, "the outer one began last and still runs"
    outer.__exit__(None, None, None)
    assert threads() == before


def test_blas_has_its_threads_again_after_many_python_threads():
    from autograd.kernels.cpu import parallel

    before = [library.get_num_threads() for library in parallel._blas()]
    arrays = [np.ones(LARGE) for _ in range(4)]
    workers = [threading.Thread(target=lambda x=x: [ag.gelu(tensor(x)) for _ in range(5)]) for x in arrays]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [library.get_num_threads() for library in parallel._blas()] == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_has_threads_of_its_own():
    code = f"""
import os, warnings
import numpy as np, autograd as ag
warnings.simplefilter("ignore")
x = ag.Tensor(np.ones({LARGE}))
before = ag.gelu(x).data
child = os.fork()
if child == 0:
    os._exit(0 if (ag.gelu(x).data == before).all() else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run_python(code, AUTOGRAD_THREADS="2") == (0, "0\n", "")
