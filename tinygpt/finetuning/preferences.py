"""Learning from preferences (DPO): which of two answers to a prompt is the better one, and a model that learns to find it likelier.

    data = load_pairs("doc-pairs")                               # docstring answers against corruptions of them; no network
    parts = split_pairs(data, seed=0)                            # parts.train, parts.validation, parts.test
    train = PairBatches(encode_pairs(parts.train, tokenizer, template, n_positions))
    train.refer_to(gpt, adapter)                                 # log-probabilities under the reference: the adapter switched off
    fit(DPO(gpt, beta=0.1), train, validation, ...)              # tinygpt.finetuning.common
    rank(gpt, test).share                                        # of pairs whose better answer is the likelier one

Source  Rafailov et al. 2023, Direct preference optimization: your language model is secretly a reward model, arXiv:2305.18290, section 4.
        The derivation, and what was measured: docs/preferences.md.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import autograd as ag
from autograd import Array, backend, inference, nn
from tinygpt.data.chat_templates import ChatTemplate, Message, check_turns, prompt_ids
from tinygpt.data.rows import Table, find_file, read_table, text_in
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.data.windows import IGNORED
from tinygpt.errors import InvalidInput
from tinygpt.finetuning.conversations import Conversation, turns_of
from tinygpt.finetuning.corruptions import check_kinds, corrupted
from tinygpt.finetuning.instructions import Instruction, doc_questions
from tinygpt.finetuning.lora import Adapter
from tinygpt.finetuning.masked import Masked, MaskedBatches
from tinygpt.finetuning.objectives import Objective
from tinygpt.finetuning.rows import Data, Shares, Split, group_equal, plain, split_groups
from tinygpt.inference.likelihood import target_log_probs
from tinygpt.models.gpt import GPT
from tinygpt.models.protocols import Batch
from tinygpt.storage.checked_json import Json

DOC_PAIRS = "doc-pairs"
DOC_KINDS = ("truncated", "closed", "echo")
"""Corruptions (`tinygpt.finetuning.corruptions`) that the rejected answers of "doc-pairs" have: what is wrong with them is their form."""


@dataclass(frozen=True)
class Pair:
    """A conversation that ends with the user's turn, the better answer to it and the worse one; kind: what the worse one is, where it was made;
    place and group: `tinygpt.finetuning.rows.Located`."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    place: str = ""
    group: int = -1
    kind: str = ""

    @property
    def right(self) -> Conversation:
        """The prompt with the better answer."""
        return Conversation((*self.prompt, Message("assistant", self.chosen)), self.place, self.group)


# ---- data --------------------------------------------------------------------------------------------------------------------------------


def load_pairs(name_or_path: str | Path, seed: int = 0, kinds: Sequence[str] = DOC_KINDS) -> Data[Pair]:
    """Reads pairs of answers.

    name_or_path   "doc-pairs", or a file (.jsonl, .json, .csv, .tsv) with prompt, chosen and rejected: texts, or lists of messages, each
                   {"role": ..., "content": ...}. As messages, an answer is the assistant's turn that comes after the prompt; without a prompt,
                   both answers begin with it
    seed, kinds    of the corruptions of "doc-pairs"
    Raises ValueError, naming file and line, for a row without one of the three, an empty text, two equal answers, or turns out of order;
    FileNotFoundError for an unknown name.
    """
    if name_or_path == DOC_PAIRS:
        return doc_pairs(seed, kinds)
    path, source = find_file(name_or_path, [DOC_PAIRS])
    table = read_table(path, ("prompt", "chosen", "rejected"))
    for name in ("chosen", "rejected"):
        if name not in table.columns:
            rule = "expected prompt, chosen and rejected (without a prompt, both begin with its messages); rename them"
            raise InvalidInput(f"{path}: columns {', '.join(map(repr, table.columns))}, {rule}")
    rows = [_pair(table, place, values) for place, values in table.rows]
    groups = group_equal(plain("\n".join(message.content for message in row.prompt)) for row in rows)
    grouped = [dataclasses.replace(row, group=group) for row, group in zip(rows, groups, strict=True)]
    return Data(str(name_or_path), grouped, source, notes=table.notes)


