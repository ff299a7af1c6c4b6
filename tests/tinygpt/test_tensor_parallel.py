"""Tensor parallelism: what the ranks of a group compute together is what one process computes, whatever the options of the model."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import autograd as ag
from autograd import nn
from autograd.optim import Muon
from tests.autograd.test_group import Counting
from tests.tinygpt.mpi_helpers import ROOT, mpiexec, needs_mpi, ranks_of_cpus
from tests.tinygpt.rank_programs import tensor_training
from tinygpt import GPT, GPTConfig
from tinygpt.errors import InvalidInput
from tinygpt.parallel.communicator import OneRank, run_ranks
from tinygpt.parallel.split_state import SplitMatrices, bounds, cut_of, joined, part_of
from tinygpt.parallel.tensor import join, split

pytestmark = ranks_of_cpus

LLAMA = {"norm": "rms", "positions": "rotary", "activation": "silu", "gated": True, "qkv_bias": False, "mlp_bias": False,
         "attention_output_bias": False, "tie_word_embeddings": False}  # fmt: skip

OPTIONS = {
    "gpt2": {},
    "untied": {"tie_word_embeddings": False, "qkv_bias": False, "n_inner": 12, "attn_pdrop": 0.3},
    "llama": LLAMA,
    "grouped heads": {**LLAMA, "n_kv_head": 2, "head_size": 6, "rope_fraction": 0.7},
    "one weight for all heads": {**LLAMA, "qk_norm": "head", "n_kv_head": 2, "embedding_norm": True},
    "heads normalized together": {**LLAMA, "qk_norm": "all", "norm_position": "output", "norm_offset": 0.5},
    "layer norms of heads": {"qk_norm": "head", "logit_softcap": 3.0, "attention_softcap": 2.0, "embedding_scale": 4.0},
    "layer norm of all heads": {"qk_norm": "all", "parallel_residual": True, "shared_norm": True},
    "alibi": {"positions": "alibi", "parallel_residual": True, "window": 4, "window_pattern": "SL", "mlp_bias": False},
}


def without_key_bias(options, arrays):
    """(arrays with 0 for the keys' biases, those biases). What is added to all keys shifts all scores of a query alike, and softmax ignores that:
    such a bias has a gradient of rounding alone, 1e-17, which AdamW divides by eps, 1e-8. It counts where keys are turned or scores capped."""
    arrays = {name: np.array(a) for name, a in arrays.items()}
    keys = {}
    if options.get("positions") == "rotary" or options.get("attention_softcap"):
        return arrays, keys
    for name, a in arrays.items():
        if name.endswith("attn.k_norm.bias"):
            keys[name], a[:] = a.copy(), 0
        elif name.endswith("attn.c_attn.bias") and "qk_norm" not in options:
            keys[name], a[16:32] = a[16:32].copy(), 0
    return arrays, keys


def compare(options, found, expected, atol):
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=atol)  # losses, norms of gradients and of updates
    (mine, keys), (right, keys_right) = (without_key_bias(options, each[1]) for each in (found, expected))
    for name in right:
        np.testing.assert_allclose(mine[name], right[name], rtol=0, atol=atol, err_msg=name)
    for name in keys_right:
        np.testing.assert_allclose(keys[name], keys_right[name], rtol=0, atol=1e-10, err_msg=name)
    for key, arrays in expected[2].items():
        for name in arrays:
            np.testing.assert_allclose(found[2][key][name], arrays[name], rtol=0, atol=atol, err_msg=f"{key} of {name}")


def check(name, size, seed, kind, n_batches, dropout):
    options = OPTIONS[name]
    size = min(size, options.get("n_kv_head", 4))
    arguments = (options, seed, "float64", kind, n_batches, 10, dropout)
    ranks = run_ranks(size, lambda ranks: tensor_training(ranks, *arguments))
    assert all(each == ranks[0] for each in ranks)  # bit for bit
    compare(options, ranks[0], tensor_training(OneRank(), *arguments), atol=1e-12)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_on_ranks_is_as_in_one_process(name):
    i = list(OPTIONS).index(name)
    check(name, (2, 4)[i // 2 % 2], i, ("adamw", "muon")[i % 2], 1 + i % 2, (0.2, 0.0)[i // 3 % 2])


@given(
    name=st.sampled_from(sorted(OPTIONS)), size=st.sampled_from([1, 2, 4]), seed=st.integers(0, 1000), kind=st.sampled_from(["adamw", "muon"]),
    n_batches=st.integers(1, 2), dropout=st.sampled_from([0.0, 0.2]),
)  # fmt: skip
@settings(max_examples=5)
def test_ranks_compute_what_one_process_computes(name, size, seed, kind, n_batches, dropout):
    check(name, size, seed, kind, n_batches, dropout)


@pytest.mark.parametrize(("name", "kind"), [("gpt2", "adamw"), ("grouped heads", "muon")])
def test_fifty_updates_in_float32_and_twice_the_same_bits(name, kind):
    arguments = ({**OPTIONS[name], "n_layer": 1}, 0, "float32", kind, 1, 50)
    ranks = run_ranks(2, lambda ranks: tensor_training(ranks, *arguments))
    np.testing.assert_allclose(ranks[0][0], tensor_training(OneRank(), *arguments)[0], rtol=0, atol=1e-4)
    short, again = (run_ranks(2, lambda ranks: tensor_training(ranks, *arguments[:-1], 3)) for _ in range(2))
    assert short == again and short[0] == short[1]


@needs_mpi
def test_ranks_under_mpi_compute_what_one_process_computes():
    options = OPTIONS["one weight for all heads"]
    done = mpiexec(2, ROOT / "tests/tinygpt/rank_programs.py", "tensor", json.dumps(options), 1, '"float64"', '"muon"', 2)
    assert done.returncode == 0, done.stderr
    compare(options, json.loads(done.stdout), tensor_training(OneRank(), options, 1, "float64", "muon", 2), atol=1e-12)


@needs_mpi
def test_the_teaching_script():
    done = mpiexec(2, ROOT / "examples/parallel/03_tensor.py")
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.rstrip().split("\n")
    assert float(re.search(r"differ by at most (\S+)$", last)[1]) < 1e-12
    page = (ROOT / "docs/tensor-parallel.md").read_text(encoding="utf-8")
    assert "\n".join([*(line.rstrip() for line in lines), last.partition(";")[0]]) in page


def small(options, seed=0, **more):
    config = GPTConfig(**{"n_layer": 2, "n_head": 4, "n_embd": 16, "n_positions": 6, "vocab_size": 19, **options, **more})
    model = GPT(config, seed=seed)
    for p in model.parameters():
        p.data = p.data + 0.1 * np.random.default_rng(seed).standard_normal(p.shape)
    return model


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("size", [1, 2])
def test_split_and_joined_again(name, size):
    """The same weights, logits and mean loss; of what is divided, all ranks together hold one copy."""
    model, ids = small(OPTIONS[name]).eval(), np.random.default_rng(0).integers(0, 19, (2, 6))

    def program(group):
        part = split(small(OPTIONS[name]).eval(), group)
        with ag.no_grad():
            logits = part(ids).data
        mask = np.array([[1] * 6, [0, 0, 1, 1, 1, 1]])  # padding
        held = {key: p.size for key, p in part.named_parameters()}
        return held, logits, part.loss(ids, ids, mask).item(), join(part, group)

    ranks = run_ranks(size, program)
    full = dict(model.named_parameters())
    for held, logits, loss, again in ranks:
        assert list(held) == list(full)  # by the full model's names, in its order
        np.testing.assert_allclose(logits, model(ids).data, rtol=0, atol=1e-12)
        assert loss == pytest.approx(model.loss(ids, ids, np.array([[1] * 6, [0, 0, 1, 1, 1, 1]])).item(), abs=1e-12)
        assert not again.training
        for key, p in again.named_parameters():
            np.testing.assert_array_equal(p.data, full[key].data)
    for key, p in full.items():
        n = 1 if cut_of(key, model.config) else size
        assert sum(held[key] for held, *_ in ranks) == n * p.size


@given(size=st.integers(1, 4), vocabulary=st.integers(4, 40), name=st.sampled_from(sorted(OPTIONS)), seed=st.integers(0, 100))
@settings(max_examples=12)
def test_parts_of_all_ranks_are_the_full_array(size, vocabulary, name, seed):
    model = small({**OPTIONS[name], "n_head": 12, "n_kv_head": 12, "head_size": 6, "n_inner": 12}, vocab_size=vocabulary)
    rng = np.random.default_rng(seed)
    full = {key: rng.standard_normal(p.shape) for key, p in model.named_parameters()}

    def program(group):
        parts = {key: part_of(key, a, model.config, group) for key, a in full.items()}
        for key, part in parts.items():
            assert not np.shares_memory(part, full[key])
            np.testing.assert_array_equal(joined(key, part, model.config, group), full[key], err_msg=key)
        return parts["wte.weight"].shape[0]

    rows = run_ranks(size, program)
    assert sum(rows) == vocabulary and max(rows) - min(rows) <= 1
    assert [bounds(vocabulary, r, size)[1] - bounds(vocabulary, r, size)[0] for r in range(size)] == rows


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputed_blocks_give_the_same_gradients(dropout):
    """In the backward pass the ranks send again what they sent forward, in the same order, with the same masks."""
    ids = np.random.default_rng(0).integers(0, 19, (2, 6))

    def program(group):
        found = []
        for recompute in (False, True):
            part = split(small({}, dropout=dropout).recompute_blocks(recompute), group)
            part.loss(ids, ids).backward()
            found.append({key: p.grad for key, p in part.named_parameters()})
        return found

    for plain, recomputed in run_ranks(2, program):
        for key, gradient in plain.items():
            np.testing.assert_array_equal(recomputed[key], gradient, err_msg=key)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_what_is_sent(name):
    """Per block two sums of B T C numbers forward and two backward; one for the embedding; four numbers per row, and one sum, for the loss."""
    ids = np.zeros((2, 6), int)

    def program(group):
        counting = Counting(group)
        loss = split(small(OPTIONS[name]), counting).loss(ids, ids)
        forward = list(counting.sent)
        loss.backward()
        return forward, counting.sent[len(forward) :]

    x, rows = 2 * 6 * 16, 2 * 6
    assert run_ranks(2, program) == [([x] + [x, x] * 2 + [4 * rows], [x] + [x, x] * 2)] * 2


def test_the_masks_of_dropout_are_those_of_one_process():
    """Of rows in the middle of a batch as well: the first row of a part, and the draw, decide."""
    ids = np.random.default_rng(0).integers(0, 19, (3, 6))

    def loss(model):
        model.dropout_stream.first_row, model.dropout_stream.counter = 5, 3
        return [model.loss(ids, ids).item(), model.dropout_stream.counter]

    expected = loss(small({}, dropout=0.4))
    for size in (1, 2, 4):
        for found in run_ranks(size, lambda group: loss(split(small({}, dropout=0.4), group))):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_muon_with_matrices_of_its_own_choice():
    """Queries, keys and values as one matrix, and one that all ranks hold."""
    ids = np.random.default_rng(0).integers(0, 19, (3, 6))

    def program(group, cls):
        part = split(small({}), group)
        named = ["h.0.attn.c_attn.weight", "h.1.mlp.c_proj.weight", "wpe.weight", "wte.weight"]
        optimizer = cls(part, matrices=named)
        part.loss(ids, ids).backward()
        optimizer.step()
        return {key: p.data for key, p in join(part, group).named_parameters()}

    expected = program(OneRank(), Muon)
    for found in run_ranks(2, lambda g: program(g, type("Muon", (SplitMatrices, Muon), {"config": small({}).config, "group": g}))):
        for key, a in expected.items():
            np.testing.assert_allclose(found[key], a, rtol=0, atol=1e-10 if key.endswith("c_attn.bias") else 1e-12, err_msg=key)


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        ({}, 3, "n_head 4 on 3 ranks, expected a multiple, as each takes as many; take a group of another size, or --n-head 3 or 6"),
        ({"n_kv_head": 2}, 4, "n_kv_head 2 on 4 ranks, expected a multiple, .* or --n-kv-head 4"),
        ({"n_inner": 15}, 2, "n_inner 15 on 2 ranks, expected a multiple, .* or --n-inner 14 or 16"),
        ({"vocab_size": 3}, 4, "vocab_size 3 on 4 ranks, expected at least a token for each; start fewer"),
    ],
)
def test_what_does_not_divide_is_named(options, size, message):
    with pytest.raises(InvalidInput, match=f"tensor parallelism: {message}"):
        run_ranks(size, lambda group: split(small(options), group))


def test_logits_have_no_backward_pass_and_ids_a_range():
    def logits(group):
        return split(small({}), group)([[1, 2]])

    with pytest.raises(InvalidInput, match="logits for a backward pass, expected them under no_grad; take model\\.loss"):
        run_ranks(2, logits)
    with pytest.raises(ValueError, match="embedding id: 19 at position"):
        run_ranks(2, lambda group: split(small({}), group).loss([[1, 19]], [[1, 2]]))


def test_a_part_is_an_ordinary_module():
    part = split(small(OPTIONS["heads normalized together"]), OneRank())
    assert isinstance(part, GPT) and {type(m) for _, m in part.named_modules()} >= {nn.Linear}
    assert "SplitAttention" in repr(part) and part.n_classes == 19
