"""Learning from rewards (GRPO): the model answers, the answers are checked, and those above the mean of their group become likelier.

    exam = Exam(gpt, tokenizer, template, problems, exact)      # asks, and grades
    rollouts = Rollouts(exam, train, GroupConfig(group=8), adapter)
    fit(GRPO(gpt, exam, clip=0.2, beta=0.04), rollouts, Numbers(validation), ...)       # tinygpt.finetuning.common

One update: for each of P problems G answers are drawn from the model as it is now; each answer's advantage is its reward minus the mean of
its group, over the group's standard deviation, so no second network has to estimate how hard the problem is. Then `iterations` updates on
these answers, each of which may change a token's probability only by a factor of 1 - clip to 1 + clip.

Source  Shao et al. 2024, DeepSeekMath, arXiv:2402.03300, section 4.1 and algorithm 1. The derivation, and what was measured: docs/rewards.md.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

import autograd as ag
from autograd import Array, backend, nn
from tinygpt.data.chat_templates import ChatTemplate, Message, prompt_ids
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.data.windows import IGNORED, pad
from tinygpt.errors import InvalidInput
from tinygpt.finetuning.lora import Adapter
from tinygpt.finetuning.objectives import Objective
from tinygpt.finetuning.rewards import Problem, Reward, exact, graded, question
from tinygpt.inference.decoding import generate
from tinygpt.inference.likelihood import target_log_probs
from tinygpt.models.gpt import GPT
from tinygpt.models.protocols import Batch
from tinygpt.storage.checked_json import Json

Weighting = Literal["grpo", "best-of-n"]
"""How the answers of a group count: by their advantages, or the best one alone."""


@dataclass(frozen=True)
class GroupConfig:
    """How answers are drawn and weighed."""

    group: int = 8
    """Answers to each problem (G)."""
    iterations: int = 1
    """Updates on the same answers before new ones are drawn."""
    temperature: float = 1.0
    """Of the draws; at 1 they are the model's own distribution, which the ratio assumes."""
    max_new_tokens: int = 16
    """Longest answer."""
    weighting: Weighting = "grpo"
    """grpo: advantages; best-of-n: the best answer of each group that has a better and a worse one counts 1, all others 0."""
    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        if self.group < 2 or self.iterations < 1 or self.max_new_tokens < 1 or not 0 < self.temperature < float("inf"):
            rule = "group >= 2, iterations and max_new_tokens >= 1, temperature > 0 and finite; a group of one has no spread"
            raise InvalidInput(f"{self}: expected {rule}")
        if self.weighting not in get_args(Weighting):
            raise InvalidInput(f"weighting: {self.weighting!r}, expected {' or '.join(get_args(Weighting))}; grpo is usual")


def advantages(rewards: np.ndarray, weighting: Weighting = "grpo") -> np.ndarray:
    """How each answer of rewards (P, G), a group per row, counts: (P, G) float32.

    grpo        A = (r - mean r) / std r of its group, 0 where all rewards of a group are equal: those answers teach nothing
    best-of-n   1 for the first of the best answers of a group, 0 for the others, and for all where they are equally good
    Source  Shao et al. 2024, arXiv:2402.03300, section 4.1.2.
    """
    r = np.asarray(rewards, dtype=np.float64)
    deviation = r.std(axis=1, keepdims=True)
    differ = deviation > 1e-9  # rounding of equal rewards must not be blown up to a spread
    if weighting == "best-of-n":
        best = np.arange(r.shape[1]) == r.argmax(axis=1)[:, None]
        return np.asarray(best & differ, dtype=np.float32)
    return np.where(differ, (r - r.mean(axis=1, keepdims=True)) / np.where(differ, deviation, 1), 0).astype(np.float32)


# ---- asking ------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """Answers to problems, in order: ids of prompt and answer, its end included where it has ended; tokens of the prompt; text; whether ended."""

    sequences: list[np.ndarray]
    n_prompt: np.ndarray
    texts: list[str]
    ended: np.ndarray

    @property
    def n_tokens(self) -> np.ndarray:
        """(N,) tokens of each answer, its end included."""
        return np.array([len(ids) - n for ids, n in zip(self.sequences, self.n_prompt, strict=True)])


