"""summary() and trace(): their numbers equal those counted another way, and the model is left as it was."""

import numpy as np
import pytest

import autograd as ag
from autograd import backend
from autograd.drawing import saved_arrays
from autograd.testing import nodes_of
from tinygpt import GPT, GPTConfig

CONFIG = GPTConfig(n_layer=2, n_head=2, n_embd=8, n_positions=6, vocab_size=10)
IDS = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])


def owner(array):
    while getattr(array, "base", None) is not None:
        array = array.base
    return array


def test_flops_are_those_of_the_formula():
    model = GPT(CONFIG)
    b, t, c, v, n_layer, n_head = 2, 4, 8, 10, 2, 2
    n = b * t
    products = (
        n_layer * (2 * n * c * 3 * c + 2 * n * c * c + 2 * 2 * n * c * 4 * c + 4 * b * n_head * t * t * (c // n_head)) + 2 * n * c * v
    )
    elements = n * c + n_layer * (4 * n * c + n * 4 * c) + n * c  # embeddings added; 2 norms, 2 sums and the GELU per block; last norm
    assert model.trace(IDS).flops == products + elements
    assert model.trace(IDS, IDS).flops == products + elements


@pytest.mark.skipif(backend.name != "numpy", reason="memory is told apart by NumPy's `base`")
@pytest.mark.parametrize("kernels", ["reference", "fast"])
def test_saved_bytes_are_what_the_graph_holds(kernels):
    model = GPT(CONFIG)
    with ag.use_kernels(kernels):
        traced = model.trace(IDS, IDS).saved_bytes
        loss = model.loss(IDS, IDS)
    weights = {id(owner(p.data)) for p in model.parameters()}
    held = {id(owner(a)): owner(a).nbytes for node in nodes_of(loss) for a in saved_arrays(node.saved) if a.dtype.kind == "f"}
    assert traced == sum(n for key, n in held.items() if key not in weights)


def test_every_weight_and_every_module_is_in_the_trace():
    model = GPT(CONFIG)
    trace = model.trace(IDS)
    tied_again = model.wte.weight.size  # the output layer uses the token embedding once more
    assert sum(step.n_parameters for step in trace.steps) == model.n_parameters() + tied_again
    assert {step.module for step in trace.steps} == {name for name, _ in model.named_modules() if "dropout" not in name}
    assert [s.op for s in trace.steps if s.module == "h.1.mlp"] == ["GELU"]
    text = str(trace)
    assert text == repr(trace)
    assert "h.0.attn.c_attn  Linear     (2, 4, 24)           216" in text and text.splitlines()[-1].startswith("sum")


def test_the_model_is_left_as_it_was():
    model = GPT(CONFIG)
    before = model(IDS).data
    model.trace(IDS)
    assert all("forward" not in vars(module) for _, module in model.named_modules())
    assert np.array_equal(backend.to_host(model(IDS).data), backend.to_host(before))
    with pytest.raises(ValueError, match="expected at most n_positions"):
        model.trace(np.zeros((1, 7), int))
    assert all("forward" not in vars(module) for _, module in model.named_modules())


def test_summary_counts_weights_and_what_is_frozen():
    model = GPT(CONFIG)
    model.wpe.weight.requires_grad = False
    text = model.summary()
    for name, p in model.named_parameters():
        assert any(line.startswith(name + " ") and f"{p.size:,}" in line for line in text.splitlines())
    assert repr(text) == text  # an interactive session shows lines, not \\n
    assert "1,888" in text and "1,840 trainable, 48 frozen" in text and "48  frozen" in text
