"""Shared runs of words, compared with sets of tuples."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygpt.data.ngrams import NgramIndex, normal_words, overlaps

words = st.lists(st.sampled_from(["a", "b", "C,", "d."]), min_size=0, max_size=14)


def runs_of(text, n):
    """The definition."""
    found = normal_words(text)
    return [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]


def own_length(text, n, least):
    length = min(n, len(normal_words(text)))
    return length if length >= least else 0


@settings(max_examples=40)
@given(st.lists(words, max_size=5), st.lists(words, max_size=4), st.integers(1, 5), st.integers(0, 4), st.integers(1, 3))
def test_as_with_sets_of_tuples(items, documents, n, fewer, cut):
    items, documents, least = [" ".join(i) for i in items], [" ".join(d) for d in documents], max(1, n - fewer)
    index = NgramIndex(items, n, least)
    assert index.n_texts == len(items) and index.n_short == sum(not own_length(i, n, least) for i in items)
    pieces = []  # each document in pieces, which loses no n-gram
    for document in documents:
        parts = document.split(" ")
        texts = [" ".join(parts[i : i + cut]) for i in range(0, len(parts), cut)]
        pieces += [(text + " ", i == len(texts) - 1) for i, text in enumerate(texts)]
    shares = index.seen_in(pieces)
    for number, item in enumerate(items):
        length = own_length(item, n, least)
        held = [any(run in runs_of(d, length) for d in documents) for run in runs_of(item, length)] if length else []
        assert (math.isnan(shares[number]) and not held) or shares[number] == pytest.approx(np.mean(held))
    np.testing.assert_array_equal(shares, overlaps(items, [(d, True) for d in documents], n, least))
    for document in documents:
        common = {i: set(runs_of(item, own_length(item, n, least) or 99)) & set(runs_of(document, own_length(item, n, least) or 99))
                  for i, item in enumerate(items)}  # fmt: skip
        assert index.holders(document).tolist() == [i for i, runs in common.items() if runs]
        assert bool(index.spans(document)) == any(common.values())
        full = {run for item in items for run in runs_of(item, n)}
        expected = [run in full for run in runs_of(document, n)]
        assert index.overlap(document) == pytest.approx(np.mean(expected) if expected else math.nan, nan_ok=True)


def test_what_is_compared_is_words():
    text = "The quick -- brown fox, they say, didn't jump over the lazy DOG (twice)!"
    assert normal_words(text) == "the quick brown fox they say didnt jump over the lazy dog twice".split()
    assert normal_words("cafe\u0301 _x_") == normal_words("caf\u00e9 x")
    index = NgramIndex([text, "too short to be judged", "another text of its own that is nowhere else at all"])
    assert index.n_short == 1
    page = 'It said: "THE quick brown fox they say didn\'t jump over the lazy dog, twice" and ended.'
    assert [page[a:b] for a, b in index.spans(page)] == ['"THE quick brown fox they say didn\'t jump over the lazy dog, twice"']
    assert index.holders(page).tolist() == [0] and index.spans("nothing of it") == []
    np.testing.assert_array_equal(index.seen_in([(page, True)]), [1.0, np.nan, 0.0])
    assert NgramIndex([]).seen_in([(page, True)]).shape == (0,)
    with pytest.raises(ValueError, match="NgramIndex: n 5, least 8, expected 1 <= least <= n"):
        NgramIndex([], n=5)
