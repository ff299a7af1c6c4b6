"""Masked batches: how many tokens are chosen and what is shown of them, draws that resume bit for bit, counts of neighbors as baseline."""

from collections import Counter

import numpy as np
import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from autograd import backend
from tests.autograd.checks import numpy_only
from tests.tinygpt.helpers import Notes
from tinygpt import TrainConfig
from tinygpt.data.masking import ALL_MASKED, MaskedWindows, Masking, begins_word, kinds_of_characters
from tinygpt.data.neighbor_counts import NeighborCounts
from tinygpt.data.tokenizer import GPT2_SPLIT, BPETokenizer, CharacterTokenizer, encoder_tokenizer
from tinygpt.data.windows import IGNORED, encode_documents
from tinygpt.encoder_config import EncoderConfig
from tinygpt.errors import InvalidInput
from tinygpt.models import Encoder
from tinygpt.runs.run import Run
from tinygpt.training.trainer import Trainer

TEXTS = [f"def f{n}(x):\n    return the sorted copy of an array, größer als {n * 77}.5e-3;  it's fine…\n" for n in range(40)]
TOKENIZER = encoder_tokenizer(TEXTS, 330)
TOKENS = encode_documents(TEXTS, TOKENIZER)
ORDINARY = sorted(set(range(330)) - set(TOKENIZER.special.values()))
MASK, CLS, SEP = TOKENIZER.mask_id, TOKENIZER.cls_id, TOKENIZER.sep_id


def items(context=32, *, by="token", seed=0, stride=0, **options):
    return MaskedWindows(TOKENS, context, TOKENIZER, Masking(TOKENIZER, by=by, **options), seed=seed, stride=stride)


def test_a_window_stands_between_cls_and_sep_and_documents_are_separated_by_sep():
    rows = items(32, stride=7).rows(np.arange(len(items(32, stride=7))))
    assert rows.dtype == np.int64 and (rows[:, 0] == CLS).all() and (rows[:, -1] == SEP).all()
    assert np.array_equal(rows[0, 1:-1], TOKENS[:30]) and np.array_equal(rows[3, 1:-1], TOKENS[21:51])
    assert (TOKENS == SEP).sum() == len(TEXTS) and not (TOKENS == CLS).any()
    assert np.array_equal(rows[-1, 1:-1], TOKENS[(len(rows) - 1) * 7 :][:30]) and len(TOKENS) - (len(rows) - 1) * 7 - 30 < 7


@pytest.mark.parametrize("by", ["token", "word"])
@given(rate=st.floats(0.01, 0.9), context=st.integers(3, 60), seed=st.integers(0, 9), number=st.integers(0, 10**6))
def test_the_share_of_chosen_tokens_is_exact_and_the_rest_stays(by, rate, context, seed, number):
    source = items(context, by=by, rate=rate, seed=seed)
    which = np.arange(min(len(source), 5))
    rows, (ids, targets) = source.rows(which), source.drawn(which, number)
    chosen, ordinary = targets != IGNORED, np.isin(rows, ORDINARY)
    wanted = np.maximum(1, np.round(rate * ordinary.sum(axis=1))) * (ordinary.sum(axis=1) > 0)
    if by == "token":
        assert np.array_equal(chosen.sum(axis=1), wanted)
    else:  # as many whole words as fit; at least one
        for row, c, n in zip(rows, chosen, wanted, strict=True):
            word = np.cumsum(begins_word(row, kinds_of_characters(TOKENIZER)))
            assert all(c[(word == w) & np.isin(row, ORDINARY)].all() for w in set(word[c]))
            assert (c.sum() <= n or len(set(word[c])) == 1) and (c.any() or n == 0)
    assert np.array_equal(targets[chosen], rows[chosen]) and np.array_equal(ids[~chosen], rows[~chosen])
    assert not (chosen & ~ordinary).any()


def test_of_ten_chosen_tokens_eight_are_masked_one_is_another_and_one_is_itself():
    source, n = items(62, rate=0.5), Counter()
    for number in range(60):
        ids, targets = source.drawn(np.arange(8), number)
        chosen = targets != IGNORED
        n += Counter(np.where(ids == MASK, "masked", np.where(ids == targets, "same", "other"))[chosen].tolist())
        assert set(ids[chosen & (ids != MASK)]) <= set(ORDINARY)
    total = sum(n.values())
    assert total > 10_000  # so that the shares have a standard error of 0.4 %
    assert n["masked"] / total == pytest.approx(0.8, abs=0.015)
    assert n["other"] / total == pytest.approx(0.1 * (1 - 1 / len(ORDINARY)), abs=0.012)
    ids, targets = items(62, shown=ALL_MASKED).batch(np.arange(8))
    assert (ids[targets != IGNORED] == MASK).all()


