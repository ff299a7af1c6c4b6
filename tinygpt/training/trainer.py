"""The training loop: which batches come next, at which learning rate; evaluation, checkpoints, and a report of all of it.

What one update does is in `step.py`.
"""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from types import FrameType
from typing import NamedTuple, Protocol

import numpy as np

from autograd import Array, backend, nn
from autograd.limits import peak_bytes
from tinygpt.config import TrainConfig
from tinygpt.data.windows import BatchOrder
from tinygpt.errors import Diverged, InvalidInput, NotDeterministic
from tinygpt.models.protocols import Batch, Batches, DrawnBatches, GradientWorkers, KeepsState, Trainable
from tinygpt.storage.checked_json import Entries, Json
from tinygpt.training.divergence import Divergence
from tinygpt.training.loss_scale import loss_scale_for
from tinygpt.training.metrics import Evaluation, Metrics, Reporter, Result, environment, measure, update_ratio
from tinygpt.training.optimizers import make_optimizer
from tinygpt.training.schedule import learning_rate, resumed_note
from tinygpt.training.step import clip_and_update, compute_gradients, train_step

_TRAINING_SAMPLE = 256  # items of the training set, at most, that a classifier's training accuracy is measured on


class Position(NamedTuple):
    """Where a trainer is in everything that an update draws or counts before it changes the weights: enough to compute it again."""

    batches_drawn: int  # micro-batches taken from the order
    dropout_draws: int
    tokens_seen: int


class Record(Protocol):
    """Where the metrics and checkpoints of a run go.

    log(values)          one line of metrics
    save(trainer, best)  a checkpoint of the trainer's model, optimizer and `state_dict`; best: its validation loss is the best so far
    roll_back(trainer)   restores the trainer from the last checkpoint and returns its name; FloatingPointError if there is none
    """

    def log(self, values: dict[str, Json]) -> None: ...
    def save(self, trainer: "Trainer", *, best: bool) -> None: ...
    def roll_back(self, trainer: "Trainer") -> str: ...


