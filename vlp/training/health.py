"""Signs that a run goes wrong: losses that are not finite, ITM that learns nothing, pairs that are seen too often."""

import math
from collections import deque

import torch
from torch import Tensor

from vlp.config import RunConfig

WIDTH = 0.01
WINDOW = 200  # steps
PATIENCE = 500  # steps; a run from scratch stays at the plateau for about the first 300

ADVICE = (
    'ITM has stayed at {level:.4f} over the last {window} steps, the value of always answering "no match": the '
    "learning rate is probably too high or its warm-up too short, the batch too small to contain hard negatives, or "
    "many captions are equal or wrong; lower optim.learning_rate, raise batch_size, start from pretrained towers, or "
    "train for more steps (docs/itm.md shows a stuck run and its fix)."
)

MANY_EPOCHS = 20  # of a filter; docs/recipes.md has the measurement
REPETITION_ADVICE = (
    "The run sees every pair {epochs:.0f} times, and a filter gets worse when it sees few pairs very often: set "
    "evaluate_every, validation and best_by: t2i_r1, which keep its best model, or train for fewer steps "
    "(docs/recipes.md, What the finetunings need)."
)


def plateau_level(altered: float = 0.0) -> float:
    """The entropy of answering "no match" with the right frequency: 0.6365 where one pair in three matches.

    Args:
        altered: altered texts for each true pair, beside its two hard negatives.
    """
    share = 1 / (3 + altered)
    return -(share * math.log(share) + (1 - share) * math.log(1 - share))


def repetition_advice(config: RunConfig, epochs: float) -> str | None:
    """Advice for the finetuning of a filter that may be worse at its end than before; `epochs` are those of the run."""
    if config.task != "retrieval" or config.best_by or epochs < MANY_EPOCHS:
        return None
    return REPETITION_ADVICE.format(epochs=epochs)


class PlateauWatch:
    """Follows the ITM loss of the log records and gives advice, once, when it stays at the plateau."""

    def __init__(self, warmup_steps: int, altered: float = 0.0):
        """`altered` is as in `plateau_level`."""
        self.plateau = plateau_level(altered)
        self.first_step = max(PATIENCE, warmup_steps + WINDOW)
        self.recent: deque[tuple[int, float]] = deque()
        self.advised = False

    def observe(self, step: int, itm: float) -> str | None:
        """Add a record; returns the advice, once, when the mean over the window lies at the plateau."""
        self.recent.append((step, itm))
        while self.recent[0][0] <= step - WINDOW:
            self.recent.popleft()
        level = sum(value for _, value in self.recent) / len(self.recent)
        if self.advised or step < self.first_step or abs(level - self.plateau) > WIDTH:
            return None
        self.advised = True
        return ADVICE.format(level=level, window=WINDOW)


class FiniteCheck:
    """Whether every loss and gradient so far was finite.

    The flag is kept on the device. On a GPU it is copied to the host without waiting for the device, so a bad step is
    usually noticed one or two steps later. On a CPU it is known at once.
    """

    def __init__(self, device: torch.device):
        self.finite = torch.ones((), dtype=torch.bool, device=device)
        self.on_host = torch.ones((), dtype=torch.bool, pin_memory=device.type == "cuda")
        self.copied = torch.cuda.Event() if device.type == "cuda" else None
        self.copying = False

    def add(self, value: Tensor) -> None:
        """Add a scalar."""
        self.finite = self.finite & value.detach().isfinite()

    def is_finite(self, wait: bool) -> bool:
        """Whether all values were finite, as far as the host knows.

        Args:
            wait: wait for the device, so that the answer covers every value added.
        """
        if wait or self.copied is None:
            return bool(self.finite)
        if self.copying and not self.copied.query():
            return True  # the device has not come that far yet
        known = bool(self.on_host)
        self.on_host.copy_(self.finite, non_blocking=True)
        self.copied.record()
        self.copying = True
        return known
