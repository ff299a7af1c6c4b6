"""The training loop: batches, accumulated gradients, clipped AdamW updates, evaluation, checkpoints, and a report of all of it."""

import contextlib
import math
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from autograd import backend
from autograd.optim import AdamW, warmup_cosine
from tinygpt.config import TrainConfig
from tinygpt.data.windows import BatchOrder, count_targets
from tinygpt.models.protocols import Batches
from tinygpt.parallel.local import Replicas, can_copy, n_processes
from tinygpt.storage.checked_json import Entries
from tinygpt.training.divergence import MAX_CONSECUTIVE, SpikeDetector, first_bad_op, first_bad_parameter, likely_cause
from tinygpt.training.memory_budget import peak_bytes, private_peak_bytes
from tinygpt.training.metrics import Metrics, Reporter, Result, _or_none, environment, evaluate
from tinygpt.training.step import accumulate


class Trainer:
    """Trains a GPT on windows of tokens, or a classifier on labelled texts.

    model, config   what, and how
    train           items to learn from; each update takes `accumulation` micro-batches of them
    validation      items to measure on, or None

    Everything that decides what comes next is in weights, moments and `progress()`: `tinygpt.runs.checkpoint.load_training` puts a new trainer
    where an old one was saved, and it goes on bit for bit.
    """

    def __init__(self, model: Any, config: TrainConfig, train: Batches, validation: Batches | None) -> None:
        self.model, self.config = model.compute_in(config.dtype), config
        self.train_items, self.validation_items = train, validation
        self.accumulation = config.accumulation(model.config.n_positions)
        lengths = getattr(train, "lengths", None)
        self.order = BatchOrder(len(train), config.micro_batch, seed=config.seed + 1, lengths=lengths, together=self.accumulation)
        self.optimizer = AdamW(model, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
        self.processes = n_processes(config, self.optimizer.weight.size, model.config.n_positions)
        if not config.processes and not can_copy(model):
            self.processes = 1
        self._replicas: Replicas | None = None
        self.result = Result()
        self.batches_drawn = 0  # micro-batches taken from the order: the position in the data
        self._batches = self.order.batches()
        self._spikes = SpikeDetector()
        self._norms: deque[float] = deque(maxlen=20)
        self._failures = 0  # updates skipped or rolled back since the last good one

    @property
    def tokens_per_update(self) -> int:
        return self.accumulation * self.config.micro_batch * self.model.config.n_positions

    def update(self) -> tuple[Any, Any]:
        """One update of the weights, unchecked. Returns (mean loss in nats per target, gradient norm before clipping), on the device."""
        loss = self.gradients()
        norm = self.optimizer.step(max_norm=self.config.max_norm or None)
        self.result.step += 1
        return loss, norm

    def gradients(self) -> Any:
        """Sets the learning rate and the gradients of the next update; returns the mean loss, nats per target, still on the device."""
        config = self.config
        self.optimizer.lr = warmup_cosine(
            self.result.step,
            peak=config.lr,
            warmup_steps=config.warmup_steps,
            n_steps=config.steps,
            floor=config.lr * config.final_lr_fraction,
        )
        self.optimizer.zero_grad()
        batches = [self.train_items.batch(next(self._batches)) for _ in range(self.accumulation)]
        self.batches_drawn += self.accumulation
        self.result.tokens_seen += sum(batch[0].size for batch in batches)
        n_targets = [count_targets(batch) for batch in batches]
        shares = [n / sum(n_targets) for n in n_targets]  # each target counts the same, whichever micro-batch it is in
        if self.processes > 1:
            replicas = self._replicas_at_work()
            if replicas and replicas.can_take(batches):
                return replicas.gradients(batches, shares)
        return accumulate(self.model, [(batch, share, 0) for batch, share in zip(batches, shares, strict=True)])

    def _replicas_at_work(self) -> Replicas | None:
        if self._replicas is None or self._replicas.closed:
            try:
                self._replicas = Replicas(self.model, self.optimizer, self.processes)
            except RuntimeError:
                if self.config.processes > 1:
                    raise
                self.processes = 1  # nobody asked for them: where they cannot be started, this process trains alone
                return None
        return self._replicas

    def close(self) -> None:
        """Ends the processes that share the work; the next update would start them again."""
        if self._replicas is not None:
            self._replicas.close()

    def peak_bytes(self) -> int:
        """The most memory that this process and those that share its work have held so far, what they share counted once."""
        pids = [] if self._replicas is None or self._replicas.closed else self._replicas.pids
        return peak_bytes() + sum(private_peak_bytes(pid) for pid in pids)

    def evaluate(self) -> float:
        """Mean loss over the validation items (or `eval_batches` batches of them), nats per target."""
        if self.validation_items is None:
            return math.nan
        return evaluate(self.model, self.validation_items, self.config.micro_batch, self.config.eval_batches)

    def run(
        self,
        reporter: Reporter,
        on_checkpoint: Callable[[bool], Any] | None = None,
        on_metrics: Callable[[dict[str, Any]], None] | None = None,
        rollback: Callable[[], Any] | None = None,
    ) -> Result:
        """Trains to the last step; or to `stop_at`, or until Ctrl-C or SIGTERM, which end the step at hand and save without measuring.

        on_checkpoint(best)   saves; called after each evaluation, each `save_every` updates, and at the end
        on_metrics(dict)      called with each line of metrics
        rollback()            loads the last checkpoint into this trainer and returns its place: for `on_nan` = rollback
        Raises FloatingPointError at the first loss or gradient that is not finite, before the weights change (or as `on_nan` says).
        """
        result, config = self.result, self.config
        clock = _Clock(result)
        self.model.train()
        with contextlib.closing(self), _finish_step_on_signal() as signals:
            while result.step < config.steps:
                before = (self.batches_drawn, self.model.dropout_stream.counter, result.tokens_seen)
                loss = self.gradients()
                norm = self.optimizer.gradient_norm()
                loss_nats, norm_value = float(loss), float(norm)  # waits for the device, once per update
                finite = math.isfinite(loss_nats) and math.isfinite(norm_value)
                if finite:
                    self.optimizer.step(max_norm=config.max_norm or None, norm=norm)
                    self._failures = 0
                    self._norms.append(norm_value)
                elif not self._skip(loss_nats, norm_value, before, reporter, rollback):
                    continue
                result.step += 1
                if finite:
                    self._watch(loss_nats, reporter)

                ending = result.step == config.steps
                stopping = bool(signals) or result.step == config.stop_at
                if finite and (result.step == 1 or result.step % config.log_every == 0 or ending or stopping):
                    self._log(loss_nats, norm_value, clock, reporter, on_metrics)
                with clock.paused():
                    measured, best = result.step % config.eval_every == 0 or (ending and not stopping), False
                    if measured:
                        best = self._measure(reporter, on_metrics)
                    due = bool(config.save_every) and result.step % config.save_every == 0
                    if on_checkpoint and (measured or due or ending or stopping):
                        result.seconds = clock.elapsed_s()
                        on_checkpoint(best)
                if stopping and not ending:
                    result.interrupted, result.signal = True, signals[0] if signals else 0
                    reporter.note(f"interrupted: step {result.step} of {config.steps} finished{' and saved' if on_checkpoint else ''}")
                    break
                waited = result.step - result.best_step
                if config.patience and measured and result.validation_curve and waited >= config.patience * config.eval_every:
                    result.stopped_early = True
                    reporter.note(f"stopped early: no better validation since step {result.best_step}")
                    break
        result.seconds = clock.elapsed_s()
        return result

    def _watch(self, loss_nats: float, reporter: Reporter) -> None:
        """Notes about the first loss, and about jumps."""
        result = self.result
        if result.step == 1:
            result.first_loss_nats = loss_nats
            n = self.model.n_choices
            reporter.note(f"first loss {loss_nats:.3f} nats; an even guess among {n:,} is ln {n} = {math.log(n):.3f}")
        usual = self._spikes.mean
        height = self._spikes.sees(loss_nats)
        if height:
            reporter.note(
                f"step {result.step}: loss {loss_nats:.3f} is a spike, {height:.0f} standard deviations above the recent mean {usual:.3f}; "
                "if it does not fall again, lower --lr"
            )

    def _log(self, loss_nats: float, norm: float, clock: "_Clock", reporter: Reporter, on_metrics: Any) -> None:
        result = self.result
        result.seconds = clock.elapsed_s()
        metrics = Metrics(
            step=result.step,
            loss_nats=loss_nats,
            lr=self.optimizer.lr,
            gradient_norm=norm,
            update_ratio=self.update_ratio(),
            tokens_per_s=clock.tokens_per_s(result.tokens_seen),
            elapsed_s=result.seconds,
            tokens_seen=result.tokens_seen,
        )
        result.train_curve.append((result.step, loss_nats))
        reporter.update(metrics)
        if on_metrics:
            on_metrics(asdict(metrics))

    def update_ratio(self, piece: int = 1 << 20) -> float:
        """Norm of the last AdamW step, decay aside, over that of the weights. The step is worked out again from the moments, in pieces."""
        o, xp = self.optimizer, backend.xp
        (b1, b2), t = o.betas, o.n_steps
        step_squared = weight_squared = 0.0
        for start in range(0, o.weight.size, piece):
            part = slice(start, start + piece)
            step = o.m[part] / (1 - b1**t) / (xp.sqrt(o.v[part] / (1 - b2**t)) + o.eps)
            step_squared += float(xp.dot(step, step))
            weight_squared += float(xp.dot(o.weight[part], o.weight[part]))
        return o.lr * math.sqrt(step_squared) / max(math.sqrt(weight_squared), 1e-30)

    def _measure(self, reporter: Reporter, on_metrics: Any) -> bool:
        """Evaluates; True if the result is the best so far. Raises FloatingPointError if it is not finite, so that it is not saved."""
        result = self.result
        if self.validation_items is None:
            return False
        nats = self.evaluate()
        if not math.isfinite(nats):
            raise FloatingPointError(
                f"validation: loss {nats} at step {result.step}, expected a finite number; nothing was saved, the last checkpoint is kept; "
                f"lower --lr (it is {self.optimizer.lr:.1e}), or find the op with AUTOGRAD_DEBUG=1"
            )
        result.last_validation_nats = nats
        best = nats < result.best_validation_nats
        if best:
            result.best_validation_nats, result.best_step = nats, result.step
        result.validation_curve.append((result.step, nats))
        reporter.evaluated(result.step, nats, best)
        if on_metrics:
            on_metrics({"step": result.step, "validation_nats": nats})
        return best

    # Numbers that are not finite ------------------------------------------------------------------------------------------

    def _skip(self, loss: float, norm: float, before: tuple[int, int, int], reporter: Reporter, rollback: Any) -> bool:
        """What `on_nan` says: True to leave this update out, False having gone back to the last checkpoint, or FloatingPointError.

        Schedule and data move on past an update that is left out; the weights do not.
        """
        config, result = self.config, self.result
        report = self.diagnosis(loss, norm, before)
        self._failures += 1
        choice = config.on_nan
        if choice == "stop" or self._failures > MAX_CONSECUTIVE or (choice == "rollback" and rollback is None):
            if choice != "stop" and self._failures > MAX_CONSECUTIVE:
                report += f"; {MAX_CONSECUTIVE} updates in a row could not be made, so --on-nan {choice} is given up"
            raise FloatingPointError(
                f"{report}; the weights are as they were before this update and the last checkpoint is kept: go on from it with a lower --lr "
                "(--resume RUN --override --lr ...), or leave such updates out with --on-nan skip"
            )
        if choice == "skip":
            result.n_skipped += 1
            reporter.note(f"{report}; update skipped, {result.n_skipped} so far")
            return True
        drawn, failures, rollbacks = self.batches_drawn, self._failures, result.n_rollbacks + 1
        place = rollback()
        # The same batches would end the same way, so the data goes on behind the ones that failed.
        self._draw_from(drawn)
        self._failures, self.result.n_rollbacks = failures, rollbacks
        reporter.note(f"{report}; rolled back to {place} (step {self.result.step}), going on with other batches")
        return False

    def diagnosis(self, loss: float, norm: float, before: tuple[int, int, int]) -> str:
        """What is known of an update whose loss or gradient is not finite, weights still as they were before it.

        before   (micro-batches drawn, dropout draws, tokens seen) when it began: it is run once more from there, in debug mode
        """
        config, result, stream = self.config, self.result, self.model.dropout_stream
        after = (self.batches_drawn, stream.counter, result.tokens_seen)
        bad_gradient = first_bad_parameter(self.optimizer.named_in_model_order(), "grad")
        bad_weight = first_bad_parameter(self.optimizer.named_in_model_order(), "data")

        def again() -> None:
            self._draw_from(before[0])
            stream.counter, result.tokens_seen = before[1], before[2]
            self.gradients()

        bad_op = first_bad_op(again)
        self._draw_from(after[0])
        stream.counter, result.tokens_seen = after[1], after[2]
        lr = self.optimizer.lr
        cause = likely_cause(
            bad_weight=bad_weight, bad_op=bad_op, lr=lr, norms=list(self._norms), max_norm=config.max_norm, dtype=config.dtype
        )
        return (
            f"step {result.step + 1}: loss {loss}, gradient norm {norm} (learning rate {lr:.2e}), expected finite numbers; "
            f"first bad parameter: {bad_gradient or 'none, each gradient is finite by itself'}; "
            f"first bad op: {bad_op or 'none by itself (a sum over micro-batches or squares overflowed)'}; likely cause: {cause}"
        )

    # What a checkpoint stores ----------------------------------------------------------------------------------------------

    def progress(self) -> dict[str, Any]:
        """What a checkpoint stores besides weights and moments, as JSON values."""
        r, stream = self.result, self.model.dropout_stream
        return {
            "step": r.step,
            "tokens_seen": r.tokens_seen,
            "streams": {  # each random stream: where it comes from, and how far it has been drawn
                "init": {"seed": self.config.seed},
                "data_order": {"seed": self.order.seed, "batches_drawn": self.batches_drawn, "n_items": self.order.n_items},
                "dropout": {"seed": stream.seed, "draw": stream.counter},
                "sampling": {"seed": self.config.seed},  # each sample starts anew from it
            },
            "first_loss_nats": _or_none(r.first_loss_nats),
            "best_step": r.best_step,
            "best_validation_nats": _or_none(r.best_validation_nats),
            "last_validation_nats": _or_none(r.last_validation_nats),
            "seconds": r.seconds,
            "n_skipped": r.n_skipped,
            "n_rollbacks": r.n_rollbacks,
            "spikes": self._spikes.state(),
            "norms": list(self._norms),
            "train": asdict(self.config),
            "environment": environment(self.processes),
        }

    def restore(self, progress: dict[str, Any], where: str = "progress", *, other_data: bool = False) -> None:
        """Takes back what `progress` gave; weights and moments come by themselves (see `tinygpt.runs.checkpoint.load_training`).

        where        what error messages call the source
        other_data   the items are others than before: their order begins anew
        Raises ValueError, naming the entry, for values that no trainer writes, and for another number of items than now.
        """
        entry = Entries(progress, where)
        n_items = entry.integer("streams", "data_order", "n_items")
        if n_items != self.order.n_items and not other_data:
            raise ValueError(
                f"{where}: saved with {n_items} items to learn from, expected {self.order.n_items} as there are now; "
                "the data has changed (or the context, or the stride): resume with what the run began with"
            )
        r = self.result  # the object stays: `run` and its caller hold it
        r.step = entry.integer("step")
        r.first_loss_nats = entry.number("first_loss_nats", default=math.nan)
        r.best_validation_nats = entry.number("best_validation_nats", default=math.inf)
        r.best_step = entry.integer("best_step")
        r.last_validation_nats = entry.number("last_validation_nats", default=math.nan)
        r.tokens_seen = entry.integer("tokens_seen")
        r.seconds = entry.number("seconds", default=0.0)
        r.n_skipped, r.n_rollbacks = entry.integer("n_skipped"), entry.integer("n_rollbacks")
        self.order.seed = entry.integer("streams", "data_order", "seed")
        drawn = entry.integer("streams", "data_order", "batches_drawn")
        self._draw_from(0 if other_data else drawn)
        stream = self.model.dropout_stream
        stream.seed, stream.counter = entry.integer("streams", "dropout", "seed"), entry.integer("streams", "dropout", "draw")
        mean, variance = (entry.number("spikes", key, default=0.0) for key in ("mean", "variance"))
        self._spikes = SpikeDetector(mean, variance, n=entry.integer("spikes", "n"), silent_until=entry.integer("spikes", "silent_until"))
        self._norms = deque((float(x) for x in progress.get("norms", []) if isinstance(x, float)), maxlen=20)
        self._failures = 0

    def _draw_from(self, batches_drawn: int) -> None:
        self.batches_drawn = batches_drawn
        self._batches = self.order.batches(batches_drawn)


class _Clock:
    """Seconds of a run (also those before it was resumed), and tokens per second without the pauses for measuring and saving."""

    def __init__(self, result: Result) -> None:
        self.begin = time.perf_counter() - result.seconds
        self.since, self.tokens, self.pause_s = time.perf_counter(), result.tokens_seen, 0.0

    def elapsed_s(self) -> float:
        return time.perf_counter() - self.begin

    def tokens_per_s(self, tokens_seen: int) -> float:
        """Since it was asked last."""
        now = time.perf_counter()
        rate = (tokens_seen - self.tokens) / max(now - self.since - self.pause_s, 1e-9)
        self.since, self.tokens, self.pause_s = now, tokens_seen, 0.0
        return rate

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.pause_s += time.perf_counter() - started


def check_deterministic(trainer: Trainer) -> str:
    """Computes the loss and all gradients of the next update twice and compares them, bit for bit; leaves the trainer as it was.

    Returns a sentence that says so. Raises ArithmeticError naming the first parameter whose gradients differ.
    """
    stream, result = trainer.model.dropout_stream, trainer.result
    before = (trainer.batches_drawn, stream.counter, result.tokens_seen)
    runs = []
    for _ in range(2):
        loss = trainer.gradients()
        runs.append((float(loss), backend.to_host(trainer.optimizer.gradient).copy()))
        trainer._draw_from(before[0])
        stream.counter, result.tokens_seen = before[1], before[2]
    trainer.optimizer.zero_grad()
    (loss_1, gradient_1), (loss_2, gradient_2) = runs
    if loss_1 != loss_2 or gradient_1.tobytes() != gradient_2.tobytes():
        sizes = [p.size for _, p in trainer.optimizer.named]
        pieces = [np.split(gradient, np.cumsum(sizes)[:-1]) for gradient in (gradient_1, gradient_2)]
        differ = [one.tobytes() != two.tobytes() for one, two in zip(*pieces, strict=True)]
        name = trainer.optimizer.named[differ.index(True)][0] if True in differ else "none, only in the loss"
        raise ArithmeticError(
            f"deterministic check: two runs of one step differ, first in the gradient of {name} (losses {loss_1!r} and {loss_2!r}), expected equal "
            "bits; an op on this backend is not deterministic: runs will agree to rounding only"
        )
    return f"step {result.step + 1} computed twice: the loss and all {gradient_1.size:,} gradients are equal bit for bit"


@contextlib.contextmanager
def _finish_step_on_signal() -> Iterator[list[int]]:
    """Within this block the first Ctrl-C or SIGTERM only fills the list (the loop then finishes its step and saves); the second acts at
    once, as KeyboardInterrupt."""
    caught: list[int] = []
    before: dict[signal.Signals, Any] = {}

    def handler(number: int, frame: Any) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, handler)
    except ValueError:  # not the main thread: signals are somebody else's business
        yield caught
        return
    try:
        yield caught
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)
