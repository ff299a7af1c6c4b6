"""tensor.draw(): every value, gradient and shape is in the picture, nothing lies on top of anything else, and it is a valid SVG."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import autograd as ag
from autograd import backend, nn
from autograd.drawing import Picture, op_name, saved_bytes
from autograd.variables import assigned

SVG = "{http://www.w3.org/2000/svg}"


def texts(picture):
    return ["".join(t.itertext()) for t in ET.fromstring(picture).iter(f"{SVG}text")]


def boxes(picture):
    """(x, y, width, height) of every box; the first rectangle is the background."""
    rectangles = list(ET.fromstring(picture).iter(f"{SVG}rect"))[1:]
    return [tuple(float(r.get(key)) for key in ("x", "y", "width", "height")) for r in rectangles]


def example():
    x = ag.Tensor([[1.0, 2.0]], requires_grad=True)
    w = ag.Tensor([[0.5], [0.25]], requires_grad=True)
    with ag.record():
        loss = ((x @ w) * 2 + x).sum()
        loss.backward()
    return loss, x, w


def test_values_gradients_shapes_and_names():
    loss, x, w = example()
    picture = loss.draw(names={"x": x, "w": w, "loss": loss})
    shown = texts(picture)
    for text in ("x  (1, 2)", "w  (2, 1)", "MatMul @  (1, 1)", "Multiply *  (1, 1)", "loss = Sum  ()", "constant  ()", "1.000 2.000"):
        assert text in shown, text
    assert "grad 1.000" in shown
    assert "grad 3.000 2.000" in shown  # x: 1 from the sum and 2 w (0.5, 0.25), twice each: 1 + 2 * 2 * 0.5, 1 + 2 * 2 * 0.25
    assert sum(s.startswith("x  ") for s in shown) == 1  # used twice, drawn once
    assert x.grad.tolist() == [[3.0, 2.0]]


def titles(picture):
    return [t.text for t in ET.fromstring(picture).iter(f"{SVG}tspan") if t.get("font-weight")]


def attend(q, k, v):
    scores = q @ k.T
    weights = ag.softmax(scores)
    return weights @ v


class Net(nn.Module):
    def __init__(self):
        self.first, self.second = nn.Linear(2, 4), nn.Linear(4, 2)

    def forward(self, x):
        hidden = ag.relu(self.first(x))
        return self.second(hidden)


def test_boxes_have_the_names_of_variables_parameters_and_arguments():
    rows = ag.Tensor(np.ones((3, 2)), requires_grad=True)
    net, norm, other = Net(), nn.LayerNorm(2), nn.LayerNorm(2)
    with ag.record():
        y = attend(rows, rows, rows)
        right, left = ag.split(net(other(norm(y))), 2)
        loss = ag.cross_entropy(ag.concatenate([right * left, right], axis=-1), np.array([0, 1, 0]))
    shown = titles(loss.draw())
    assert shown.count("rows") == 1 and "tensor" not in shown
    for name in ("scores = MatMul @", "weights = Softmax", "y = MatMul @", "hidden = ReLU", "right = Split [0]", "left = Split [1]"):
        assert name in shown, (name, shown)  # what was stored within functions that have returned, too
    assert {"first.weight", "second.bias", "norm.weight", "other.weight", "Multiply *", "targets"} <= set(shown)
    assert net.first.weight is not None and "loss = CrossEntropy" in shown
    bare = titles(loss.draw(names={"all rows": rows}))
    assert "all rows" in bare and "loss = CrossEntropy" in bare and {"gamma", "beta", "weight", "bias"} <= set(bare)
    assert {"layers[1]", "x"} <= set(titles((ag.exp(rows) @ other.weight).draw(names={"layers": [norm.weight, other.weight]})))


def test_without_record_the_callers_variables_name_results_and_a_part_of_a_model_has_the_models_names():
    net = Net()
    inner = net.first(np.ones((1, 2)))
    out = net.second(inner)
    part = net.second
    assert part.weight is net.second.weight
    assert titles(out.draw()) == ["first.weight", "first.bias", "inner = Linear", "second.weight", "second.bias", "out = Linear"]


def test_the_variable_that_a_call_is_stored_in():
    def call(n=1):
        return through(n)

    def through(n):
        seen.append(assigned(n))
        return 0 if n == 1 else tuple(range(n))

    seen = []
    y = call()
    a = b = call()
    _, c, d = call(3)
    held = [call(), -call()]
    held[0] = call()
    call()
    p, q = call(3)[:2]
    inner = (lambda: call())()
    assert seen == [("y",), ("a",), ("_", "c", "d"), (), (), (), (), (), ("inner",)], (y, a, b, c, d, p, q, inner)


def test_it_is_written_and_shown_by_notebooks(tmp_path):
    loss, *_ = example()
    picture = loss.draw(tmp_path / "graph.svg")
    assert isinstance(picture, Picture) and picture._repr_svg_() == (tmp_path / "graph.svg").read_text(encoding="utf-8")
    assert "http" not in picture.replace("http://www.w3.org/2000/svg", "")  # nothing from outside


def test_without_record_shapes_and_leaves_are_shown_and_a_freed_graph_says_what_to_do():
    x = ag.Tensor([1.0, 2.0], requires_grad=True)
    y = ag.exp(x).sum()
    shown = texts(y.draw())
    assert "Exp  (2,)" in shown and "1.000 2.000" in shown
    y.backward()
    with pytest.raises(RuntimeError, match=r"draw: the graph has been freed by backward, expected one that was kept; .*record"):
        y.draw()


def test_a_leaf_alone_large_arrays_and_large_graphs():
    assert "3.000" in texts(ag.Tensor(3.0, requires_grad=True).draw())
    x = ag.Tensor(np.arange(100.0), requires_grad=True)
    assert any(s.startswith("mean 49.5, sd") for s in texts(x.draw()))
    assert "0.0 to 99.0" in " ".join(texts(x.draw())) or "0 to 99" in " ".join(texts(x.draw()))
    assert "empty" in texts(ag.Tensor(np.zeros((0, 3)), requires_grad=True).draw())
    y = x
    for _ in range(300):
        y = y + 1.0
    with pytest.raises(ValueError, match="a graph of more than 200 boxes, expected fewer"):
        y.draw()


def test_outputs_of_one_op_are_boxes_of_their_own():
    x = ag.Tensor([1.0, 2.0], requires_grad=True)
    with ag.record():
        a, b = ag.split(x, 2)
        (a * b).sum().backward()
        shown = texts((a * b).sum().draw())
    assert "a = Split [0]  (1,)" in shown and "b = Split [1]  (1,)" in shown


@given(st.data())
def test_no_boxes_overlap_and_all_lie_inside(data):
    """Random graphs of sums and products over a few leaves."""
    tensors = [ag.Tensor([float(i)], requires_grad=True) for i in range(data.draw(st.integers(1, 4)))]
    with ag.record():
        for _ in range(data.draw(st.integers(1, 12))):
            a, b = (tensors[data.draw(st.integers(0, len(tensors) - 1))] for _ in range(2))
            tensors.append(a * b if data.draw(st.booleans()) else a + b)
    picture = tensors[-1].draw()
    places = boxes(picture)
    width, height = (float(ET.fromstring(picture).get(key)) for key in ("width", "height"))
    for i, (x, y, w, h) in enumerate(places):
        assert x >= 0 and y >= 0 and x + w <= width + 1 and y + h <= height + 1
        for u, v, p, q in places[i + 1 :]:
            assert x + w <= u or u + p <= x or y + h <= v + 1 or v + q <= y + 1


def test_record_keeps_every_op_with_what_it_saved_and_what_came_back():
    x = ag.Tensor([1.0, 2.0], requires_grad=True)
    with ag.record() as records:
        y = ag.exp(x) * 3.0
        with ag.no_grad():
            ag.exp(x)
    assert [op_name(s.op) for s in records] == ["Exp", "Multiply", "Exp"]
    assert records[0].dys == (None,)
    y.backward(np.array([1.0, 10.0]))
    assert backend.to_host(records[0].dys[0]).tolist() == [3.0, 30.0]
    assert np.allclose(backend.to_host(records[0].dxs[0]), [3 * np.e, 30 * np.e**2])
    assert saved_bytes(records[0]) == 16 and records[1].inputs[1] == 3.0
    ag.exp(x)
    assert len(records) == 3  # outside the block nothing is kept
    assert re.fullmatch(r"[A-Z]\w+", op_name(records[0].op))
