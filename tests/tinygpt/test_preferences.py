"""Preferences: pairs and their errors, the loss of DPO by differences and by its laws, the reference without a second model, exact resume."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import autograd as ag
from autograd import backend
from autograd.optim import AdamW
from autograd.testing import check_grads
from tests.autograd.checks import numpy_only
from tests.strategies import seeds
from tests.tinygpt.helpers import Notes, checkpoint_directory
from tinygpt import GPT, GPTConfig, TrainConfig
from tinygpt.data.chat_templates import Message, chat_template, prompt_ids
from tinygpt.data.tokenizer import BPETokenizer
from tinygpt.data.windows import IGNORED
from tinygpt.finetuning.common import fit
from tinygpt.finetuning.lora import LoraConfig, add_lora
from tinygpt.finetuning.preferences import (
    DOC_KINDS,
    DPO,
    Pair,
    PairBatches,
    answer_log_probs,
    checked,
    doc_pairs,
    dpo_loss,
    encode_pairs,
    load_pairs,
    rank,
    split_pairs,
)
from tinygpt.inference.likelihood import target_log_probs, token_nats
from tinygpt.runs.run import Run

WORDS = ["red", "green", "blue", "small", "large"]
TOKENIZER = BPETokenizer.train(["User:\nAssistant:\nSay " + " ".join(WORDS)] * 3, 290)
TEMPLATE = chat_template("plain", TOKENIZER)
SHAPE = GPTConfig(n_layer=1, n_head=2, n_embd=16, n_positions=48, vocab_size=TOKENIZER.n_vocab, initializer_range=0.4)
EVERYWHERE = LoraConfig(rank=2, targets=("c_attn", "c_proj", "c_fc"))
PAIRS = [
    Pair((Message("user", f"Say {a}"),), f"{a} {b}", f"{b} {b}", f"pair {a} {b}", i)
    for i, (a, b) in enumerate((a, b) for a in WORDS for b in WORDS if a != b)
]


def batches(pairs=PAIRS):
    return PairBatches(encode_pairs(pairs, TOKENIZER, TEMPLATE, SHAPE.n_positions))


# ---- data --------------------------------------------------------------------------------------------------------------------------------


def written(tmp_path, *rows):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_texts_and_messages_are_the_same_pair(tmp_path):
    user, right, wrong = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}, {"role": "assistant", "content": "5"}
    path = written(
        tmp_path,
        {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
        {"prompt": [user], "chosen": [right], "rejected": [wrong]},
        {"chosen": [user, right], "rejected": [user, wrong]},
        {"prompt": [user], "chosen": "4", "rejected": "5"},
        {"prompt": [user, right, {"from": "human", "value": "sure?"}], "chosen": "yes", "rejected": "no"},
    )
    rows = load_pairs(path).rows
    assert all(row.prompt == (Message("user", "2 + 2?"),) and (row.chosen, row.rejected) == ("4", "5") for row in rows[:4])
    assert len({row.group for row in rows[:4]}) == 1 and rows[4].group != rows[0].group and rows[4].place == "line 5"
    assert [m.content for m in rows[4].right.messages] == ["2 + 2?", "4", "sure?", "yes"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": " a "}, "chosen and rejected are equal, expected two answers that differ"),
        ({"prompt": "q", "chosen": "", "rejected": "b"}, "chosen is empty, expected a text"),
        ({"prompt": "q", "chosen": "a", "rejected": None}, "rejected is missing, expected a text"),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "prompt is empty, expected a text"),
        ({"prompt": "q", "chosen": 4, "rejected": "b"}, "chosen is a int, expected a text"),
        ({"chosen": "a", "rejected": "b"}, "no turns, expected the assistant's|begins with the assistant"),
        ({"prompt": "q", "chosen": [{"role": "user", "content": "a"}], "rejected": "b"}, "the user speaks twice in a row"),
        ({"prompt": "q", "chosen": [{"role": "wizard", "content": "a"}], "rejected": "b"}, "role 'wizard', expected one of"),
        (
            {"prompt": "q", "chosen": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "a"}], "rejected": "b"},
            "chosen begins with other turns than the prompt",
        ),
    ],
)  # fmt: skip
def test_bad_rows_are_named_by_file_and_line(tmp_path, row, message):
    path = written(tmp_path, {"prompt": "q", "chosen": "a", "rejected": "b"}, row)
    with pytest.raises(ValueError, match=rf"pairs\.jsonl: line 2: .*({message})"):
        load_pairs(path)


def test_a_file_without_answers_and_an_unknown_name_are_named(tmp_path):
    with pytest.raises(ValueError, match="columns 'prompt', 'answer', expected prompt, chosen and rejected"):
        load_pairs(written(tmp_path, {"prompt": "q", "answer": "a"}))
    with pytest.raises(FileNotFoundError, match="did you mean 'doc-pairs'"):
        load_pairs("doc-pear")
    with pytest.raises(ValueError, match="here: chosen and rejected are equal"):
        checked(Pair((), "a", "a"), "here")
    with pytest.raises(ValueError, match="split: 1 different prompts, expected at least 3"):
        split_pairs(load_pairs(written(tmp_path, {"prompt": "q", "chosen": "a", "rejected": "b"})))


def test_default_pairs_ask_held_out_functions_apart():
    data = doc_pairs(3)
    asked, held_out = ({pair.prompt for pair in rows} for rows in (data.rows, data.held_out))
    assert len(held_out) > 80 and not asked & held_out
    assert {pair.kind for pair in data.rows} == {pair.kind for pair in data.held_out} == set(DOC_KINDS)
    assert all(pair.chosen.strip() != pair.rejected.strip() for pair in data.rows + data.held_out)
    assert len(data.rows) == pytest.approx(2 * len(asked), abs=9)
    with pytest.raises(ValueError, match=r"kind 'off topic': unknown, expected some of .*; did you mean 'off-topic'"):
        doc_pairs(3, ["off topic"])


def test_what_does_not_fit_is_named_and_cut_on_request():
    long = Pair((Message("user", "Say red"),), "red " * 60, "red " * 61, "line 7")
    with pytest.raises(ValueError, match=r"line 7: .* tokens, expected at most 49, as the context allows"):
        encode_pairs([long], TOKENIZER, TEMPLATE, 48)
    with pytest.raises(ValueError, match="line 7: two answers that are equal after they were cut"):
        encode_pairs([long], TOKENIZER, TEMPLATE, 48, truncate=True)
    with pytest.raises(ValueError, match=r"a prompt of .* tokens, expected at most 4"):
        encode_pairs(PAIRS, TOKENIZER, TEMPLATE, 4, truncate=True)


# ---- the loss ----------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(seed=seeds, n=st.integers(1, 9), beta=st.floats(0.01, 2))
def test_the_gradient_of_the_loss_is_the_slope(seed, n, beta):
    rng = np.random.default_rng(seed)
    policy, reference = rng.normal(-20, 5, (n, 2)), backend.to_device(rng.normal(-20, 5, (n, 2)))
    preferred = rng.integers(0, 2, n)
    check_grads(lambda x: dpo_loss(x, reference, preferred, beta), policy, seed=seed)


@settings(max_examples=30)
@given(seed=seeds, n=st.integers(1, 9), beta=st.floats(0.01, 2), shift=st.floats(-50, 50))
def test_laws_of_the_loss(seed, n, beta, shift):
    """At the reference it is ln 2; what both answers gain cancels; gradients of a pair sum to 0; it is minus log sigmoid of the margin."""
    rng = np.random.default_rng(seed)
    policy, reference, first = rng.normal(-20, 5, (n, 2)), rng.normal(-20, 5, (n, 2)), np.zeros(n, dtype=int)

    def loss(x):
        return dpo_loss(x, backend.to_device(reference), first, beta)

    def at(x):
        return loss(ag.Tensor(backend.to_device(x))).item()

    assert at(reference) == pytest.approx(math.log(2))
    assert at(policy + shift) == pytest.approx(at(policy), rel=1e-9)
    margin = beta * ((policy - reference) @ [1, -1])
    assert at(policy) == pytest.approx(float(np.logaddexp(0, -margin).mean()))
    x = ag.Parameter(backend.to_device(policy))
    loss(x).backward()
    gradient = backend.to_host(x.grad)
    np.testing.assert_allclose(gradient.sum(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(gradient[:, 0], -beta / (1 + np.exp(margin)) / n, atol=1e-9)


def test_a_margin_that_rounds_a_sigmoid_to_0_still_teaches():
    x = ag.Parameter(backend.to_device(np.array([[-1e4, 0.0]], dtype=np.float32)))
    loss = dpo_loss(x, backend.to_device(np.zeros((1, 2), dtype=np.float32)), np.array([0]), 1.0)
    loss.backward()
    assert loss.item() == pytest.approx(1e4) and backend.to_host(x.grad)[0].tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"beta": math.inf}, {"nll_weight": -1.0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=r"DPO: beta .*expected beta > 0 and nll_weight >= 0"):
        DPO(GPT(SHAPE), **wrong)
    with pytest.raises(ValueError, match=r"DPO: z_loss 0.1, expected 0"):
        DPO(GPT(SHAPE)).set_z_loss(0.1)


# ---- log-probabilities -------------------------------------------------------------------------------------------------------------------


def test_log_probabilities_are_those_of_the_answer_alone():
    """Sums over answer and end, whatever the batch and its padding: as token by token for one text."""
    gpt, some = GPT(SHAPE), batches()
    found = answer_log_probs(gpt, some, batch_size=7)
    for pair, both in list(zip(PAIRS, found, strict=True))[:6]:
        head = prompt_ids(TEMPLATE, pair.prompt, TOKENIZER)
        for answer, value in zip((pair.chosen, pair.rejected), both, strict=True):
            ids = [*head, *TOKENIZER.encode(answer), TOKENIZER.eos_id]
            assert value == pytest.approx(-token_nats(gpt, ids)[len(head) - 1 :].sum(), rel=1e-5)
    ranking = rank(gpt, some)
    assert (
        ranking.right.tolist() == (found[:, 0] > found[:, 1]).tolist() and ranking.n_tokens[0] == len(TOKENIZER.encode(PAIRS[0].chosen)) + 1
    )
    assert ranking.chosen_nats_per_token == pytest.approx(found[:, 0].sum() / ranking.n_tokens.sum())
    with pytest.raises(ValueError, match="none of 8 targets counts"):
        target_log_probs(gpt, np.zeros((2, 4), int), np.full((2, 4), IGNORED))


@numpy_only
def test_the_reference_is_the_adapter_switched_off():
    """Bit for bit the model before the adapter, also when the adapter has been trained; and without an adapter, the model as it is."""
    gpt, some = GPT(SHAPE), batches()
    before = answer_log_probs(gpt, some)
    adapter = add_lora(gpt, EVERYWHERE)
    some.refer_to(gpt, adapter)
    assert some.reference.tobytes() == before.tobytes()
    objective, optimizer = DPO(gpt), AdamW(gpt, lr=0.05)
    loss, n_right = objective.loss_and_correct(*some.batch(np.arange(8)))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6) and 0 <= n_right <= 8
    for _ in range(3):
        optimizer.zero_grad()
        objective.loss(*some.batch(np.arange(8))).backward()
        optimizer.step()
    moved = answer_log_probs(gpt, some)
    some.refer_to(gpt, adapter)
    assert some.reference.tobytes() == before.tobytes() and np.abs(moved - before).max() > 0.1
    assert answer_log_probs(gpt, some).tobytes() == moved.tobytes()  # and on again
    with adapter.merged(), pytest.raises(ValueError, match="switched_off: the adapter is merged"), adapter.switched_off():
        pass
    other = batches()
    with pytest.raises(ValueError, match="no reference, expected its log-probabilities; call refer_to"):
        other.batch(np.arange(2))
    other.refer_to(gpt, None)
    np.testing.assert_allclose(other.reference, moved, rtol=1e-6)


# ---- training ----------------------------------------------------------------------------------------------------------------------------


def trained(path, **changes):
    """A short training, or its continuation; (model, adapter, batches)."""
    gpt, train = GPT(SHAPE), batches()
    adapter = add_lora(gpt, EVERYWHERE)
    train.refer_to(gpt, adapter)
    run = Run.resume(path, keep=1) if path.is_dir() else Run.create("dpo", path, keep=1)
    run.tokenizer, run.adapter, run.facts = TOKENIZER, adapter, {"data_fingerprint": "x"}
    config = {"steps": 24, "lr": 0.02, "warmup_steps": 2, "micro_batch": 10, "eval_every": 8, "log_every": 1, "weight_decay": 0.0}
    fit(DPO(gpt, beta=0.3, nll_weight=changes.pop("nll_weight", 0.0)), train, train, TrainConfig(**config, **changes), Notes(), run)
    run.finish()
    return gpt, adapter, train


@numpy_only
@pytest.mark.exact
def test_it_learns_to_rank_and_resumes_bit_for_bit(tmp_path):
    before = rank(GPT(SHAPE), batches()).right.mean()
    gpt, _, train = trained(tmp_path / "whole")
    assert rank(gpt, train).right.mean() > before + 0.2
    trained(tmp_path / "parts", stop_at=11)
    trained(tmp_path / "parts")
    for which in ("best", "last"):
        one, two = (checkpoint_directory(tmp_path / name, which) for name in ("whole", "parts"))
        assert one.name == two.name
        for name in ("model.safetensors", "training.safetensors"):
            assert (one / name).read_bytes() == (two / name).read_bytes(), (which, name)


def test_the_added_term_keeps_the_chosen_answers_likely(tmp_path):
    plain, kept = (rank(trained(tmp_path / str(weight), nll_weight=weight)[0], batches()) for weight in (0.0, 1.0))
    assert kept.chosen_nats > plain.chosen_nats + 1