def _pair(table: Table, place: str, values: dict[str, Json]) -> Pair:
    """A row as a pair. Raises ValueError as `load_pairs` says."""
    where = f"{table.path}: {place}"

    def turns(name: str, role: str) -> list[Message]:
        """The messages under a name; a text is one message of the role."""
        value = values.get(name)
        if isinstance(value, list):
            return turns_of(table, place, value)
        text = text_in(table, place, name, values)
        if not text.strip():
            raise InvalidInput(f"{where}: {name} is {'missing' if value is None else 'empty'}, expected a text; correct or remove the row")
        return [Message("user" if role == "user" else "assistant", text)]

    chosen, rejected = turns("chosen", "assistant"), turns("rejected", "assistant")
    prompt = turns("prompt", "user") if values.get("prompt") is not None else chosen[:-1]
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if side[:-1] not in ([], prompt):
            raise InvalidInput(
                f"{where}: {name} begins with other turns than the prompt, expected the same ones; correct or remove the row"
            )
        check_turns([*prompt, side[-1]], complete=True, where=f"{where}: {name}")
    return checked(Pair(tuple(prompt), chosen[-1].content, rejected[-1].content, place), where)


def checked(pair: Pair, where: str) -> Pair:
    """The pair. Raises ValueError, beginning with `where`, for two answers that are equal."""
    if pair.chosen.strip() == pair.rejected.strip():
        raise InvalidInput(
            f"{where}: chosen and rejected are equal, expected two answers that differ; a tie teaches nothing: remove the row"
        )
    return pair


def doc_pairs(seed: int = 0, kinds: Sequence[str] = DOC_KINDS, per_question: int = 2) -> Data[Pair]:
    """What NumPy's functions do: the docstring's first sentence against corruptions of it.

    kinds          of the corruptions
    per_question   how many of them, drawn by the seed, each question to learn from has; held-out questions have all
    Held-out pairs ask about functions of the validation documents alone, and their corruptions use other held-out answers only. Raises
    ValueError for an unknown kind.
    """
    check_kinds(kinds)
    data = doc_questions()

    def pairs(rows: Sequence[Instruction], n: int) -> list[Pair]:
        found = []
        for number, row in enumerate(rows):
            drawn = np.random.default_rng([seed, number]).permutation(kinds).tolist()
            made = ((kind, corrupted(rows, number, kind, seed=seed)) for kind in drawn)
            some = [(kind, bad) for kind, bad in made if bad][:n]
            prompt = (Message("user", row.instruction),)
            found += [Pair(prompt, row.output, bad, f"{row.place} ({kind})", row.group, kind) for kind, bad in sorted(some)]
        return found

    source = f"{data.source}; rejected: {', '.join(kinds)}"
    return Data(DOC_PAIRS, pairs(data.rows, per_question), source, pairs(data.held_out, len(kinds)), data.notes)


def split_pairs(data: Data[Pair], fractions: Shares = (0.85, 0.05, 0.1), *, seed: int = 0) -> Split[Pair]:
    """As `tinygpt.finetuning.rows.split_groups`; pairs with one prompt stay together. Raises ValueError for fewer of them than parts."""
    groups, n_parts = {row.group for row in data.rows}, 2 if data.held_out else 3
    if len(groups) < n_parts:
        raise InvalidInput(f"split: {len(groups)} different prompts, expected at least {n_parts}, one for each part; add rows")
    return split_groups(data, fractions, seed, [groups])


def encode_pairs(
    pairs: Sequence[Pair], tokenizer: Tokenizer, template: ChatTemplate, n_positions: int, *, truncate: bool = False
) -> list[tuple[Masked, Masked]]:
    """Both answers of each pair after their prompt, each with its end of turn; the answer and its end count, the prompt does not.

    n_positions   the model's context, or fewer; the last token is only predicted, so a sequence may be one longer
    truncate      cut answers that are too long (they lose their end); a prompt that leaves no room is an error in any case
    Raises ValueError, naming the pair, for what does not fit, and for two answers that are equal after they were cut.
    """
    stop, found = tokenizer.encode_array(template.stop, allow_special=True), []
    for pair in pairs:
        head = np.array(prompt_ids(template, pair.prompt, tokenizer))
        sides = [
            np.concatenate([head, tokenizer.encode_array(text.strip()), stop]).astype(np.int64) for text in (pair.chosen, pair.rejected)
        ]
        longest = max(map(len, sides))
        if len(head) > n_positions or (longest > n_positions + 1 and not truncate):
            found_, rule = (
                (f"a prompt of {len(head)}", f"at most {n_positions}")
                if len(head) > n_positions
                else (f"{longest}", f"at most {n_positions + 1}")
            )
            raise InvalidInput(
                f"{pair.place}: {found_} tokens, expected {rule}, as the context allows; shorten it, or cut long answers with --truncate"
            )
        chosen, rejected = (ids[: n_positions + 1] for ids in sides)
        if np.array_equal(chosen, rejected):
            rule = f"expected two that differ within the {n_positions + 1} tokens that are read; remove the row"
            raise InvalidInput(f"{pair.place}: two answers that are equal after they were cut, {rule}")
        found.append((_after(head, chosen), _after(head, rejected)))
    return found