@pytest.mark.parametrize("by", ["token", "word"])
def test_masks_are_a_function_of_seed_micro_batch_and_item_and_of_nothing_else(by):
    source, which = items(by=by), np.array([5, 0, 11])
    once, again = source.drawn(which, 3), items(by=by).drawn(which, 3)
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    for row, item in enumerate(which):  # the others of the batch do not matter
        assert np.array_equal(source.drawn(np.array([item]), 3)[1][0], once[1][row])
    others = [source.drawn(which, 4), source.drawn(which, 0), source.batch(which), items(by=by, seed=1).drawn(which, 3)]
    assert all(not np.array_equal(other[1], once[1]) for other in others)
    assert np.array_equal(source.batch(which)[1], source.batch(which)[1])
    numbers = {source.drawn(np.array([0]), number)[1].tobytes() for number in range(40)}
    assert len(numbers) == 40  # every epoch masks anew


def test_tokens_begin_words_where_gpt2s_pattern_cuts_them():
    kinds = kinds_of_characters(TOKENIZER)
    for text in TEXTS[:5]:
        ids = np.array(TOKENIZER.encode(text))
        ends = np.cumsum([len(TOKENIZER.token_bytes(id)) for id in ids])
        starts = [0, *ends[:-1]]
        cuts = {len(text[: match.start()].encode()) for match in regex.finditer(GPT2_SPLIT, text)}
        found = {int(start) for start, begins in zip(starts, begins_word(ids, kinds), strict=True) if begins}
        assert found - cuts <= {text.encode().index(b"it's") + 3}  # 's: cut after the apostrophe, if BPE has not joined them
        white = {start for start in cuts if text.encode()[start : start + 1].isspace()}
        assert cuts - found <= white  # a line end and the blanks behind it are one word


