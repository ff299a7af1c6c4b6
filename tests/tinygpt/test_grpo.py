"""Rewards and GRPO: pure rewards, advantages within a group, the loss by differences and by its laws, draws that repeat, exact resume."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import autograd as ag
from autograd import backend
from autograd.testing import check_grads
from tests.autograd.checks import numpy_only
from tests.strategies import seeds
from tests.tinygpt.helpers import Notes, checkpoint_directory
from tinygpt import GPT, GPTConfig, TrainConfig
from tinygpt.data.chat_templates import chat_template
from tinygpt.data.tokenizer import BPETokenizer
from tinygpt.data.windows import IGNORED
from tinygpt.finetuning.common import fit
from tinygpt.finetuning.grpo import GRPO, Exam, GroupConfig, Numbers, Rollouts, advantages, grpo_loss, targets_of
from tinygpt.finetuning.instructions import split_instructions
from tinygpt.finetuning.lora import LoraConfig, add_lora
from tinygpt.finetuning.reward_curves import plot_rewards, read_curves
from tinygpt.finetuning.rewards import Problem, exact, graded, load_problems, prefix
from tinygpt.runs.run import Run

TOKENIZER = BPETokenizer.train(["User:\nAssistant:\nSay red green blue"] * 3, 285)
TEMPLATE = chat_template("plain", TOKENIZER)
SHAPE = GPTConfig(n_layer=1, n_head=2, n_embd=16, n_positions=40, vocab_size=TOKENIZER.n_vocab, initializer_range=0.4)
PROBLEMS = [Problem(f"Say {word}", word, place=f"row {i}", group=i) for i, word in enumerate(["red", "green", "blue", "e", "r", "d"])]


def has_e(problem, answer):
    """A reward that a random model earns often enough to learn from."""
    return float("e" in answer)


def exam(reward=has_e, problems=PROBLEMS, **changes):
    return Exam(GPT(SHAPE), TOKENIZER, TEMPLATE, problems, reward, **{"max_new_tokens": 4, **changes})


# ---- rewards -----------------------------------------------------------------------------------------------------------------------------


def test_rewards_see_the_answer_alone():
    problem = Problem("Sort the letters: c b a", "a b c")
    assert [exact(problem, text) for text in ("a b c", " A  B c\n", "a b", "a b c.", "")] == [1, 1, 0, 0, 0]
    assert [prefix(problem, text) for text in ("a b c", "a c b", "a b", "b a c", "a b c d", "")] == [1, 1 / 3, 2 / 3, 0, 3 / 4, 0]


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "1"])
def test_a_reward_that_is_not_finite_is_an_error(value):
    def broken(problem, answer):
        return value

    with pytest.raises(FloatingPointError, match=r"broken: .* for the answer 'x y' to 'Say red', expected a finite number"):
        graded(broken, PROBLEMS[:1], ["x y"])


@pytest.mark.parametrize("name", ["letters", "arithmetic"])
def test_problems_differ_and_are_right(name):
    data = load_problems(name)
    assert load_problems(name).rows == data.rows and load_problems(name, seed=1).rows != data.rows
    for row in data.rows[:200]:
        if name == "letters":
            given = row.instruction.removeprefix("Sort the letters: ").split()
            assert row.output.split() == sorted(given) and len(set(given)) == len(given)
        else:
            assert str(eval(row.instruction.removeprefix("What is ").removesuffix("?"))) == row.output
    assert len({row.output if name == "letters" else row.instruction for row in data.rows}) == len(data.rows)
    parts = split_instructions(data, (0.8, 0.05, 0.15), seed=0)
    assert not {row.group for row in parts.train} & {row.group for row in parts.test}


def test_an_unknown_name_and_a_prompt_without_room_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"problems 'leters': expected letters, arithmetic, or a file .*; did you mean 'letters'"):
        load_problems("leters")
    (tmp_path / "mine.json").write_text(json.dumps([{"question": "2?", "answer": "3"}]), encoding="utf-8")
    assert load_problems(tmp_path / "mine.json").rows[0].output == "3"
    with pytest.raises(ValueError, match=r"row 1: a prompt of .* tokens, expected at most 2, so that an answer of 38 fits"):
        exam(problems=PROBLEMS[1:], max_new_tokens=38)
    with pytest.raises(ValueError, match=r"template chatml: '<\|im_end\|>' is .* tokens of this tokenizer, expected one that ends"):
        Exam(GPT(SHAPE), TOKENIZER, chat_template("chatml", TOKENIZER), PROBLEMS)


@pytest.mark.parametrize("wrong", [{"group": 1}, {"iterations": 0}, {"temperature": 0.0}, {"weighting": "best"}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        GroupConfig(**wrong)
    with pytest.raises(ValueError, match=r"GRPO: clip 1.5, beta 0.0, expected 0 < clip < 1"):
        GRPO(GPT(SHAPE), exam(), clip=1.5, beta=0.0)


# ---- advantages --------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(seed=seeds, n=st.integers(1, 5), g=st.integers(2, 9), scale=st.floats(0.1, 100), shift=st.floats(-50, 50))
def test_advantages_are_normalized_within_their_group(seed, n, g, scale, shift):
    rewards = np.random.default_rng(seed).random((n, g)).round(2)
    found = advantages(rewards)
    equal = rewards.std(axis=1) == 0
    np.testing.assert_allclose(found.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(found.std(axis=1), np.where(equal, 0, 1), atol=1e-5)
    np.testing.assert_allclose(advantages(rewards * scale + shift), found, atol=1e-4)  # only the order and the spread within it count
    best = advantages(rewards, "best-of-n")
    assert (best.sum(axis=1) == ~equal).all() and (rewards[best == 1] == rewards[~equal].max(axis=1, initial=0)).all()


def test_a_group_that_agrees_teaches_nothing():
    assert not advantages(np.full((2, 4), 0.1 + 0.2)).any() and not advantages(np.ones((2, 4)), "best-of-n").any()


# ---- the loss ----------------------------------------------------------------------------------------------------------------------------


def drawn(seed, k):
    rng = np.random.default_rng(seed)
    old, reference, advantage = rng.normal(-2, 1, k), rng.normal(-2, 1, k), rng.normal(0, 1, k)
    return old, reference, advantage, np.full(k, 1 / k), old + rng.uniform(-0.5, 0.5, k)


@settings(max_examples=30)
@given(seed=seeds, k=st.integers(1, 12), beta=st.sampled_from([0.0, 0.04, 1.0]))
def test_the_gradient_of_the_loss_is_the_slope(seed, k, beta):
    old, reference, advantage, weight, policy = drawn(seed, k)
    ratio = np.exp(policy - old)
    policy = np.where(np.abs(np.abs(ratio - 1) - 0.2) < 1e-3, old + 0.05, policy)  # not at a kink
    host = [backend.to_device(a) for a in (old, reference, advantage, weight)]
    check_grads(lambda x: grpo_loss(x, *host, clip=0.2, beta=beta), policy, seed=seed)


@settings(max_examples=30)
@given(seed=seeds, k=st.integers(1, 12))
def test_laws_of_the_loss(seed, k):
    """Where nothing has moved, its gradient is that of the policy's; the clamp stops only pushes that have had their effect; KL >= 0."""
    old, reference, advantage, weight, policy = drawn(seed, k)

    def gradient(at, beta):
        x = ag.Parameter(backend.to_device(at))
        loss = grpo_loss(x, *(backend.to_device(a) for a in (old, reference, advantage, weight)), clip=0.2, beta=beta)
        loss.backward()
        return backend.to_host(x.grad), loss.item()

    np.testing.assert_allclose(gradient(old, 0.0)[0], -advantage * weight, atol=1e-12)
    ratio = np.exp(policy - old)
    cut = np.where(advantage > 0, ratio > 1.2, ratio < 0.8)
    np.testing.assert_allclose(gradient(policy, 0.0)[0], np.where(cut, 0, -advantage * ratio * weight), atol=1e-12)
    kl = gradient(policy, 1.0)[1] - gradient(policy, 0.0)[1]
    apart = reference - policy
    assert kl == pytest.approx(float((np.exp(apart) - apart - 1).mean())) and kl >= 0


