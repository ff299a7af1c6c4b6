"""What pretraining has in common for a GPT and for an encoder: the run that is begun or resumed, and what is said of the updates."""

from tinygpt.config import CorpusConfig, TrainConfig
from tinygpt.data.corpora import Corpus
from tinygpt.data.streaming import StreamedCorpus
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.runs.checkpoint import Checkpoint
from tinygpt.runs.run import Run
from tinygpt.runs.settings import check_data, environment_changes
from tinygpt.training.metrics import Result
from tinygpt.training.trainer import Trainer, check_deterministic


def resume_from(path: str) -> tuple[Run | None, Checkpoint | None]:
    """The run to resume, and its last checkpoint; None for an empty path, and where there is no checkpoint yet."""
    a_run = Run.resume(path) if path else None
    last = a_run.last if a_run else None
    if a_run and not last:
        print(f"resume     {a_run.path} has no checkpoint yet: starting from step 0")
    return a_run, last


def updates_note(train: TrainConfig, context: int, processes: int) -> str:
    """How many updates there are, and how large: with a batch ramp, the first one's size and the last one's."""
    sizes = sorted({train.accumulation(context, 0), train.accumulation(context)})
    accumulation, tokens = (" to ".join(f"{n * each:,}" for n in sizes) for each in (1, train.micro_batch * context))
    ramp = f", growing over the first {train.batch_ramp_tokens:,}" if len(sizes) > 1 else ""
    batch = f"micro-batch {train.micro_batch} x accumulation {accumulation} x context {context} = {tokens} tokens{ramp}"
    return f"{train.steps}, each {batch}" + (f", shared by {processes} processes" if processes > 1 else "")


def begin_run(
    config: CorpusConfig, corpus: Corpus | StreamedCorpus, tokenizer: Tokenizer, trainer: Trainer, a_run: Run | None, name: str
) -> Run:
    """The run's directory, a new one unless there is a run to resume; that continues from its last checkpoint: weights, moments, random streams,
    position in the data. Raises ValueError for a corpus that has changed since, unless `config.override` allows it."""
    last = a_run.last if a_run else None
    a_run = a_run or Run.create(name, config.run)
    a_run.tokenizer, a_run.writer.keep = tokenizer, trainer.config.keep
    a_run.facts = {"corpus_fingerprint": corpus.fingerprint, "tokenizer_fingerprint": tokenizer.fingerprint()}
    print(f"run        {a_run.path}")
    if last:
        check_data(last.training, "corpus_fingerprint", corpus.fingerprint, f"corpus {config.corpus!r}", override=config.override)
        training = a_run.restore(trainer, other_data=config.override)
        step, seen = trainer.result.step, trainer.result.tokens_seen
        print(f"resume     from {last.path}, step {step:,} of {trainer.config.steps:,}, {seen:,} tokens seen")
        if changed := environment_changes(training, trainer.processes):
            print(f"           not bit for bit, because this is another environment: {changed}")
    a_run.keep_settings(config, script=config.script, corpus_fingerprint=corpus.fingerprint, corpus_source=corpus.source)
    if config.deterministic_check:
        print(f"bits       {check_deterministic(trainer)}")
    return a_run


def time_note(result: Result) -> str:
    rate = f"{result.tokens_seen / result.seconds:,.0f} tokens/s"
    return f"{result.seconds / 60:.1f} minutes, {rate}, evaluation and saving included"
