"""The losses of DPO and GRPO against plain PyTorch, values and gradients on random draws, and against trl where that is installed."""

from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

import torch

import autograd as ag
from autograd import backend
from tests.strategies import seeds
from tinygpt import GPT, GPTConfig
from tinygpt.data.windows import IGNORED
from tinygpt.finetuning.grpo import GRPO, advantages, grpo_loss
from tinygpt.finetuning.preferences import DPO, dpo_loss

SHAPE = GPTConfig(n_layer=1, n_head=2, n_embd=16, n_positions=12, vocab_size=23, initializer_range=0.3)


def ours(loss, values):
    x = ag.Parameter(backend.to_device(values))
    found = loss(x)
    found.backward()
    return found.item(), backend.to_host(x.grad)


def theirs(loss, values):
    x = torch.tensor(values, requires_grad=True)
    found = loss(x)
    found.backward()
    return found.item(), x.grad.numpy()


def check(one, two):
    assert one[0] == pytest.approx(two[0], rel=1e-9, abs=1e-12)
    np.testing.assert_allclose(one[1], two[1], rtol=1e-7, atol=1e-12)


@settings(max_examples=30)
@given(seed=seeds, n=st.integers(1, 9), beta=st.floats(0.01, 2))
def test_dpo_is_minus_log_sigmoid_of_the_margin(seed, n, beta):
    rng = np.random.default_rng(seed)
    policy, reference = rng.normal(-30, 10, (n, 2)), rng.normal(-30, 10, (n, 2))

    def plain(x):
        ratio = x - torch.tensor(reference)
        return -torch.nn.functional.logsigmoid(beta * (ratio[:, 0] - ratio[:, 1])).mean()

    check(ours(lambda x: dpo_loss(x, backend.to_device(reference), np.zeros(n, dtype=int), beta), policy), theirs(plain, policy))


def groups(seed, n, t):
    """Log-probabilities and masks (N, T) of answers of different lengths."""
    rng = np.random.default_rng(seed)
    mask = np.arange(t) < rng.integers(1, t + 1, n)[:, None]
    old, reference = rng.normal(-2, 1, (n, t)), rng.normal(-2, 1, (n, t))
    return mask, old, reference, rng.normal(0, 1, n), old + rng.normal(0, 0.3, (n, t))


def flat(mask, old, reference, advantage, clip, beta):
    """Our loss of log-probabilities (N, T), where the mask says, with the weights of `GRPO.loss`."""
    weight = np.broadcast_to(1 / (len(mask) * mask.sum(axis=1, keepdims=True)), mask.shape)[mask]
    host = (old[mask], reference[mask], np.broadcast_to(advantage[:, None], mask.shape)[mask], weight)
    return lambda x: grpo_loss(x[np.nonzero(mask)], *(backend.to_device(a) for a in host), clip=clip, beta=beta)


@settings(max_examples=30)
@given(seed=seeds, n=st.integers(1, 6), t=st.integers(1, 6), clip=st.floats(0.05, 0.5), beta=st.sampled_from([0.0, 0.04, 1.0]))
def test_grpo_is_equation_3_of_its_paper(seed, n, t, clip, beta):
    mask, old, reference, advantage, policy = groups(seed, n, t)

    def plain(x):
        ratio, apart = torch.exp(x - torch.tensor(old)), torch.tensor(reference) - x
        a, m = torch.tensor(advantage)[:, None], torch.tensor(mask, dtype=torch.float64)
        gain = torch.minimum(ratio * a, torch.clamp(ratio, 1 - clip, 1 + clip) * a) - beta * (torch.exp(apart) - apart - 1)
        return -((gain * m).sum(1) / m.sum(1)).mean()

    check(ours(flat(mask, old, reference, advantage, clip, beta), policy), theirs(plain, policy))


def test_advantages_are_the_groups_standard_scores():
    rewards = np.random.default_rng(0).random((4, 8))
    r = torch.tensor(rewards)
    expected = (r - r.mean(1, keepdim=True)) / r.std(1, correction=0, keepdim=True)
    np.testing.assert_allclose(advantages(rewards), expected.numpy(), atol=1e-6)


