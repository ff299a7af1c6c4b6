"""Filling masks: candidates and their probabilities, several masks, measured accuracy; what is refused."""

import numpy as np
import pytest

from autograd import backend, nn
from tests.autograd.checks import numpy_only
from tinygpt.data.masking import MaskedWindows, Masking
from tinygpt.data.tokenizer import BYTE_TOKENS, BPETokenizer, encoder_tokenizer
from tinygpt.data.windows import IGNORED, encode_documents
from tinygpt.data.wrapping import Wrapping
from tinygpt.encoder_config import EncoderConfig
from tinygpt.errors import InvalidInput
from tinygpt.inference.fill_mask import Candidate, fill_in, fill_masks, measure_masked
from tinygpt.inference.sampling import softmax
from tinygpt.models import Encoder

TEXTS = [f"Return the shape of an array, and the size of axis {n}.\n" for n in range(12)]
TOKENIZER = encoder_tokenizer(TEXTS, 300)


def encoder(**changes):
    config = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 24, "vocab_size": 300, "initializer_range": 0.3, **changes}
    return Encoder(EncoderConfig(**config), seed=1)


@pytest.mark.parametrize("n_token_types", [0, 2])
def test_candidates_are_the_likeliest_tokens_of_each_mask(n_token_types):
    model, text = encoder(n_token_types=n_token_types, dropout=0.3), "Return the [MASK] of an [MASK]."
    masks = fill_masks(model, TOKENIZER, text, k=4)
    ids = np.array([TOKENIZER.encode_wrapped(text, allow_special=True).ids])
    assert (ids[0, [0, -1]] == [TOKENIZER.cls_id, TOKENIZER.sep_id]).all() and (ids == TOKENIZER.mask_id).sum() == 2
    with nn.evaluating(model):
        p = softmax(backend.to_host(model(ids).data)[ids == TOKENIZER.mask_id])[:, : TOKENIZER.n_vocab]
    assert len(masks) == 2
    for mask, row in zip(masks, p, strict=True):
        assert [c.id for c in mask] == np.argsort(-row)[:4].tolist()
        assert [c.probability for c in mask] == pytest.approx(np.sort(row)[::-1][:4].tolist(), rel=1e-4)
        assert [c.text for c in mask] == [TOKENIZER.decode([c.id]) for c in mask]
    assert model.training  # as it was before
    assert [len(mask) for mask in fill_masks(model, TOKENIZER, text, k=10**6)] == [TOKENIZER.n_vocab] * 2  # fewer than the model's 300


def test_a_text_is_filled_with_one_candidate_for_each_mask():
    the, size = (next(id for id in range(300) if TOKENIZER.decode([id]) == text) for text in (" the", " array"))
    filled = fill_in(TOKENIZER, "Return [MASK] shape of an [MASK].", [Candidate(" the", 0.9, the), Candidate(" array", 0.1, size)])
    assert filled == "Return the shape of an array."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Return the shape", "text: no .MASK. in 'Return the shape', expected at least one; write .MASK. where a word is missing"),
        ("", "text: no .MASK. in ''"),
        ("Return <mask>", "write .MASK., not <mask> where a word is missing"),
        ("[MASK]" + " of" * 40, "encode: 43 tokens, 2 of them around the text, expected at most 24, the model's context"),
    ],
)
def test_texts_that_cannot_be_filled_are_refused(text, message):
    with pytest.raises(InvalidInput, match=message):
        fill_masks(encoder(), TOKENIZER, text)


def test_a_tokenizer_without_a_mask_token_and_no_candidates_are_refused():
    with pytest.raises(InvalidInput, match=r"has no mask token, expected one with a mask token, such as \[MASK\]"):
        fill_masks(encoder(), BPETokenizer.train(TEXTS, 300), "a [MASK]")
    with pytest.raises(InvalidInput, match="top_k: 0, expected at least 1"):
        fill_masks(encoder(), TOKENIZER, "a [MASK]", k=0)


@numpy_only
def test_measured_accuracy_is_the_share_of_targets_that_are_the_likeliest_token():
    model = encoder(dropout=0.5)
    items = MaskedWindows(encode_documents(TEXTS, TOKENIZER), 24, TOKENIZER, Masking(TOKENIZER))
    found = measure_masked(model, items, batch_size=3)
    nats, right = [], []
    with nn.evaluating(model):
        for item in range(len(items)):
            ids, targets = items.batch(np.array([item]))
            for position in np.flatnonzero(targets[0] != IGNORED):
                p = softmax(backend.to_host(model(ids).data)[0, position][None])[0]
                nats.append(-np.log(p[targets[0, position]]))
                right.append(p.argmax() == targets[0, position])
    assert found.nats == pytest.approx(np.mean(nats), rel=1e-4) and found.accuracy == np.mean(right)


def test_another_models_mask_token_is_named():
    """RoBERTa's tokens: `<mask>` is the mark, and `[MASK]` ordinary text."""
    merges = BPETokenizer.train(TEXTS, 290).merges
    words = [*BYTE_TOKENS, *(left + right for left, right in merges)]
    special = {token: len(words) + n for n, token in enumerate(("<s>", "<pad>", "</s>", "<mask>"))}
    theirs = BPETokenizer(merges, ids={token: id for id, token in enumerate(words)}, special=special, eos="</s>")
    roles = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}
    theirs.set_roles(roles, Wrapping((special["<s>"],), (special["</s>"],)))
    model = encoder(vocab_size=theirs.n_vocab, n_token_types=1, pad_id=special["<pad>"], count_padding=False)
    assert len(fill_masks(model, theirs, "Return the<mask> of an array", k=2)[0]) == 2
    with pytest.raises(InvalidInput, match=r"write <mask>, not \[MASK\] where a word is missing"):
        fill_masks(model, theirs, "Return the [MASK]")
