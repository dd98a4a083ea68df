"""The watch on ITM: a run whose matching has learned nothing says so once, with what to change."""

import math
from collections import deque

# Entropy of answering "no match" with the right frequency: one pair in three matches.
PLATEAU = -(math.log(1 / 3) / 3 + 2 * math.log(2 / 3) / 3)  # 0.6365
WIDTH = 0.01
WINDOW = 200  # steps
PATIENCE = 500  # steps; a run from scratch sits there for about 300 before it leaves

ADVICE = (
    'ITM has stayed at {level:.4f} over the last {window} steps, which is what always answering "no match" gives: '
    "likely the learning rate is too high or its warm-up too short, the batch too small for hard negatives to be hard, "
    "or many captions are equal or wrong; lower optim.learning_rate, raise batch_size, start from pretrained towers, "
    "or give it more steps (docs/itm.md shows a stuck run and its cure)."
)


class PlateauWatch:
    """Sees the unweighted ITM loss of every logged window."""

    def __init__(self, warmup_steps: int):
        self.first_step = max(PATIENCE, warmup_steps + WINDOW)
        self.recent: deque[tuple[int, float]] = deque()
        self.said = False

    def see(self, step: int, itm: float) -> str | None:
        """The advice, once, when the mean over the window lies at the plateau; else None."""
        self.recent.append((step, itm))
        while self.recent[0][0] <= step - WINDOW:
            self.recent.popleft()
        level = sum(value for _, value in self.recent) / len(self.recent)
        if self.said or step < self.first_step or abs(level - PLATEAU) > WIDTH:
            return None
        self.said = True
        return ADVICE.format(level=level, window=WINDOW)