# ---- draws -------------------------------------------------------------------------------------------------------------------------------


def test_targets_are_the_answer_and_its_end():
    asks = exam()
    answers = asks.draw([0, 2], temperature=1.0, seeds=[3, 4])
    ids, targets = targets_of(answers)
    for row, (sequence, n_prompt) in enumerate(zip(answers.sequences, answers.n_prompt, strict=True)):
        assert ids[row, : len(sequence) - 1].tolist() == sequence[:-1].tolist()
        assert targets[row][targets[row] != IGNORED].tolist() == sequence[n_prompt:].tolist()
    assert (answers.n_tokens == [(row != IGNORED).sum() for row in targets]).all()


@numpy_only
def test_a_draw_depends_on_weights_and_number_alone():
    asks, lines = exam(), []
    adapter = add_lora(asks.policy, LoraConfig(rank=2))
    which = np.array([1, 3])
    rollouts = Rollouts(asks, range(6), GroupConfig(4, iterations=2, max_new_tokens=4), adapter, record=lines.append)
    first, same = rollouts.drawn(which, 4), rollouts.drawn(np.array([0, 5]), 5)
    assert all(a is b for a, b in zip(first, same, strict=True)) and len(lines) == 1 and lines[0]["step"] == 5
    later = rollouts.drawn(which, 6)
    again = Rollouts(asks, range(6), GroupConfig(4, iterations=2, max_new_tokens=4), adapter).drawn(which, 4)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True)) and not np.array_equal(first[0], later[0])
    ids, counted, *_, old, reference = first
    assert len(ids) == len(counted) == 8 and np.array_equal(old, reference)  # the adapter has not moved yet
    assert lines[0]["kl"] == 0 and 0 <= lines[0]["reward"] <= 1 and 1 <= lines[0]["length"] <= 4
    restored = Rollouts(asks, range(6), GroupConfig(4, iterations=2, max_new_tokens=4), adapter)
    restored.load_state(json.loads(json.dumps(rollouts.state())))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(restored.drawn(which, 7), later, strict=True))
    # At the weights that the answers were drawn from every ratio is 1, so the loss is minus the mean advantage: 0.
    assert GRPO(asks.policy, asks).loss(*first).item() == pytest.approx(0, abs=1e-6)


