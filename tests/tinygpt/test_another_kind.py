"""A model of one kind given to a script of another: one line that says what it is, and which script it is for."""

import importlib.util
import io
import json
import re
import sys
from pathlib import Path

import pytest

from tinygpt import GPT, GPTConfig
from tinygpt.data.tokenizer import BPETokenizer, encoder_tokenizer
from tinygpt.encoder_config import EncoderConfig
from tinygpt.finetuning.classifier import GPTClassifier
from tinygpt.finetuning.encoder_classifier import EncoderClassifier
from tinygpt.inspect.explore import main as explore
from tinygpt.models import Encoder, Seq2Seq
from tinygpt.runs.checkpoint import Checkpoint
from tinygpt.runs.verify import check_checkpoint
from tinygpt.seq2seq_config import Seq2SeqConfig
from tinygpt.weights.config_json import KINDS

ROOT = Path(__file__).parents[2]
TEXT = "the cat sat on the mat, the cats of the town\n" * 5
LABELS = ["no", "yes"]
WHAT = {
    "gpt": "a language model",
    "encoder": "an encoder",
    "translator": "an encoder-decoder",
    "classifier": "a classifier",
    "encoder-classifier": "an encoder's classifier",
}
SCRIPT = {
    "gpt": "examples/generate.py --run",
    "encoder": "examples/fill_mask.py --run",
    "translator": "examples/translate.py --ask",
    "classifier": "examples/finetune_classifier.py --ask",
    "encoder-classifier": "examples/finetune_classifier.py --ask",
}
CLASS = {"gpt": GPT, "encoder": Encoder, "translator": Seq2Seq, "classifier": GPTClassifier, "encoder-classifier": EncoderClassifier}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model of each kind, with its tokenizer."""
    root = tmp_path_factory.mktemp("kinds")
    plain, masked = BPETokenizer.train(TEXT, 300), encoder_tokenizer(TEXT, 300)
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 400}
    ids = {"start_id": masked.pad_id, "pad_id": masked.pad_id, "eos_id": masked.eos_id}
    gpt = GPT(GPTConfig(**shape, vocab_size=plain.n_vocab))
    encoder = Encoder(EncoderConfig(**shape, vocab_size=masked.n_vocab))
    gpt.save_pretrained(root / "gpt", plain)
    encoder.save_pretrained(root / "encoder", masked)
    Seq2Seq(Seq2SeqConfig(**shape, vocab_size=masked.n_vocab, **ids)).save_pretrained(root / "translator", masked)
    GPTClassifier(gpt, plain, LABELS).save_pretrained(root / "classifier")
    EncoderClassifier(encoder, masked, LABELS).save_pretrained(root / "encoder-classifier")
    (root / "questions.csv").write_text(
        "instruction,output\n" + "".join(f"what is {n}?,the cat {n}\n" for n in range(30)), encoding="utf-8"
    )
    (root / "labels.csv").write_text("text,label\n" + "".join(f"the cat {n},{'ab'[n % 2]}\n" for n in range(40)), encoding="utf-8")
    return root


def call(monkeypatch, folder, script, flags):
    """A script's main function, in this process: importing the libraries again for each of these calls would take a minute."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [script, *flags])
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    if script == "explore":
        explore(flags)
        return
    spec = importlib.util.spec_from_file_location("script_of_a_kind", ROOT / "examples" / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    module.main()


# Script -> its flags, and the kinds of models that it is for.
SCRIPTS = {
    "generate": (["--prompt", "the", "--max-new-tokens", "2", "--run"], ["gpt"]),
    "few_shot": (["--query", "the", "--run"], ["gpt"]),
    "explore": (["--out", "page.html", "--prompt", "the cat", "--run"], ["gpt", "encoder", "translator"]),
    "fill_mask": (["--text", "the [MASK] sat", "--run"], ["encoder"]),
    "translate": (["--ask"], ["translator"]),
    "finetune_classifier": (["--ask"], ["classifier", "encoder-classifier"]),
    "finetune_instructions": (["--ask"], []),
}
CASES = [(script, kind) for script in SCRIPTS for kind in WHAT]


@pytest.mark.parametrize(("script", "kind"), CASES)
def test_each_script_names_the_script_for_a_model_of_another_kind(folder, monkeypatch, script, kind):
    flags, kinds = SCRIPTS[script]
    if kind in kinds:
        call(monkeypatch, folder, script, [*flags, kind])
        return
    with pytest.raises(ValueError) as error:
        call(monkeypatch, folder, script, [*flags, kind])
    message = str(error.value)
    if (script, kind) == ("finetune_instructions", "gpt"):
        assert "expected an assistant's run" in message
    elif script == "finetune_classifier" and kind in ("gpt", "encoder"):
        assert message == f"{kind}: {WHAT[kind]}, expected a classifier; train one: python examples/finetune_classifier.py --base {kind}"
    else:
        assert re.match(f"{kind}: {WHAT[kind]}, expected (a|an) ", message)
        assert message.endswith(f"load it with {CLASS[kind].__name__}.from_pretrained, or {SCRIPT[kind]} {kind}")


@pytest.mark.parametrize(
    ("script", "kind", "wanted"),
    [
        ("finetune_instructions --data questions.csv", "encoder", "a language model"),
        ("finetune_instructions --data questions.csv", "translator", "a language model"),
        ("finetune_classifier --data labels.csv", "translator", "a language model or an encoder"),
    ],
)
def test_a_base_of_another_kind(folder, monkeypatch, script, kind, wanted):
    script, *flags = script.split()
    with pytest.raises(ValueError, match=f"{kind}: {WHAT[kind]}, expected {wanted}; .*{re.escape(SCRIPT[kind])} {kind}"):
        call(monkeypatch, folder, script, [*flags, "--base", kind])
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(("script", "of"), [("pretrain", "pretrain_encoder"), ("pretrain_encoder", "translate"), ("translate", "pretrain")])
def test_a_run_is_resumed_by_its_own_script(tmp_path, monkeypatch, script, of):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps({"script": f"examples/{of}.py"}), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"a run of examples/{of}\.py, expected one of examples/{script}\.py"):
        call(monkeypatch, tmp_path, script, ["--resume", "run"])


