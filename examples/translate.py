"""Train the transformer of 2017 to translate, and draw where it looks while it writes.

    python examples/translate.py

Under six minutes on two CPU cores, no network: the data are numbers and dates in English and German words, made by num2words and babel
(pip install -e ".[translate,plot]"). The numbers and dates that it is tested on were never in training, alone or in a sentence. Leaves a
run directory under runs/ with report.txt (exact match, BLEU, chrF, by kind of text), attention.png, loss.png and the model.

More: --ask RUN translates what you type, --data numbers has single numbers only, --data pairs.tsv takes your own pairs (a tab between
source and target, as Tatoeba and Anki have them), --data corpus.en corpus.de two files with a text per line, --resume RUN continues a run
that was stopped, --help lists every flag.
"""

import dataclasses
import math
import time
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import ClassVar

import numpy as np

from autograd import backend
from tinygpt import TrainConfig
from tinygpt.cli import Progress, Report, exit_if_interrupted, prompt_lines, run, settings, table
from tinygpt.data.corpora import run_name
from tinygpt.data.pairs import N_NUMBERS, NAMES, Pair, PairBatches, encode_pairs, load_pairs, train_pair_tokenizer
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.fields import FREE, WITH_OVERRIDE, PathName, check_fields
from tinygpt.finetuning.common import fingerprint, shorten
from tinygpt.inference.translate import cross_attention
from tinygpt.inference.translations import aligned, score_translations, scores_table, translate_texts
from tinygpt.inspect.cross_attention import Alignment, plot_cross_attention
from tinygpt.models import Seq2Seq
from tinygpt.parallel.local import n_processes, workers_for
from tinygpt.recipes import TRANSLATION
from tinygpt.runs.checkpoint import Checkpoint
from tinygpt.runs.pretraining import resume_from
from tinygpt.runs.run import Run
from tinygpt.runs.settings import check_data, environment_changes
from tinygpt.seq2seq_config import Seq2SeqConfig
from tinygpt.training.arithmetic import cost_note, training_flops
from tinygpt.training.memory_budget import check as check_memory
from tinygpt.training.metrics import plot_loss
from tinygpt.training.trainer import Trainer


@dataclass(frozen=True)
class TranslateConfig:
    script: ClassVar[str] = "examples/translate.py"
    model: Seq2SeqConfig
    train: TrainConfig
    data: tuple[PathName, ...] = field(default=NAMES[:1], metadata=WITH_OVERRIDE)
    """numbers-and-dates, numbers, a file with a tab between source and target, or two files with a text per line."""
    numbers: int = field(default=N_NUMBERS, metadata=WITH_OVERRIDE)
    """Of numbers-and-dates and numbers: single numbers to learn from."""
    leave_out_long: bool = field(default=False, metadata=WITH_OVERRIDE)
    """Leave out pairs with a side longer than --n-positions; otherwise they are errors."""
    test_pairs: int = field(default=0, metadata=FREE)
    """Test pairs to translate, at most. 0: all."""
    n_beams: int = field(default=4, metadata=FREE)
    """Translations that beam search keeps open, when it is compared with greedy decoding."""
    beam_pairs: int = field(default=200, metadata=FREE)
    """Test pairs on which beam search is compared with greedy decoding, at most."""
    length_penalty: float = field(default=0.6, metadata=FREE)
    """Beam search divides log-probabilities by length to this power."""
    run: PathName = field(default="", metadata=FREE)
    """Directory of the run; default: a new one below runs/."""
    resume: PathName = field(default="", metadata=FREE)
    """Run directory to resume from its last intact checkpoint; its settings become the flags' defaults."""
    override: bool = field(default=False, metadata=FREE)
    """With --resume: allow other optimizer settings and other data than the run began with."""
    ask: PathName = field(default="", metadata=FREE)
    """A run: type texts and see their translations, no training."""

    def __post_init__(self) -> None:
        check_fields(self, {1: "n_beams", 0: "test_pairs beam_pairs"})  # at once, not after the training