class Exam:
    """Asks a model, and grades its answers.

    template   how question and answer are written; it must end the assistant's turn with one token, else a ValueError says so
    problems   all that may be asked, by number; each prompt must leave room for an answer in the context, else a ValueError names it
    reward     of an answer, see `tinygpt.finetuning.rewards`
    """

    def __init__(
        self, policy: GPT, tokenizer: Tokenizer, template: ChatTemplate, problems: Sequence[Problem], reward: Reward = exact, *,
        max_new_tokens: int = 16,
    ) -> None:  # fmt: skip
        stop = tokenizer.encode(template.stop, allow_special=True)
        if len(stop) != 1:
            found = f"template {template.name}: {template.stop!r} is {len(stop)} tokens of this tokenizer"
            raise InvalidInput(f"{found}, expected one that ends the assistant's turn; choose --template plain")
        self.policy, self.tokenizer, self.problems, self.reward = policy, tokenizer, list(problems), reward
        self.max_new_tokens, self.ends = max_new_tokens, {*tokenizer.end_ids, *stop}
        self.prompts = [prompt_ids(template, [Message("user", question(problem))], tokenizer) for problem in self.problems]
        most = policy.config.n_positions - max_new_tokens
        for problem, ids in zip(self.problems, self.prompts, strict=True):
            if len(ids) > most:
                rule = f"expected at most {most}, so that an answer of {max_new_tokens} fits into the context"
                raise InvalidInput(f"{problem.place or 'problem'}: a prompt of {len(ids)} tokens, {rule}; shorten it, or --max-new-tokens")

    def draw(self, which: Sequence[int] | np.ndarray, *, temperature: float, seeds: Sequence[int] | int = 0) -> Drawn:
        """One answer to each of the problems numbered `which`; temperature 0: the likeliest tokens."""
        prompts = [self.prompts[i] for i in which]
        made = generate(
            self.policy,
            prompts,
            self.max_new_tokens,
            temperature=temperature,
            top_k=0,
            eos_id=self.ends,
            seed=seeds,
            n_tokens=self.tokenizer.n_vocab,
        )
        ended = np.array([reason == "eos" for reason in made.stop_reason])
        texts = [self.tokenizer.decode(ids[:-1] if end else ids).strip() for ids, end in zip(made.sequences, ended, strict=True)]
        sequences = [np.concatenate([head, ids]).astype(np.int64) for head, ids in zip(prompts, made.sequences, strict=True)]
        return Drawn(sequences, np.array([len(head) for head in prompts]), texts, ended)

    def rewards(self, which: Sequence[int] | np.ndarray, answers: Drawn) -> np.ndarray:
        """(N,) rewards of the answers; one that did not end within max_new_tokens earns what its text earns."""
        return graded(self.reward, [self.problems[i] for i in which], answers.texts)

    def right(self, which: Sequence[int] | np.ndarray, answers: Drawn) -> np.ndarray:
        """(N,) 1 for answers that are right and have ended, whatever the reward is."""
        return np.where(answers.ended, graded(exact, [self.problems[i] for i in which], answers.texts), 0.0)