# ---- training ----------------------------------------------------------------------------------------------------------------------------


def trained(path, weighting="grpo", with_adapter=True, iterations=2, **changes):
    """A short training, or its continuation."""
    asks = exam()
    adapter = add_lora(asks.policy, LoraConfig(rank=2, targets=("c_attn", "c_proj", "c_fc"))) if with_adapter else None
    run = Run.resume(path, keep=1) if path.is_dir() else Run.create("grpo", path, keep=1)
    run.tokenizer, run.adapter, run.facts = TOKENIZER, adapter, {"data_fingerprint": "x"}
    groups = GroupConfig(6, iterations=iterations, max_new_tokens=4, weighting=weighting)
    rollouts = Rollouts(asks, range(6), groups, adapter, record=run.log)
    config = {"steps": 16, "lr": 0.02, "warmup_steps": 2, "micro_batch": 4, "eval_every": 8, "log_every": 1, "weight_decay": 0.0}
    fit(GRPO(asks.policy, asks), rollouts, Numbers(range(6)), TrainConfig(**config, **changes), Notes(), run)
    run.finish()
    return read_curves(path / "metrics.jsonl")


@numpy_only
@pytest.mark.exact
@pytest.mark.parametrize("with_adapter", [True, False], ids=["adapter", "all-weights"])
def test_it_earns_more_and_resumes_bit_for_bit(tmp_path, with_adapter):
    curves = trained(tmp_path / "whole", with_adapter=with_adapter)
    rewards = curves["reward"][:, 1]
    assert with_adapter or rewards[-3:].mean() > rewards[:2].mean() + 0.2  # adapters of a random model have little to select from
    assert curves["kl"][0, 1] == 0 < curves["kl"][-1, 1]
    trained(tmp_path / "parts", with_adapter=with_adapter, stop_at=7)  # between two updates on the same answers
    again = trained(tmp_path / "parts", with_adapter=with_adapter)
    assert all(np.array_equal(curves[name], again[name]) for name in curves)
    one, two = (checkpoint_directory(tmp_path / name, "last") for name in ("whole", "parts"))
    for name in ("model.safetensors", "training.safetensors"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_the_best_of_each_group_alone_teaches_too(tmp_path):
    curves = trained(tmp_path / "best", weighting="best-of-n", iterations=1)
    assert curves["reward"][-3:, 1].mean() > curves["reward"][:3, 1].mean()
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    plot_rewards(tmp_path / "best" / "metrics.jsonl", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