def test_whole_words_of_several_tokens_are_masked_together():
    _, targets = items(62, by="word", shown=ALL_MASKED).drawn(np.arange(12), 0)
    chosen = targets != IGNORED
    words = [len(run) for row in chosen for run in "".join("x" if c else " " for c in row).split()]
    assert max(words) > 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Masking(BPETokenizer.train("aab", 257)), "expected one with a mask token, such as .MASK. or <mask>; take an encoder's"),
        (lambda: Masking(CharacterTokenizer.train("ab")), "expected one with a mask token"),
        (lambda: Masking(TOKENIZER, by="line"), "mask_by: 'line', expected token or word"),
        (lambda: Masking(TOKENIZER, rate=0.0), "mask_rate: 0.0, expected more than 0 and less than 1"),
        (lambda: Masking(TOKENIZER, shown=(0.8, 0.1, 0.2)), "expected three shares that add up to 1"),
        (lambda: items(2), "context 2, stride 0, expected at least 3"),
        (lambda: MaskedWindows(TOKENS[:10], 16, TOKENIZER, Masking(TOKENIZER)), "a corpus of 10 tokens, expected at least 14"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(InvalidInput, match=message):
        make()


def test_a_row_of_special_tokens_alone_has_no_target():
    ids, targets = Masking(TOKENIZER).apply(np.array([CLS, SEP, SEP]), np.random.default_rng(0))
    assert np.array_equal(ids, [CLS, SEP, SEP]) and (targets == IGNORED).all()


# Training.


def trainer(seed=0, **changes):
    config = {"lr": 1e-2, "warmup_steps": 3, "micro_batch": 2, "tokens_per_update": 64, "eval_every": 4, "log_every": 1, "seed": seed}
    shape = EncoderConfig(n_layer=1, n_head=2, n_embd=16, n_positions=16, vocab_size=330, dropout=0.1, pad_id=TOKENIZER.pad_id)
    train = MaskedWindows(TOKENS[:200], 16, TOKENIZER, Masking(TOKENIZER), seed=0)  # 14 items: an epoch is 3.5 updates
    return Trainer(Encoder(shape, seed=seed), TrainConfig(**{**config, **changes}), train, items(16))


def state(t):
    arrays = [t.optimizer.weight, *(a for named in t.optimizer.state_arrays().values() for a in named.values())]
    return [backend.to_host(a).tobytes() for a in arrays] + [t.result.tokens_seen, t.result.best_validation_nats]


@pytest.mark.exact
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("n", [3, 7])
def test_training_equals_training_a_part_resuming_and_training_the_rest(n, optimizer, tmp_path):
    whole, part, rest = (trainer(seed, steps=10, stop_at=at, optimizer=optimizer) for seed, at in ((0, 0), (0, n), (1, 0)))
    runs = [Run.create("x", tmp_path / name) for name in ("whole", "parts")]
    for run in runs:
        run.tokenizer = TOKENIZER
    losses = Notes(), Notes(), Notes()
    runs[0].train(whole, losses[0])
    runs[1].train(part, losses[1])
    runs[1].restore(rest)
    runs[1].train(rest, losses[2])
    assert state(rest) == state(whole) and losses[1].losses | losses[2].losses == losses[0].losses


@pytest.mark.exact
def test_an_update_that_is_computed_again_has_the_same_masks():
    t = trainer(steps=9)
    for _ in range(4):
        t.update()
    before = t.position()
    loss = float(t.gradients())
    t.go_to(before)
    assert float(t.gradients()) == loss
    assert t.batches_drawn == 10  # micro-batches, two an update; their numbers are what masks are drawn by
    t.go_to(before._replace(batches_drawn=0))
    assert float(t.gradients()) != loss


@numpy_only
def test_an_encoder_learns_what_its_masks_hide():
    t = trainer(steps=150, micro_batch=8, tokens_per_update=0, dtype="float32", lr=1e-2)
    first = t.evaluate().nats
    for _ in range(150):
        t.update()
    assert t.evaluate().nats < first - 1.5


# Counts of neighbors.


def brute_force(train, a, c, words, v, k, m):
    """Both neighbors, by the formula, one target at a time."""
    train, total, right = list(train), 0.0, 0
    p = np.array([(train.count(w) + 1) / (len(train) + v) for w in range(v)])
    for x, y, word in zip(a, c, words, strict=True):
        after, before, both = np.zeros(v), np.zeros(v), np.zeros(v)
        for i, w in enumerate(train):
            after[w] += i > 0 and train[i - 1] == x
            before[w] += i + 1 < len(train) and train[i + 1] == y
            both[w] += 0 < i < len(train) - 1 and train[i - 1] == x and train[i + 1] == y
        q = (after + k * p) / (after.sum() + k) * (before + k * p) / (before.sum() + k) / p
        q /= q.sum()
        q = (both + m * q) / (both.sum() + m)
        total, right = total - np.log(q[word]), right + (q.argmax() == word)
    return total / len(words), right / len(words)


@pytest.mark.filterwarnings("error")
def test_counts_of_neighbors_equal_the_formula():
    rng = np.random.default_rng(0)
    train, v = np.minimum(rng.geometric(0.3, 300), 7), 9
    counts = NeighborCounts(train, v)
    a, c, words = (rng.integers(1, 8, 40) for _ in range(3))
    a[:5], c[3:9] = -1, -1
    for k, m in ((3, 0.3), (100, 10)):
        assert counts._measure(words, a, c, k, m) == pytest.approx(brute_force(train, a, c, words, v, k, m), rel=1e-4)


def test_neighbors_tell_a_token_that_follows_from_both_and_masked_ones_tell_nothing():
    rng = np.random.default_rng(1)
    a, c = rng.integers(0, 6, 2000), rng.integers(6, 12, 2000)
    train = np.stack([a, 12 + (a + c) % 5, c], axis=1).ravel()  # the middle one is a function of both, and of neither alone
    ids = np.concatenate([np.full((1, 1), 18), train[None, :300], np.full((1, 1), 18)], axis=1)
    targets = np.full_like(ids, IGNORED)
    targets[0, 2:-1:3] = ids[0, 2:-1:3]
    ids[0, 2:-1:3] = 19
    found = NeighborCounts(train, 20).guess(ids, targets, unknown=[19])
    assert found["both neighbors"].accuracy == 1.0 and found["both neighbors"].nats < 0.3
    assert found["bigram"].accuracy < 0.4 and found["bigram"].nats > 1.5
    blind = NeighborCounts(train, 20).guess(np.full_like(ids, 19), targets, unknown=[19])
    assert blind["both neighbors"].accuracy == blind["bigram"].accuracy < 0.3
