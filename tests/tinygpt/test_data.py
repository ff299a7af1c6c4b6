import math
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygpt.data.windows import BatchOrder, Windows, bigram_nats, encode_documents, read_tokens, write_tokens


@given(n=st.integers(2, 200), context=st.integers(1, 20), stride=st.integers(1, 25))
def test_windows_are_slices_and_targets_are_inputs_shifted_by_one(n, context, stride):
    if n < context + 1:
        return
    tokens = np.arange(n)
    windows = Windows(tokens, context, stride)
    inputs, targets = windows.batch(np.arange(len(windows)))
    for i in range(len(windows)):
        np.testing.assert_array_equal(inputs[i], tokens[i * stride : i * stride + context])
        np.testing.assert_array_equal(targets[i], tokens[i * stride + 1 : i * stride + context + 1])
    assert len(windows) * stride + context + 1 > n  # one more window would not fit


def test_a_corpus_shorter_than_one_window_says_how_many_tokens_there_are_and_are_needed():
    assert len(Windows(np.arange(9), 8)) == 1
    with pytest.raises(ValueError, match=r"a corpus of 8 tokens, expected at least 9 .* context of at most 7"):
        Windows(np.arange(8), 8)
    with pytest.raises(ValueError, match=r"context 0, stride 1, expected both >= 1"):
        Windows(np.arange(8), 0, 1)


@given(n=st.integers(1, 60), size=st.integers(1, 9), seed=st.integers(0, 99), start=st.integers(0, 40), drop_last=st.booleans())
def test_the_order_of_batches_is_a_function_of_seed_and_position(n, size, seed, start, drop_last):
    if drop_last and n < size:
        return
    order = BatchOrder(n, size, seed=seed, drop_last=drop_last)
    whole = list(islice(order.batches(), start + 5))
    np.testing.assert_equal(list(islice(order.batches(start), 5)), whole[start:])
    epoch = np.concatenate(whole[: order.n_batches]) if start + 5 >= order.n_batches else None
    if epoch is not None:
        assert len(set(epoch.tolist())) == len(epoch) == (n // size * size if drop_last else n)


def test_epochs_differ_unless_shuffling_is_off():
    assert not np.array_equal(BatchOrder(50, 5, seed=0).epoch(0), BatchOrder(50, 5, seed=0).epoch(1))
    assert not np.array_equal(BatchOrder(50, 5, seed=0).epoch(0), BatchOrder(50, 5, seed=1).epoch(0))
    np.testing.assert_array_equal(BatchOrder(50, 5, shuffle=False).epoch(3), np.arange(50))


def test_too_few_windows_for_a_batch_says_so():
    with pytest.raises(ValueError, match=r"3 windows for a batch of 4 with drop_last, .*lower the micro-batch to 3"):
        BatchOrder(3, 4)
    with pytest.raises(ValueError, match=r"batch size 0, expected at least 1"):
        BatchOrder(3, 0)
    assert [len(b) for b in BatchOrder(3, 4, drop_last=False)] == [3]


class Letters:
    """A stand-in tokenizer: one id per letter, 26 ends a document."""

    eos_id, cls_id, start, divisible = 26, None, (), True

    def encode_array(self, text):
        return np.array([ord(c) - 97 for c in text], dtype=np.uint16)


def test_documents_become_one_stream_with_an_end_token_after_each():
    np.testing.assert_array_equal(encode_documents(["ab", "c"], Letters()), [0, 1, 26, 2, 26])
    assert encode_documents([], Letters()).size == 0


@pytest.mark.parametrize(("n_vocab", "bytes_each"), [(65536, 2), (65537, 4)])
def test_token_files_come_back_as_memory_maps(tmp_path, n_vocab, bytes_each):
    parts = [np.array([1, 2, n_vocab - 1]), np.array([7])]
    assert write_tokens(tmp_path / "t.bin", parts, n_vocab) == 4
    tokens = read_tokens(tmp_path / "t.bin", n_vocab)
    assert isinstance(tokens, np.memmap) and tokens.itemsize == bytes_each
    np.testing.assert_array_equal(tokens, [1, 2, n_vocab - 1, 7])
    inputs, _ = Windows(tokens, 3).batch(np.array([0]))
    np.testing.assert_array_equal(inputs, [[1, 2, n_vocab - 1]])


def test_a_token_file_of_another_width_is_refused(tmp_path):
    (tmp_path / "t.bin").write_bytes(b"abc")
    with pytest.raises(ValueError, match=r"t.bin: 3 bytes, expected a positive multiple of 2"):
        read_tokens(tmp_path / "t.bin", 100)


def test_the_bigram_model_learns_pairs_and_nothing_else():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 16, 20_000)
    assert abs(bigram_nats(noise, rng.integers(0, 16, 5_000), 16) - math.log(16)) < 0.03  # nothing to learn
    cycle = np.arange(20_000) % 16
    assert bigram_nats(cycle, cycle[:5_000], 16) < 0.01  # the next token is certain


@given(st.integers(0, 50))
def test_the_bigram_model_is_a_distribution(seed):
    # The mean over a uniform next token of -ln p is at least ln V, with equality for the uniform: p cannot sum to more than 1.
    rng = np.random.default_rng(seed)
    train = rng.integers(0, 5, 30)
    every_pair = np.array([[a, b] for a in range(5) for b in range(5)])
    nats = np.array([bigram_nats(train, pair, 5) for pair in every_pair]).reshape(5, 5)
    smallest_k_only = np.exp(-nats).sum(axis=1)
    assert (np.exp(-nats) <= 1).all() and (smallest_k_only > 0.99).all()


@given(n=st.integers(8, 60), batch_size=st.integers(1, 4), together=st.integers(1, 4), seed=st.integers(0, 99))
def test_sorting_by_length_changes_no_update(n, batch_size, together, seed):
    """The batches of one update hold the same items as without lengths, in order of length."""
    lengths = np.random.default_rng(seed).integers(1, 30, n)
    plain, by_length = BatchOrder(n, batch_size, seed=seed), BatchOrder(n, batch_size, seed=seed, lengths=lengths, together=together)
    for epoch in (0, 1):
        a, b = plain.epoch(epoch), by_length.epoch(epoch)
        size = batch_size * together
        for start in range(0, n, size):
            assert set(a[start : start + size]) == set(b[start : start + size])
            if together > 1:
                assert (np.diff(lengths[b[start : start + size]]) >= 0).all()
