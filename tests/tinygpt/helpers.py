"""What several tests of tinygpt use: a reporter that remembers, and a record of a run made of functions."""


class Notes:
    """A `Reporter` that shows nothing and remembers everything."""

    def __init__(self):
        self.updates, self.evaluations, self.notes = [], [], []

    def update(self, metrics):
        self.updates.append(metrics)

    def evaluated(self, step, validation_nats, best):
        self.evaluations.append((step, validation_nats, best))

    def note(self, text):
        self.notes.append(text)

    @property
    def losses(self):
        """Training losses by step, validation losses by "validation <step>"."""
        return {m.step: m.loss_nats for m in self.updates} | {f"validation {step}": nats for step, nats, _ in self.evaluations}


class FunctionRecord:
    """A `Record` (see tinygpt/training/trainer.py) made of functions: save(best), roll_back(); `lines` holds what was logged."""

    def __init__(self, save=lambda best: None, roll_back=None):
        self.lines, self._save, self._roll_back = [], save, roll_back

    def log(self, values):
        self.lines.append(values)

    def save(self, trainer, *, best):
        self._save(best)

    def roll_back(self, trainer):
        if self._roll_back is None:
            raise FloatingPointError("roll back: no checkpoint")
        return str(self._roll_back())