def _after(head: np.ndarray, ids: np.ndarray) -> Masked:
    return Masked(ids, np.arange(len(ids)) >= len(head))


class PairBatches:
    """Pairs as a trainer wants them: by number, both answers padded to the longest of the batch. `refer_to` comes first."""

    def __init__(self, pairs: Sequence[tuple[Masked, Masked]]) -> None:
        self.rows = MaskedBatches([side for pair in pairs for side in pair])  # 2 i: chosen, 2 i + 1: rejected
        self.lengths = self.rows.lengths.reshape(-1, 2).max(axis=1)
        self.reference: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def answers(self, which: np.ndarray) -> Batch:
        """ids and targets, each (P, 2, T): chosen and rejected of the pairs numbered `which`."""
        both = (2 * np.asarray(which)[:, None] + np.arange(2)).ravel()
        ids, targets = self.rows.batch(both)
        return ids.reshape(-1, 2, ids.shape[1]), targets.reshape(-1, 2, ids.shape[1])

    def refer_to(self, policy: GPT, adapter: Adapter | None) -> None:
        """Keeps both answers' log-probabilities (N, 2) under the reference: the policy with its adapter switched off, or, without one, as it
        is now, so before training. They never change, so they are computed once."""
        with adapter.switched_off() if adapter else contextlib.nullcontext():
            self.reference = answer_log_probs(policy, self)

    def batch(self, which: np.ndarray) -> Batch:
        """(ids, preferred, targets, reference): the arguments of `DPO.loss`. preferred (P,) is 0: chosen comes first."""
        if self.reference is None:
            raise InvalidInput("PairBatches: no reference, expected its log-probabilities; call refer_to before training")
        ids, targets = self.answers(which)
        return ids, np.zeros(len(ids), dtype=np.int64), targets, self.reference[which]


# ---- the objective -----------------------------------------------------------------------------------------------------------------------


def dpo_loss(policy: ag.Tensor, reference: Array, preferred: np.ndarray, beta: float) -> ag.Tensor:
    """The mean over pairs of minus the logarithm of the probability that the preferred answer wins.

    Forward     r = beta (policy - reference)                       the implicit reward of each answer, in units of 1
                loss = mean over pairs of  -ln sigmoid(r_w - r_l)   w: the preferred answer, l: the other
    Backward    dr_l = sigmoid(r_l - r_w) / P = -dr_w               a pair that is ranked wrong weighs more; the sum of both is 0
    -ln sigmoid(r_w - r_l) is the cross-entropy of the two rewards as logits (Bradley and Terry's model), which is how it is computed: no
    logarithm of a sigmoid that has rounded to 0.

    Shapes      policy, reference (P, 2) log-probabilities of the answers, in nats; preferred (P,) 0 or 1 -> scalar, nats per pair.
    Source      Rafailov et al. 2023, arXiv:2305.18290, equation 7; Bradley and Terry 1952, Biometrika 39.
    """
    return ag.cross_entropy((policy - reference) * beta, preferred)


def check_weights(beta: float, nll_weight: float) -> None:
    """Raises ValueError for settings that `DPO` does not take."""
    if not 0 < beta < float("inf") or not 0 <= nll_weight < float("inf"):
        rule = "expected beta > 0 and nll_weight >= 0, finite; 0.1 and 0 are usual"
        raise InvalidInput(f"DPO: beta {beta}, nll_weight {nll_weight}, {rule}")