class Numbers:
    """Problems of an exam by number, as batches to measure on: `GRPO.loss_and_correct` asks them."""

    def __init__(self, numbers: Sequence[int] | np.ndarray) -> None:
        self.numbers = np.asarray(numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def batch(self, which: np.ndarray) -> Batch:
        """The numbers (N,), and a target for each that counts."""
        numbers = self.numbers[which]
        return numbers, np.zeros(len(numbers), dtype=np.int64)


# ---- rollouts ----------------------------------------------------------------------------------------------------------------------------


class Rollouts(Numbers):
    """The problems to learn from. Each batch that the trainer draws holds G answers to each of its problems, with their advantages.

    numbers    of the exam's problems
    adapter    the reference is the policy with it switched off; None: a copy of the policy as it is now
    keeps_kl   whether log-probabilities under the reference are computed at all
    record     called with a line of metrics for each draw: reward, share of right answers, KL, length

    A draw is a pure function of the weights and the batch's number, so a run that is resumed continues with the same answers. Between
    `iterations` updates on the same answers, they are part of the run's state: `state`, which `load_state` restores.
    """

    def __init__(
        self, exam: Exam, numbers: Sequence[int] | np.ndarray, config: GroupConfig, adapter: Adapter | None = None, *, keeps_kl: bool = True,
        record: Callable[[dict[str, Json]], None] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(numbers)
        self.exam, self.config, self.adapter, self.keeps_kl, self.record = exam, config, adapter, keeps_kl, record
        self.copy = copy.deepcopy(exam.policy) if keeps_kl and adapter is None else None
        self.number, self.held = -1, tuple[Array, ...]()  # the draw in use

    def drawn(self, which: np.ndarray, number: int) -> Batch:
        """The arguments of `GRPO.loss` for update `number` of a run; the answers of an earlier one within `iterations`, whatever `which` is."""
        first = number - number % self.config.iterations
        if self.number != first:
            self.held, facts = self._draw(np.repeat(self.numbers[which], self.config.group), first)
            self.number = first
            if self.record:
                self.record({"step": number + 1, **facts})
        return self.held

    def _draw(self, asked: np.ndarray, number: int) -> tuple[Batch, dict[str, Json]]:
        """G answers each, asked (P G,) with equal numbers next to each other; and what is known of them."""
        config, exam = self.config, self.exam
        seeds = np.random.default_rng([config.seed, number]).integers(2**62, size=len(asked)).tolist()
        answers = exam.draw(asked, temperature=config.temperature, seeds=seeds)
        rewards = exam.rewards(asked, answers)
        groups = rewards.reshape(-1, config.group)
        ids, targets = targets_of(answers)
        old = _log_probs(exam.policy, ids, targets)
        reference = old
        if self.keeps_kl:
            with self._reference() as model:
                reference = _log_probs(model, ids, targets)
        weight = advantages(groups, config.weighting).ravel()
        difference = (reference - old)[targets != IGNORED].astype(np.float64)
        facts = {
            "reward": float(rewards.mean()), "right": float(exam.right(asked, answers).mean()),
            "kl": float((np.exp(difference) - difference - 1).mean()), "length": float(answers.n_tokens.mean()),
            "finished": float(answers.ended.mean()), "groups_that_differ": float((groups.std(axis=1) > 1e-9).mean()),
        }  # fmt: skip
        return (ids, np.zeros(len(ids), dtype=np.int64), targets, weight, old, reference), facts

    @contextlib.contextmanager
    def _reference(self) -> Iterator[GPT]:
        if self.adapter is None:
            assert self.copy is not None
            yield self.copy
            return
        with self.adapter.switched_off():
            yield self.exam.policy

    def state(self) -> dict[str, Json]:
        """The draw in use, as JSON values, in which floats of 32 bits are exact; nothing where no other update learns from it."""
        held = self.held if self.config.iterations > 1 else ()
        return {"number": self.number, "arrays": [array.tolist() for array in held]} if held else {}

    def load_state(self, state: dict[str, Json]) -> None:
        """Restores what `state` gave."""
        self.number = int(state.get("number", -1))
        self.held = tuple(np.array(values, dtype=kind) for values, kind in zip(state.get("arrays", ()), _KINDS, strict=False))


_KINDS = (np.int64, np.int64, np.int64, np.float32, np.float32, np.float32)  # of the arguments of `GRPO.loss`


def targets_of(answers: Drawn) -> tuple[np.ndarray, np.ndarray]:
    """ids and targets (N, T) of answers after their prompts; targets are IGNORED outside of the answers."""
    rows, real = pad(answers.sequences)
    counted = real[:, 1:] & (np.arange(1, rows.shape[1]) >= answers.n_prompt[:, None])
    return rows[:, :-1], np.where(counted, rows[:, 1:], IGNORED)


def _log_probs(policy: GPT, ids: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(N, T) float32 log-probabilities of the targets, 0 where they are IGNORED: by the ops that training uses, so that the first ratio is 1."""
    found = np.zeros(targets.shape, dtype=np.float32)
    with nn.evaluating(policy), ag.no_grad(), nn.weights_in(policy, policy.dtype):
        found[targets != IGNORED] = backend.to_host(target_log_probs(policy, ids, targets).data)
    return found


# ---- the objective -----------------------------------------------------------------------------------------------------------------------


def grpo_loss(
    policy: ag.Tensor, old: Array, reference: Array, advantage: Array, weight: Array, *, clip: float = 0.2, beta: float = 0.04
) -> ag.Tensor:
    """What GRPO minimizes, over the tokens of all answers as one list.

    Forward     ratio = e^(policy - old)                          how much likelier the token is than when it was drawn
                gain = min(ratio A, clamp(ratio, 1 - clip, 1 + clip) A)
                kl = e^(reference - policy) - (reference - policy) - 1      >= 0, and the KL divergence in expectation
                loss = sum over tokens of  weight (beta kl - gain)
    Backward    dpolicy = weight (beta (1 - e^(reference - policy)) - A ratio), without the last term where the clamp has cut the gain
    Why min: a token that has already become much likelier (A > 0) or unlikelier (A < 0) gets no further push; one that moved the wrong way
    is pulled back at any distance.

    Shapes      all (K,), log-probabilities in nats -> scalar.  weight: 1 / (answers x tokens of the answer), so that all answers count alike.
    Source      Shao et al. 2024, arXiv:2402.03300, equations 3 and 4; kl: Schulman 2020, Approximating KL divergence, the estimator k3;
                clamp: Schulman et al. 2017, Proximal policy optimization, arXiv:1707.06347, equation 7.
    """
    ratio = ag.exp(policy - old)
    clamped = _least(ag.maximum(ratio, 1 - clip), 1 + clip)
    gain = _least(ratio * advantage, clamped * advantage)
    loss = gain * -1.0
    if beta:
        apart = reference - policy
        loss = loss + (ag.exp(apart) - apart - 1.0) * beta
    total: ag.Tensor = (loss * weight).sum()
    return total


def _least(a: ag.Tensor, b: ag.Tensor | float) -> ag.Tensor:
    """The smaller of both, element by element."""
    return -ag.maximum(-a, -b)


def check_bounds(clip: float, beta: float) -> None:
    """Raises ValueError for settings that `GRPO` does not take."""
    if not 0 < clip < 1 or not 0 <= beta < float("inf"):
        raise InvalidInput(f"GRPO: clip {clip}, beta {beta}, expected 0 < clip < 1 and beta >= 0, finite; 0.2 and 0.04 are usual")


class GRPO(Objective):
    """A language model that learns from rewards.

    exam   asks the problems that it is measured on
    clip   how far one round of updates may change a token's probability
    beta   weight of the KL divergence from the reference; 0: none
    Measured, its loss is the share of wrong answers when it gives the likeliest tokens.
    """

    n_classes = 0  # nothing is chosen among: there is no uniform guess to compare with

    def __init__(self, policy: GPT, exam: Exam, clip: float = 0.2, beta: float = 0.04) -> None:
        super().__init__(policy)
        check_bounds(clip, beta)
        self.exam, self.clip, self.beta = exam, clip, beta

    def loss(self, ids: Array, counted: Array, targets: Array, advantage: Array, old: Array, reference: Array) -> ag.Tensor:
        """ids, targets, old, reference (N, T); advantage (N,); `counted` (N,) is what the trainer counts the answers by."""
        mask = targets != IGNORED
        rows, _ = np.nonzero(mask)
        with nn.weights_in(self.policy, self.policy.dtype):
            log_probs = target_log_probs(self.policy, ids, targets)
        weight = 1 / (len(ids) * mask.sum(axis=1))[rows]
        host = (old[mask], reference[mask], advantage[rows], weight)
        return grpo_loss(log_probs, *(backend.to_device(a.astype(np.float32)) for a in host), clip=self.clip, beta=self.beta)

    def loss_and_correct(self, numbers: Array, counted: Array) -> tuple[ag.Tensor, int]:
        """Asks the problems of these numbers: the share of wrong answers, and how many are right."""
        right = self.exam.right(numbers, self.exam.draw(numbers, temperature=0.0))
        return ag.Tensor(np.float32(1 - right.mean())), int(right.sum())
