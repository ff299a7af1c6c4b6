"""Our adapter against the harness's own model for transformers, on the same weights: choices, rolling likelihood, generated texts."""

import json

import numpy as np
import pytest

from tinygpt import GPT, GPTConfig
from tinygpt.data.tokenizer import BPETokenizer, CharacterTokenizer

pytest.importorskip("torch", reason="parity tests need the extra `parity`")
lm_eval = pytest.importorskip("lm_eval", reason="parity with the harness needs the extra `eval`")
HFLM = pytest.importorskip("lm_eval.models.huggingface").HFLM
TaskManager = pytest.importorskip("lm_eval.tasks").TaskManager
ours = pytest.importorskip("tinygpt.evaluation.lm_eval")

pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's own and its libraries'

TEXT = "the array has a shape and a type. the shape of the array is two, and its type is a number of bytes. " * 40
WORDS = "the array has a shape and type of two its is number bytes".split()
YAMLS = {
    "choices": "output_type: multiple_choice\ndoc_to_text: '{{context}}'\ndoc_to_choice: '{{options}}'\ndoc_to_target: answer\n"
    "metric_list: [{metric: acc}, {metric: acc_norm}]\n",
    "rolling": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
    "metric_list: [{metric: bits_per_byte}, {metric: word_perplexity}]\n",
    "generated": "output_type: generate_until\ndoc_to_text: 'the {{context}}'\ndoc_to_target: '{{target}}'\n"
    "generation_kwargs: {until: ['.'], max_gen_toks: 8, do_sample: false}\nmetric_list: [{metric: exact_match}]\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, and three tasks whose contexts are short, longer than the model's, empty, or end with a space."""
    folder = tmp_path_factory.mktemp("harness")
    tokenizer = BPETokenizer.train(TEXT, vocab_size=320)
    shape = GPTConfig(n_layer=2, n_head=2, n_embd=16, n_positions=32, vocab_size=tokenizer.n_vocab, initializer_range=0.3)
    GPT(shape, seed=1).save_pretrained(folder / "model", tokenizer)
    rng = np.random.default_rng(0)

    def words(n):
        return " ".join(WORDS[i] for i in rng.integers(len(WORDS), size=n))

    contexts = ["", "the array ", *(words(int(n)) for n in rng.integers(1, 90, size=22))]
    rows = [
        {"context": c, "options": [" " + words(n) for n in (1, 2, 4)], "answer": i % 3, "text": words(70) if i % 2 else TEXT[: 40 + i], "target": words(2)}
        for i, c in enumerate(contexts)
    ]  # fmt: skip
    (folder / "tasks").mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, yaml in YAMLS.items():
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder / 'rows.jsonl'}}}}}\ntest_split: test\n"
        (folder / "tasks" / f"{name}.yaml").write_text(head + yaml, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def results(folder):
    model, tokenizer = GPT.from_pretrained(folder / "model"), BPETokenizer.train(TEXT, vocab_size=320)
    mine = ours.run_harness(model, tokenizer, [str(folder / "tasks")])
    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    theirs = lm_eval.simple_evaluate(
        model=HFLM(pretrained=str(folder / "model"), dtype="float32", device="cpu"),
        tasks=list(YAMLS),
        task_manager=manager,
        bootstrap_iters=1_000,
    )
    return mine, theirs


def samples(results, name):
    return [sample["resps"] for sample in sorted(results["samples"][name], key=lambda sample: sample["doc_id"])]


def test_choices(results):
    mine, theirs = (np.array([[r[0] for r in rows] for rows in samples(each, "choices")], dtype=float) for each in results)
    assert mine.shape == theirs.shape == (24, 3, 2)
    np.testing.assert_allclose(mine[..., 0], theirs[..., 0], atol=1e-4)
    np.testing.assert_array_equal(mine[..., 1], theirs[..., 1])
    assert results[0]["contexts_cut"] > 0


def test_rolling_likelihood(results):
    mine, theirs = (np.ravel([rows[0][0] for rows in samples(each, "rolling")]).astype(float) for each in results)
    np.testing.assert_allclose(mine, theirs, rtol=1e-6)


def test_generated_texts(results):
    mine, theirs = (samples(each, "generated") for each in results)
    assert mine == theirs and len({rows[0][0] for rows in mine}) > 5


def test_scores(results):
    for name in YAMLS:
        mine, theirs = ({key: value for key, value in each["results"][name].items() if isinstance(value, float)} for each in results)
        assert mine.keys() == theirs.keys() and mine
        for key, value in mine.items():
            assert value == pytest.approx(theirs[key], rel=1e-6)


def test_what_the_adapter_refuses(folder):
    model = GPT.from_pretrained(folder / "model")
    with pytest.raises(ValueError, match=r"tokenizer of kind characters: no end token, expected one with an end token"):
        ours.HarnessModel(model, CharacterTokenizer("ab"))
    with pytest.raises(ValueError, match="task 'nothing': unknown to the harness"):
        ours.run_harness(model, BPETokenizer.train(TEXT, vocab_size=320), [str(folder / "tasks"), "nothing"])


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("", r"--harness: .*mine has no task, expected YAML files with `task:` and a name; check the folder"),
        ("task: mine\ntest_split: test\n", r"--harness: \w+ .*, expected tasks whose YAML files are complete and .*; check .*mine"),
        (f"task: mine\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: nowhere.jsonl}}}}\ntest_split: test\n{YAMLS['choices']}",
         r"--harness: FileNotFoundError .*, expected tasks whose YAML files are complete and whose data is here"),
    ],
)  # fmt: skip
def test_tasks_that_the_harness_cannot_read(folder, tmp_path, monkeypatch, yaml, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    if yaml:
        (tmp_path / "mine" / "mine.yaml").write_text(yaml, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        ours.run_harness(GPT.from_pretrained(folder / "model"), BPETokenizer.train(TEXT, vocab_size=320), [str(tmp_path / "mine")])
