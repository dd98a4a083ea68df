"""The best validation of a run: it ends a run that no longer gets better, and keeps the best model."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from vlp.errors import UserError
from vlp.training.checkpoint import checkpoints


@dataclass
class BestScore:
    """The score that `best_by` names in every validation so far.

    It is read from the log after a resume. The models of the best validations are in OUTPUT/best/step-N until no
    checkpoint needs them.

    Attributes:
        name: of the score; higher is better.
        patience: validations without a better score after which the run ends; 0: it does not end early.
    """

    output: Path
    name: str
    patience: int
    scores: dict[int, dict[str, float]] = field(default_factory=dict)  # all scores of a validation, by step

    def check(self, scores: dict[str, float]) -> None:
        """Make sure that validation measures the score, and that higher is better.

        Raises:
            UserError: it does not, or lower is better.
        """
        if self.name.endswith("_rank"):
            raise UserError(
                f"best_by is {self.name}, of which lower is better; name a score of which higher is better."
            )
        if self.name not in scores:
            measured = [name for name, value in scores.items() if isinstance(value, float)]  # ints are counts
            higher = ", ".join(sorted(name for name in measured if not name.endswith("_rank")))
            raise UserError(f"best_by is {self.name}, which validation does not measure; choose from {higher}.")

    def observe(self, step: int, scores: dict[str, float]) -> bool:
        """Add a validation; returns whether it is the best so far."""
        self.scores[step] = scores
        return self.best_at(step) == step

    def best_at(self, step: int) -> int | None:
        """The step of the best validation up to a step; of equal ones the first. NaN is worse than any number."""
        known = {at: scores[self.name] for at, scores in self.scores.items() if at <= step}
        return max(known, key=lambda at: (known[at] == known[at], known[at], -at), default=None)

    @property
    def ends_run(self) -> bool:
        """Whether `patience` validations were no better than an earlier one."""
        if not self.patience or not self.scores:
            return False
        best = self.best_at(max(self.scores)) or 0
        return sum(step > best for step in self.scores) >= self.patience

    def folder(self, step: int) -> Path:
        """Where the model of a validation is kept while it is the best."""
        return self.output / "best" / f"step-{step:08d}"

    def load(self, records: Iterable[dict[str, float]]) -> None:
        """Continue with the validations of a log."""
        for record in records:
            scores = {name: value for name, value in record.items() if name not in ("step", "training_seconds")}
            self.observe(int(record["step"]), scores)

    def forget(self) -> None:
        """Remove the models that neither the run nor one of its checkpoints needs."""
        if not self.scores:
            return
        kept = [int(path.name.removeprefix("step-")) for path in checkpoints(self.output)]
        needed = {self.best_at(step) for step in [*kept, max(self.scores)]}
        for path in (self.output / "best").glob("step-*"):
            if int(path.name.removeprefix("step-")) not in needed:
                shutil.rmtree(path)
