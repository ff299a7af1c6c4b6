"""The encoder's scripts, run as a reader would run them: pretraining, filling masks, a classifier on top; models of one kind in the other's script."""

import json

from tests.test_examples import SMALL, script

FLAGS = [
    flag for flag in SMALL if flag not in ("--sample-tokens", "20")
] + "--steps 4 --eval-every 2 --log-every 1 --warmup-steps 1".split()


def text(tmp_path):
    lines = (f"Return the {what} of an array of {n} numbers.\n" for n in range(200) for what in ("shape", "size", "sum"))
    (tmp_path / "mine.txt").write_text("".join(lines), encoding="utf-8")
    rows = ["text,label"] + [f"the {w} of {n} numbers,{w}" for n in range(20) for w in ("sum", "shape")]
    (tmp_path / "rows.csv").write_text("\n".join(rows), encoding="utf-8")


def test_an_encoder_is_pretrained_resumed_fills_masks_and_becomes_a_classifier(tmp_path):
    text(tmp_path)
    out = script(
        "pretrain_encoder.py", *FLAGS, "--corpus", "mine.txt", "--run", "out", "--mask-rate", "0.15", "--stop-at", "2", cwd=tmp_path
    )
    for line in (
        "masked: 15%, by word",
        "sample before training",
        "mask 1: ",
        "validation",
        "resume with: python examples/pretrain_encoder.py",
    ):
        assert line in out
    out = script("pretrain_encoder.py", "--resume", "out", "--stop-at", "0", "--sample", "no mask", cwd=tmp_path)
    for line in (
        "resume     from",
        "bigram",
        "both neighbors",
        "x the better of both",
        "nats per masked token",
        "sample after training: text: no [MASK]",
    ):
        assert line in out
    settings = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert settings["mask_by"] == "word" and settings["script"] == "examples/pretrain_encoder.py"

    filled = script("fill_mask.py", "--run", "out", "--text", "Return the [MASK] of an [MASK].", "--top-k", "2", cwd=tmp_path)
    assert [line.split()[0] for line in filled.splitlines()[:6]].count("mask") == 2 and "%" in filled
    assert filled.splitlines()[-1].startswith("Return the") and "[MASK]" not in filled

    tuned = script(
        "finetune_classifier.py", "--base", "out", "--data", "rows.csv", "--epochs", "1", "--run", "cls", "--truncate", cwd=tmp_path
    )
    assert "an encoder does not continue a text" in tuned and "this classifier" in tuned and "asked in words" not in tuned
    wrong = script("fill_mask.py", "--run", "cls", "--text", "a [MASK]", cwd=tmp_path, ok=False)
    assert "an encoder's classifier, expected an encoder; load it with EncoderClassifier" in wrong
    wrong = script("generate.py", "--run", "out", "--prompt", "x", cwd=tmp_path, ok=False)
    assert "an encoder, expected a language model; load it with Encoder.from_pretrained, or examples/fill_mask.py" in wrong


def test_without_an_encoders_run_its_script_is_named(tmp_path):
    assert "train first: python examples/pretrain_encoder.py" in script("fill_mask.py", "--text", "a [MASK]", cwd=tmp_path, ok=False)