def main() -> None:
    config = settings(TranslateConfig(*TRANSLATION), __doc__)
    if config.ask:
        ask(Checkpoint.open(config.ask))
        return
    report = Report()
    print(f"backend    {backend.reason}")

    # Pairs of texts, split so that no source of one part is in another; one vocabulary for both languages.
    pairs = load_pairs(*config.data, seed=config.train.seed, n_numbers=config.numbers)
    report.say("\n           ".join([f"data       {pairs.source}", *pairs.notes]))
    pairs.validation.sort(key=lambda pair: len(pair.source))  # similar lengths in a batch: less padding
    a_run, last = resume_from(config.resume)  # the run and its last checkpoint
    tokenizer = last.tokenizer() if last else train_pair_tokenizer(pairs.train, config.model.vocab_size)
    n_positions, ends = config.model.n_positions, {"start_id": tokenizer.pad_id, "pad_id": tokenizer.pad_id, "eos_id": tokenizer.eos_id}
    shape = dataclasses.replace(config.model, vocab_size=tokenizer.n_vocab, **ends)
    options = {"files": pairs.files, "leave_out_long": config.leave_out_long}
    train, validation, test = (
        encode_pairs(part, tokenizer, n_positions, **options) for part in (pairs.train, pairs.validation, pairs.test)
    )
    batches = [PairBatches(*part[:2], tokenizer.pad_id) for part in (train, validation)]
    report.say(
        f"tokenizer  {tokenizer}\npairs      {len(train[2]):,} for training, {len(validation[2]):,} for validation, {len(test[2]):,} for the test; "
        f"on average {mean_length(train[0]):.1f} tokens of source, {mean_length(train[1]):.1f} of target, "
        f"{mean_length([pair.target for pair in train[2]]):.0f} characters"
    )

    # Model and trainer, if they fit into memory.
    processes, micro = n_processes(config.train, shape.n_parameters(), n_positions), config.train.micro_batch
    recompute, longest = config.train.recompute, (max(map(len, train[0])), max(map(len, train[1])))
    kinds = {"optimizer": config.train.optimizer, "recompute": recompute, "accumulates": config.train.accumulation(n_positions) > 1}
    print(f"memory     {check_memory(shape, micro, processes=processes, lengths=longest, **kinds)}")
    model = Seq2Seq(shape, seed=config.train.seed).recompute_blocks(recompute)
    trainer = Trainer(model, config.train, *batches, workers_for(model, config.train))
    size = f"{shape.n_layer} + {shape.n_decoder_layers} layers, {shape.n_head} heads, {shape.n_embd} channels"
    report.say(f"model      {model.n_parameters():,} weights: {size}, context {n_positions}, vocabulary {shape.vocab_size}")
    sizes = sorted({config.train.accumulation(n_positions, 0), config.train.accumulation(n_positions)})  # before and after a batch ramp
    print(f"updates    {config.train.steps:,}, each {' to '.join(str(n * micro) for n in sizes)} pairs")
    mean = (round(mean_length(train[0])), round(mean_length(train[1])))  # tokens of a source and of its target
    flops = (training_flops(shape, n * micro * mean[0], lengths=mean) for n in sizes)
    print(f"optimizer  {cost_note(trainer.optimizer, *flops)}")

    # The run's directory; one that is resumed continues from its last checkpoint.
    a_run = a_run or Run.create(run_name(config.data[0]), config.run)
    data = fingerprint([(pair.source, pair.target) for part in (train, validation) for pair in part[2]])
    a_run.tokenizer, a_run.writer.keep = tokenizer, config.train.keep
    a_run.facts = {"data_fingerprint": data, "tokenizer_fingerprint": tokenizer.fingerprint()}
    print(f"run        {a_run.path}")
    if last:
        check_data(last.training, "data_fingerprint", data, f"data {' '.join(config.data)!r}", override=config.override)
        training = a_run.restore(trainer, other_data=config.override)
        print(f"resume     from {last.path}, step {trainer.result.step:,} of {config.train.steps:,}")
        if changed := environment_changes(training, trainer.processes):
            print(f"           not bit for bit, because this is another environment: {changed}")
    a_run.keep_settings(config, script=config.script, data_source=pairs.source)
    print()
    with Progress(config.train.steps, trainer.result.step) as progress:
        result = a_run.train(trainer, progress)
    exit_if_interrupted(result, f"no report yet; resume with: python {config.script} --resume {a_run.path}")
    a_run.restore_best(trainer)

    # The test: greedy decoding of all pairs, beam search of some, ten examples, where the model looked.
    some = [test[2][i] for i in drawn(len(test[2]), config.test_pairs or len(test[2]))]
    started = time.perf_counter()
    given = translate_texts(model, tokenizer, [pair.source for pair in some])
    rate = len(some) / max(time.perf_counter() - started, 1e-9)
    expected = [pair.target for pair in some]
    report.say(f"test pairs, by kind of text; greedy decoding\n{scores_table([pair.kind for pair in some], given, expected)}")
    report.say(compare_beams(config, model, tokenizer, some, given))
    report.say("ten test pairs: source, translation, and the reference where it differs\n" + examples(some, given))
    right = 1 - config.train.label_smoothing * (1 - 1 / shape.vocab_size)  # the probability of the right token in smoothed targets
    report.say(
        f"best validation loss {result.best_validation_nats:.4f} nats per token at step {result.best_step} of {result.step}, of which "
        f"{-math.log(right):.4f} are label smoothing's; trained in {result.seconds / 60:.1f} minutes; {rate:,.0f} test texts per second"
    )
    report.write(a_run.path / "report.txt")
    try:
        plot_loss(result, a_run.path / "loss.png", first_guess_nats=math.log(shape.vocab_size))
        plot_cross_attention(alignments(model, tokenizer, some), a_run.path / "attention.png")
    except ImportError as error:
        print(f"no pictures: {error}")
    files = {"report": "report.txt", "cross-attention": "attention.png", "checkpoint": "checkpoints"}
    print(
        f"\n{table('result', {name: a_run.path / file for name, file in files.items()})}\n\nnext: python {config.script} --ask {a_run.path}"
    )