@pytest.mark.parametrize("kind", WHAT)
def test_classes_load_their_own_kind(folder, kind):
    for other, cls in CLASS.items():
        if other == kind:
            assert cls.from_pretrained(folder / kind).config.n_embd == 8
            continue
        with pytest.raises(ValueError, match=f"{kind}: {WHAT[kind]}, expected {WHAT[other]}"):
            cls.from_pretrained(folder / kind)


def test_every_kind_is_opened_and_verified(folder):
    assert sorted(WHAT.values()) == sorted(kind.what for kind in KINDS.values())
    for kind, cls in CLASS.items():
        checkpoint = Checkpoint.open(folder / kind)
        assert type(checkpoint.model()) is cls and KINDS[checkpoint.kind].what == WHAT[kind]
        assert (checkpoint.tokenizer().mask_id is None) == (kind in ("gpt", "classifier"))
        assert [each[:17] for each in check_checkpoint(folder / kind)] == ["cannot be resumed"]  # it has no training state


def test_a_tokenizer_without_a_mask_and_a_text_beyond_the_context(folder, monkeypatch, tmp_path):
    Checkpoint.open(folder / "encoder").model().save_pretrained(tmp_path / "maskless", BPETokenizer.train(TEXT, 280))
    with pytest.raises(ValueError, match=r"tokenizer: BPETokenizer.* has no mask token, expected one with a mask token"):
        call(monkeypatch, tmp_path, "fill_mask", ["--run", "maskless", "--text", "the [MASK]"])
    with pytest.raises(ValueError, match=r"encode: \d+ tokens, 2 of them around the text, expected at most 400, the model's context"):
        call(monkeypatch, folder, "fill_mask", ["--run", "encoder", "--text", "the [MASK] " * 300])
    with pytest.raises(ValueError, match=r"text: no \[MASK\] in 'the <mask>', expected at least one; write \[MASK\], not <mask>"):
        call(monkeypatch, folder, "fill_mask", ["--run", "encoder", "--text", "the <mask>"])
