"""How an evaluation runs, apart from what it measures: batches, processes, progress and where it can go on."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vlp.log import ReportProgress, no_progress


@dataclass(frozen=True)
class EvaluationSettings:
    """What every evaluation takes.

    Attributes:
        batch_size: samples at once.
        limit: at most this many samples, over all processes; None: all.
        workers: processes that decode images; 0 decodes in the calling process.
        progress: told how many samples are finished; in the first process it counts those of all processes.
        expect: told how many samples a stage has, before it starts, where that is known.
        spread: whether all processes of the run call the evaluation, so that each does a part of the batches and all
            get the results. Otherwise the calling process does everything and does not wait for others.
        partial: a folder that keeps finished batches, so that an interrupted evaluation goes on; "" keeps nothing.
            Several machines need a shared disk for it.
        about: what decides the predictions beyond what `predict` is called with, such as the model and its decoding
            settings; JSON values. A partial folder of other values is refused.
    """

    batch_size: int = 32
    limit: int | None = None
    workers: int = 0
    progress: ReportProgress = no_progress
    expect: Callable[[int], None] | None = None
    spread: bool = False
    partial: str = ""
    about: dict[str, Any] = field(default_factory=dict)


DEFAULT_SETTINGS = EvaluationSettings()