def test_through_the_model_the_answers_log_probabilities_are_log_softmax_of_its_logits():
    """The objectives of a model against its logits in PyTorch: only answer tokens count, each answer as the paper weighs it."""
    gpt, rng = GPT(SHAPE), np.random.default_rng(1)
    ids, targets = rng.integers(0, 23, (6, 9)), rng.integers(0, 23, (6, 9))
    targets[:, :3], targets[1::2, 7:] = IGNORED, IGNORED
    mask, some = torch.tensor(targets != IGNORED), torch.tensor(np.maximum(targets, 0))[..., None]
    logits = torch.tensor(backend.to_host(gpt(ids).data))
    each = torch.log_softmax(logits, -1).gather(-1, some)[..., 0] * mask
    reference = rng.normal(-20, 3, (3, 2)).astype(np.float32)
    ratio = each.sum(1).reshape(3, 2) - torch.tensor(reference)
    nll = -(each.sum(1) / mask.sum(1)).reshape(3, 2)[:, 0].mean()
    wanted = -torch.nn.functional.logsigmoid(0.2 * (ratio[:, 0] - ratio[:, 1])).mean() + 0.5 * nll
    pairs = (ids.reshape(3, 2, 9), np.zeros(3, int), targets.reshape(3, 2, 9), reference)
    assert DPO(gpt, 0.2, 0.5).loss(*pairs).item() == pytest.approx(wanted.item(), rel=1e-5)

    old, reference = ((each.numpy() + rng.normal(0, 0.1, (6, 9))).astype(np.float32) for _ in range(2))
    advantage = rng.normal(0, 1, 6).astype(np.float32)
    ratio, apart = torch.exp(each - torch.tensor(old)), torch.tensor(reference) - each
    a = torch.tensor(advantage)[:, None]
    gain = torch.minimum(ratio * a, torch.clamp(ratio, 0.8, 1.2) * a) - 0.04 * (torch.exp(apart) - apart - 1)
    wanted = -((gain * mask).sum(1) / mask.sum(1)).mean()
    found = GRPO(gpt, exam=None).loss(ids, np.zeros(6, int), targets, advantage, old, reference)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-4, abs=1e-6)


# ---- trl: its trainers' own loss functions, with log-probabilities in place of a model ----------------------------------------------------


def accelerator():
    same = lambda x, *_, **__: x  # noqa: E731
    return SimpleNamespace(device="cpu", gather=same, gather_for_metrics=same, reduce=same, num_processes=1)


def test_dpo_is_trls():
    trl = pytest.importorskip("trl", reason="not part of the test extras: its dependencies are large")
    rng = np.random.default_rng(2)
    tokens, reference = rng.normal(-2, 1, (8, 5)), rng.normal(-10, 2, (4, 2))
    settings_of = SimpleNamespace(gradient_checkpointing_kwargs=None)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=accelerator(), args=settings_of, beta=0.3, ld_alpha=None, aux_loss_enabled=False,
        precompute_ref_logps=True, f_divergence_type="reverse_kl", loss_types=["sigmoid"], loss_weights=[1.0], use_weighting=False,
        label_smoothing=0.0, _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    mask = torch.ones(8, 6, dtype=torch.long)
    inputs = {"input_ids": torch.zeros(8, 6, dtype=torch.long), "attention_mask": mask, "completion_mask": mask}
    inputs |= {f"ref_{name}_logps": torch.tensor(reference[:, i]) for i, name in enumerate(("chosen", "rejected"))}

    def loss(x):
        none = torch.zeros_like(x)  # what it only reports
        outputs = SimpleNamespace(log_probs=x, entropy=none, mean_logits=none, is_top1=none > 0)
        return trl.DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)

    value, gradient = theirs(loss, tokens)  # first the chosen answers, then the rejected ones
    sums = tokens.sum(axis=1).reshape(2, 4).T
    mine = ours(lambda x: dpo_loss(x, backend.to_device(reference), np.zeros(4, int), 0.3), sums)
    check(mine, (value, gradient[:, 0].reshape(2, 4).T))


def test_grpo_is_trls():
    trl = pytest.importorskip("trl", reason="not part of the test extras: its dependencies are large")
    mask, old, reference, advantage, policy = groups(3, 6, 5)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=accelerator(), beta=0.04, epsilon_low=0.2, epsilon_high=0.2, loss_type="grpo",
        importance_sampling_level="token", top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False, aux_loss_enabled=False,
        current_gradient_accumulation_steps=1, _entropy_bonus_enabled=False, _metrics=defaultdict(lambda: defaultdict(list)),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False), vllm_importance_sampling_correction=False,
    )  # fmt: skip
    ids, there = torch.zeros(6, 5, dtype=torch.long), torch.tensor(mask, dtype=torch.float64)
    inputs = {"prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids, "completion_mask": there, "advantages": torch.tensor(advantage)}
    inputs |= {"old_per_token_logps": torch.tensor(old), "ref_per_token_logps": torch.tensor(reference)}

    def loss(x):
        trainer._get_per_token_logps_and_entropies = lambda *_, **__: (x, torch.zeros_like(x), None)
        return trl.GRPOTrainer._compute_loss(trainer, None, inputs)

    check(ours(flat(mask, old, reference, advantage, 0.2, 0.04), policy), theirs(loss, policy))