def mean_length(sequences: list) -> float:
    return sum(map(len, sequences)) / max(len(sequences), 1)


def drawn(n: int, most: int) -> list[int]:
    """At most so many of n numbers, drawn at random: every kth would be of one kind, as kinds take turns."""
    return sorted(np.random.default_rng([n, most]).permutation(n)[:most].tolist())


def compare_beams(config: TranslateConfig, model: Seq2Seq, tokenizer: Tokenizer, pairs: list[Pair], greedy: list[str]) -> str:
    """Beam search and greedy decoding on the same pairs: scores, and how often and for the better the translations differ."""
    which = drawn(len(pairs), config.beam_pairs)
    expected, before = [pairs[i].target for i in which], [greedy[i] for i in which]
    sources, options = [pairs[i].source for i in which], {"n_beams": config.n_beams, "length_penalty": config.length_penalty}
    after = translate_texts(model, tokenizer, sources, **options)
    rows = [["", "texts", "exact match", "BLEU", "chrF"]]
    for name, given in (("greedy", before), (f"beam search, {config.n_beams} beams", after)):
        rows.append([name, *score_translations(given, expected).cells()])
    differ = [(b == e, a == e) for b, a, e in zip(before, after, expected, strict=True) if b != a]
    better, worse = differ.count((False, True)), differ.count((True, False))
    return (
        f"beam search and greedy decoding\n{aligned(rows)}\n{len(differ)} translations differ: {better} become right, {worse} become wrong"
    )


def examples(pairs: list[Pair], given: list[str], n: int = 10) -> str:
    """n pairs, of all kinds in turn, with their translations; a reference only where the translation is another."""
    kinds: dict[str, list[int]] = {}
    for i, pair in enumerate(pairs):
        kinds.setdefault(pair.kind, []).append(i)
    in_turn = [i for turn in zip_longest(*kinds.values()) for i in turn if i is not None]
    lines = []
    for i in in_turn[:n]:
        found = shorten(given[i], 2 * len(pairs[i].target) + 20)
        lines += [pairs[i].source, f"  -> {found}"] + [f"  != {pairs[i].target}"] * (given[i] != pairs[i].target)
    return "\n".join(lines)


def alignments(model: Seq2Seq, tokenizer: Tokenizer, pairs: list[Pair], n: int = 3) -> list[Alignment]:
    """Where the model looked in the first pair of each of the first n kinds: the mean over heads of the last decoder block."""
    first = {pair.kind: pair for pair in reversed(pairs)}
    found = []
    for kind in list(dict.fromkeys(pair.kind for pair in pairs))[:n]:
        ids = [[*tokenizer.encode(text), tokenizer.eos_id] for text in (first[kind].source, first[kind].target)]
        source, target = ([*(tokenizer.decode([id]).strip() for id in side[:-1]), "(end)"] for side in ids)
        found.append(Alignment(source, target, cross_attention(model, ids[:1], ids[1:])[0, -1].mean(axis=0)))
    return found


def ask(checkpoint: Checkpoint) -> None:
    """Prints the translation of each text typed in, until an empty line."""
    model, tokenizer = Seq2Seq.from_pretrained(checkpoint.path), checkpoint.tokenizer()
    print("Type a text; an empty line ends.")
    for text in prompt_lines():
        try:
            print("  " + translate_texts(model, tokenizer, [text])[0])
        except ValueError as error:
            print(f"error: {error}")


if __name__ == "__main__":
    run(main)