class DPO(Objective):
    """A language model that learns which of two answers is better.

    beta         how far it may move from the reference: rewards are beta times the change of a log-probability
    nll_weight   weight of an added term, the chosen answers' negative log-likelihood per token, which keeps them likely; 0: none
    Source       nll_weight: Pang et al. 2024, Iterative reasoning preference optimization, arXiv:2404.19733, equation 2
    """

    n_classes = 2

    def __init__(self, policy: GPT, beta: float = 0.1, nll_weight: float = 0.0) -> None:
        super().__init__(policy)
        check_weights(beta, nll_weight)
        self.beta, self.nll_weight = beta, nll_weight

    def loss(self, ids: Array, preferred: Array, targets: Array, reference: Array) -> ag.Tensor:
        """Nats per pair. ids, targets (P, 2, T), targets IGNORED outside of the answers; preferred (P,); reference (P, 2) log-probabilities."""
        return self._loss(_sums(self.policy, ids, targets), preferred, targets, reference)

    def loss_and_correct(self, ids: Array, preferred: Array, targets: Array, reference: Array) -> tuple[ag.Tensor, int]:
        """`loss`, and of how many pairs the preferred answer is the likelier one, whatever the reference finds."""
        sums = _sums(self.policy, ids, targets)
        likelier = backend.to_host(sums.data).argmax(axis=1)
        return self._loss(sums, preferred, targets, reference), int((likelier == preferred).sum())

    def _loss(self, sums: ag.Tensor, preferred: Array, targets: Array, reference: Array) -> ag.Tensor:
        loss = dpo_loss(sums, backend.to_device(reference.astype(np.float32)), preferred, self.beta)
        if not self.nll_weight:
            return loss
        rows = np.arange(len(preferred))
        n_tokens = (targets[rows, preferred] != IGNORED).sum(axis=1).astype(np.float32)
        likelihood: ag.Tensor = (sums[rows, preferred] / backend.to_device(n_tokens)).mean()
        return loss - likelihood * self.nll_weight


def _sums(policy: GPT, ids: Array, targets: Array) -> ag.Tensor:
    """(P, 2) log-probabilities of both answers: the sum over their tokens, of ids and targets (P, 2, T)."""
    n, _, t = ids.shape
    with nn.weights_in(policy, policy.dtype):
        tokens = target_log_probs(policy, ids.reshape(2 * n, t), targets.reshape(2 * n, t))  # (K,)
    row, _ = np.nonzero(targets.reshape(2 * n, t) != IGNORED)
    belongs = (row == np.arange(2 * n)[:, None]).astype(np.float32)  # (2 P, K): a product with it adds up each answer's tokens
    return (ag.Tensor(backend.to_device(belongs)) @ tokens).reshape(n, 2)


# ---- measuring ---------------------------------------------------------------------------------------------------------------------------


def answer_log_probs(policy: GPT, pairs: PairBatches, batch_size: int = 16) -> np.ndarray:
    """(N, 2) log-probabilities of chosen and rejected after their prompts, in nats, the end token included; without dropout."""
    order, found = np.argsort(pairs.lengths, kind="stable"), np.zeros((len(pairs), 2), dtype=np.float32)
    with nn.evaluating(policy), inference.mode():
        for start in range(0, len(pairs), batch_size):
            which = order[start : start + batch_size]
            found[which] = backend.to_host(_sums(policy, *pairs.answers(which)).data)
    return found


@dataclass(frozen=True)
class Ranking:
    """How a model rates pairs: log-probabilities (N, 2) of chosen and rejected, and the number of tokens (N,) of chosen, its end included."""

    log_probs: np.ndarray
    n_tokens: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """(N,) 1 where the chosen answer is the likelier one."""
        return (self.log_probs[:, 0] > self.log_probs[:, 1]).astype(np.float64)

    @property
    def chosen_nats(self) -> float:
        """Mean log-probability of a chosen answer, in nats."""
        return float(self.log_probs[:, 0].mean())

    @property
    def rejected_nats(self) -> float:
        return float(self.log_probs[:, 1].mean())

    @property
    def chosen_nats_per_token(self) -> float:
        return float(self.log_probs[:, 0].sum() / self.n_tokens.sum())


def rank(policy: GPT, pairs: PairBatches) -> Ranking:
    """Which answer of each pair the model finds likelier, by the log-probability of all of it, as DPO compares them."""
    sequences = pairs.rows.sequences[::2]
    return Ranking(answer_log_probs(policy, pairs), np.array([int(each.counted.sum()) for each in sequences]))