class Trainer:
    """Trains a model on items: a GPT on windows of tokens, a classifier on labeled texts.

    model, config   what is trained, and how
    train           items to learn from; the next update takes `accumulation` micro-batches of them
    validation      items to measure on, or None
    workers         processes that share the rows of each micro-batch (`tinygpt.parallel.local.workers_for`); None: this process alone

    Weights, moments and `state_dict()` determine everything that follows: a new trainer that `tinygpt.runs.checkpoint.Checkpoint.restore`
    restores continues bit for bit. Raises ValueError if `config.processes` asks for several processes and there are no workers, and for a
    batch ramp with items that are sorted by length.
    """

    def __init__(
        self, model: Trainable, config: TrainConfig, train: Batches, validation: Batches | None, workers: GradientWorkers | None = None
    ) -> None:
        assert isinstance(model, nn.Module)
        if config.processes > 1 and workers is None:
            rule = "expected Trainer(..., workers=workers_for(model, config)); workers_for is in tinygpt.parallel.local"
            raise InvalidInput(f"TrainConfig.processes: {config.processes} without workers, {rule}")
        model.set_compute_dtype(config.dtype)
        model.set_z_loss(config.z_loss)
        model.set_label_smoothing(config.label_smoothing)
        self.model: Trainable = model
        self.config, self.workers = config, workers
        self.train_items, self.validation_items = train, validation
        together, lengths = config.accumulation(model.config.n_positions), getattr(train, "lengths", None)
        if config.batch_ramp_from and lengths is not None:
            rule = "expected 0 for items of different lengths: each update's are sorted by length, so all updates need the same number"
            raise InvalidInput(f"TrainConfig.batch_ramp_from: {config.batch_ramp_from}, {rule}")
        self.order = BatchOrder(len(train), config.micro_batch, seed=config.seed + 1, lengths=lengths, together=together)
        self.optimizer = make_optimizer(model, config, workers.optimizer_class if workers else None)
        self.divergence, self.result, self.loss_scale = Divergence(config), Result(), loss_scale_for(config)
        self.resumed = ""  # what a user should know of how the run is resumed
        self.draw_from(0)

    @property
    def accumulation(self) -> int:
        """Micro-batches of the next update. With a batch ramp they follow from the tokens seen, which a checkpoint and a `Position` hold."""
        return self.config.accumulation(self.model.config.n_positions, self.result.tokens_seen)

    @property
    def processes(self) -> int:
        """How many compute each update, this one included."""
        return self.workers.n if self.workers else 1

    def update(self) -> tuple[Array, Array]:
        """The next update, whatever its numbers. Returns (mean loss in nats per target, gradient norm before clipping), on the device."""
        batches, max_norm = self._next(), self.config.max_norm
        loss, norm = train_step(self.model, self.optimizer, batches, max_norm=max_norm, workers=self.workers, loss_scale=self.loss_scale)
        self.result.step += 1
        return loss, norm

    def gradients(self) -> Array:
        """The first half of `update`, weights unchanged: sets learning rate and gradients, returns the mean loss, on the device."""
        return compute_gradients(self.model, self.optimizer, self._next(), self.workers, self.loss_scale)

    def _next(self) -> list[Batch]:
        """Sets the next update's learning rate and draws its batches."""
        self.optimizer.lr = learning_rate(self.config, self.result.step)
        items, batches = self.train_items, list[Batch]()
        for _ in range(self.accumulation):
            which = next(self._batches)
            batches.append(items.drawn(which, self.batches_drawn) if isinstance(items, DrawnBatches) else items.batch(which))
            self.batches_drawn += 1
        self.result.tokens_seen += sum(batch[0].size for batch in batches)
        return batches

    def close(self) -> None:
        """Ends the processes that share the work; the next update would start them again."""
        if self.workers:
            self.workers.close()

    def peak_bytes(self) -> int:
        """The most memory that this process and its workers have held so far, what they share counted once."""
        return peak_bytes() + (self.workers.peak_bytes() if self.workers else 0)

    def evaluate(self) -> Evaluation:
        """Loss on the validation items, or `eval_batches` batches of them (nan without any); a classifier's accuracy there and in training."""
        size, items = self.config.micro_batch, self.validation_items
        ranks = self.workers.measuring if self.workers else None
        found = Evaluation(math.nan) if items is None else measure(self.model, items, size, self.config.eval_batches, ranks)
        if items is None or found.accuracy is None:
            return found
        n_batches = -(-min(len(items), _TRAINING_SAMPLE) // size)
        return replace(found, training_accuracy=measure(self.model, self.train_items, size, n_batches, ranks).accuracy)

    def run(self, reporter: Reporter, run: Record | None = None) -> Result:
        """Trains to the last step, to `stop_at`, or until Ctrl-C or SIGTERM: these finish the current step and save, without an evaluation.

        run   logs metrics; saves after each evaluation, each `save_every` updates and at the end; rolls back for `on_nan`
        Raises FloatingPointError at the first loss or gradient that is not finite, before the weights change (or as `on_nan` says).
        """
        with contextlib.closing(self), _finish_step_on_signal() as signals:
            return _Loop(self, reporter, run).train(signals)

    def diagnosis(self, loss: float, norm: float, before: Position) -> str:
        """What is known of an update that began at `before` and whose loss or gradient norm is not finite; leaves the position as it is."""
        after = self.position()

        def replay() -> None:
            self.go_to(before)
            self.gradients()

        first_found = self.workers.first_found if self.workers else None
        found = self.divergence.diagnosis(self.optimizer, replay, first_found, step=self.result.step + 1, loss=loss, norm=norm)
        self.go_to(after)
        return found

    def position(self) -> Position:
        return Position(self.batches_drawn, self.model.dropout_stream.counter, self.result.tokens_seen)

    def go_to(self, position: Position) -> None:
        self.draw_from(position.batches_drawn)
        self.model.dropout_stream.counter, self.result.tokens_seen = position.dropout_draws, position.tokens_seen

    def state_dict(self) -> dict[str, Json]:
        """What a checkpoint stores in addition to weights and moments, as JSON values."""
        stream = self.model.dropout_stream
        return {
            **self.result.state_dict(),
            "streams": {  # each random stream: where it comes from, and how far it has been drawn
                "init": {"seed": self.config.seed},
                "data_order": {"seed": self.order.seed, "batches_drawn": self.batches_drawn, "n_items": self.order.n_items},
                "dropout": {"seed": stream.seed, "draw": stream.counter},
                "sampling": {"seed": self.config.seed},  # each sample starts from it again
            },
            **self.divergence.state_dict(),
            **({} if self.loss_scale is None else {"loss_scale": self.loss_scale.state_dict()}),
            **({"items": self.train_items.state()} if isinstance(self.train_items, KeepsState) else {}),
            "train": asdict(self.config),
            "environment": environment(self.processes),
        }

    def load_state_dict(self, state: dict[str, Json], where: str = "state", *, other_data: bool = False) -> None:
        """Restores what `state_dict` gave; weights and moments are loaded apart (see `tinygpt.runs.checkpoint.Checkpoint.restore`).

        where        what error messages call the source
        other_data   the items differ from before: their order starts again
        Raises ValueError, naming the entry, for values that no trainer writes, and for another number of items than now.
        """
        entry = Entries(state, where)
        n_items, seed, drawn = (entry.integer("streams", "data_order", key) for key in ("n_items", "seed", "batches_drawn"))
        if n_items != self.order.n_items and not other_data:
            fix = "the data has changed (or the context, or the stride): resume with what the run began with"
            raise InvalidInput(f"{where}: saved with {n_items} items to learn from, expected {self.order.n_items} as there are now; {fix}")
        self.result.load_state_dict(entry)  # the object stays: `run` and its caller hold it
        self.order.seed, stream = seed, self.model.dropout_stream
        self.draw_from(0 if other_data else drawn)
        stream.seed, stream.counter = entry.integer("streams", "dropout", "seed"), entry.integer("streams", "dropout", "draw")
        self.divergence.load_state_dict(entry)
        self.resumed = resumed_note(self.config, state.get("train"), self.result.step)
        if self.loss_scale is not None and "loss_scale" in state:  # a run that --override has switched to float16 starts its own
            self.loss_scale.load_state_dict(state["loss_scale"], f"{where}: loss_scale")
        if isinstance(self.train_items, KeepsState) and "items" in state:
            self.train_items.load_state(state["items"])

    def draw_from(self, batches_drawn: int) -> None:
        """The next micro-batch is number `batches_drawn` of the order."""
        self.batches_drawn, self._batches = batches_drawn, self.order.batches(batches_drawn)


class _Loop:
    """One `Trainer.run`. What it measures goes into the curves of the result, to the user (`reporter`), and into the run's files."""

    def __init__(self, trainer: Trainer, reporter: Reporter, run: Record | None) -> None:
        self.trainer, self.reporter, self.run = trainer, reporter, run
        self.result, self.config = trainer.result, trainer.config
        self.noted = ""
        self.begin = time.perf_counter() - self.result.seconds  # of the run, the time before it was resumed included
        # Since the last log: when it was, the tokens seen then, and the pauses for measuring and saving.
        self.since, self.tokens, self.pause_s = time.perf_counter(), self.result.tokens_seen, 0.0

    def train(self, signals: list[int]) -> Result:
        """Updates until the last step, or until there is a number in `signals`."""
        result, config, run = self.result, self.config, self.run
        for warning in filter(None, (config.warmup_note(), self.trainer.resumed)):
            self.reporter.note(warning)
        self.trainer.model.train()
        while result.step < config.steps:
            updated = self.update()
            ending = result.step == config.steps
            signal_number = signals[0] if signals else 0
            if self.trainer.workers:  # a signal may have reached one rank alone
                signal_number = int(self.trainer.workers.ranks.agree(signal_number))
            stopping = bool(signal_number) or result.step == config.stop_at
            if updated and (result.step == 1 or result.step % config.log_every == 0 or ending or stopping):
                self.log(*updated)
            paused = time.perf_counter()
            measured = result.step % config.eval_every == 0 or (ending and not stopping)
            best = measured and self.measure()
            due = bool(config.save_every) and result.step % config.save_every == 0
            if run and (measured or due or ending or stopping):
                result.seconds = time.perf_counter() - self.begin
                run.save(self.trainer, best=best)
            self.pause_s += time.perf_counter() - paused
            if stopping and not ending:
                result.interrupted, result.signal = True, signal_number
                self.reporter.note(f"interrupted: step {result.step} of {config.steps} finished{', saving' if run else ''}")
                break
            waited = result.step - result.best_step
            if config.patience and measured and result.validation_curve and waited >= config.patience * config.eval_every:
                result.stopped_early = True
                self.reporter.note(f"stopped early: no better validation since step {result.best_step}")
                break
        result.seconds = time.perf_counter() - self.begin
        return result

    def update(self) -> tuple[float, float] | None:
        """The next update, made only if its numbers are finite. Returns (loss, gradient norm), or None if `on_nan` skipped it. A skipped
        update moves schedule and data on, not the weights. After a roll-back the next update from there is made."""
        trainer, result = self.trainer, self.result
        while True:
            before = trainer.position()
            device_loss, device_norm = trainer.gradients(), trainer.optimizer.gradient_norm()
            loss, norm = float(device_loss), float(device_norm)  # waits for the device, once per update
            if math.isfinite(loss) and math.isfinite(norm):
                if trainer.loss_scale:
                    trainer.loss_scale.update(norm)
                clip_and_update(trainer.optimizer, device_norm, self.config.max_norm)
                result.step += 1
                self.note(loss, norm)
                return loss, norm
            if trainer.loss_scale and (skipped := trainer.loss_scale.overflow(result.step + 1, loss, norm)):
                result.step += 1
                self.reporter.note(skipped)
                return None
            report = trainer.diagnosis(loss, norm, before)
            if trainer.divergence.failed(report, can_roll_back=self.run is not None) == "skip" or self.run is None:
                result.step += 1
                result.n_skipped += 1
                self.reporter.note(f"{report}; update skipped, {result.n_skipped} so far")
                return None
            drawn, n_failures, n_rollbacks = trainer.batches_drawn, trainer.divergence.n_failures, result.n_rollbacks + 1
            checkpoint = self.run.roll_back(trainer)
            trainer.draw_from(drawn)  # the same batches would fail again: the data continues after them
            trainer.divergence.n_failures, result.n_rollbacks = n_failures, n_rollbacks
            self.reporter.note(f"{report}; rolled back to {checkpoint} (step {result.step}), continuing with other batches")

    def note(self, loss: float, norm: float) -> None:
        """Reports what is unusual about an update: the first loss, a spike, fewer processes than expected."""
        trainer, result = self.trainer, self.result
        if math.isnan(result.first_loss_nats):  # of the first update that was made
            result.first_loss_nats = loss
            n = trainer.model.n_classes
            more = f"{', z-loss included' * bool(self.config.z_loss)}{', labels smoothed' * bool(self.config.label_smoothing)}"
            if n:
                self.reporter.note(f"first loss {loss:.3f} nats{more}; a uniform guess among {n:,} costs ln {n} = {math.log(n):.3f}")
        if spike := trainer.divergence.succeeded(result.step, loss, norm):
            self.reporter.note(spike)
        if trainer.workers and trainer.workers.note != self.noted:
            self.noted = trainer.workers.note
            self.reporter.note(self.noted)

    def log(self, loss_nats: float, norm: float) -> None:
        result, optimizer, ratio, now = self.result, self.trainer.optimizer, update_ratio(self.trainer.optimizer), time.perf_counter()
        result.seconds = now - self.begin
        tokens_per_s = (result.tokens_seen - self.tokens) / max(now - self.since - self.pause_s, 1e-9)
        self.since, self.tokens, self.pause_s = now, result.tokens_seen, 0.0
        metrics = Metrics(result.step, loss_nats, optimizer.lr, norm, ratio, tokens_per_s, result.seconds, result.tokens_seen)
        result.train_curve.append((result.step, loss_nats))
        self.reporter.update(metrics)
        if self.run:
            scale = self.trainer.loss_scale
            self.run.log(asdict(metrics) | ({} if scale is None else {"loss_scale": scale.scale, "n_overflows": scale.n_overflows}))

    def measure(self) -> bool:
        """Evaluates; True if the result is the best so far. Raises FloatingPointError if it is not finite, so that it is not saved."""
        result, step = self.result, self.result.step
        if self.trainer.validation_items is None:
            return False
        found = self.trainer.evaluate()
        if not math.isfinite(found.nats):
            problem = f"validation: loss {found.nats} at step {step}, expected a finite number"
            fix = f"lower --lr (it is {self.trainer.optimizer.lr:.1e}), or find the op with AUTOGRAD_DEBUG=1"
            raise Diverged(f"{problem}; nothing was saved, the last checkpoint is kept; {fix}")
        best = found.nats < result.best_validation_nats
        if best:
            result.best_validation_nats, result.best_step = found.nats, step
        result.last_validation_nats = found.nats
        result.validation_curve.append((step, found.nats))
        self.reporter.evaluated(step, found.nats, best)
        line: dict[str, Json] = {"step": step, "validation_nats": found.nats}
        if found.accuracy is not None and found.training_accuracy is not None:
            trained, validated = found.training_accuracy, found.accuracy
            result.accuracy_curve.append((step, trained, validated))
            line |= {"training_accuracy": trained, "validation_accuracy": validated}
            self.reporter.note(f"step {step}: accuracy {trained:.1%} on training texts, {validated:.1%} on validation texts")
        if self.run:
            self.run.log(line)
        return best


def check_deterministic(trainer: Trainer) -> str:
    """Computes the loss and all gradients of the next update twice and compares the bits; leaves the trainer unchanged. Returns a sentence
    with the result. Raises ArithmeticError naming the first parameter whose gradients differ."""
    before, runs = trainer.position(), []
    for _ in range(2):
        runs.append((float(trainer.gradients()), backend.to_host(trainer.optimizer.gradient).copy()))
        trainer.go_to(before)
    trainer.optimizer.zero_grad()
    (loss_1, gradient_1), (loss_2, gradient_2) = runs
    if loss_1 != loss_2 or gradient_1.tobytes() != gradient_2.tobytes():
        ends = np.cumsum([p.size for _, p in trainer.optimizer.named])
        pieces = zip(trainer.optimizer.named, *(np.split(gradient, ends[:-1]) for gradient in (gradient_1, gradient_2)), strict=True)
        name = next((name for (name, _), one, two in pieces if one.tobytes() != two.tobytes()), "none, only in the loss")
        found = f"two runs of one step differ, first in the gradient of {name} (losses {loss_1!r} and {loss_2!r})"
        cause = "an op on this backend is not deterministic: runs will agree to rounding only"
        raise NotDeterministic(f"deterministic check: {found}, expected equal bits; {cause}")
    return f"step {trainer.result.step + 1} computed twice: the loss and all {gradient_1.size:,} gradients are equal bit for bit"


@contextlib.contextmanager
def _finish_step_on_signal() -> Iterator[list[int]]:
    """Within this block Ctrl-C, SIGTERM or a closed terminal (SIGHUP; SIGBREAK on Windows) is only added to the list, so that the loop finishes
    its step and saves. A second Ctrl-C or SIGTERM raises KeyboardInterrupt at once; a closed terminal may signal twice, from kernel and shell."""
    caught: list[int] = []
    hang_up = getattr(signal, "SIGHUP", None)
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]
    before = {n: signal.getsignal(n) for n in numbers if n != hang_up or signal.getsignal(n) != signal.SIG_IGN}  # nohup keeps running

    def handler(number: int, frame: FrameType | None) -> None:
        if caught and number != hang_up:
            raise KeyboardInterrupt
        caught.append(number)

    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        before = {}
    for number in before:
        signal.signal(number, handler)
    try:
        yield caught
    finally:
        for number, handler_before in before.items():
            signal.signal(number, signal.SIG_IGN if number == hang_up and caught else handler_before)
