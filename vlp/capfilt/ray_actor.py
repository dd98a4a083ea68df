"""The actors of `vlp capfilt score --engine ray`: each loads the models once and scores one shard at a time."""

import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from vlp.capfilt.score import ScoreCounts
from vlp.capfilt.shard_queue import RETRIED, describe_error, raise_if_fatal
from vlp.extras import extra

log = logging.getLogger("vlp")


class Scorer(Protocol):
    """What an actor needs of `ShardScorer`."""

    def is_finished(self, shard: str) -> bool: ...

    def score(self, shard: str) -> ScoreCounts: ...


@dataclass
class ScoredShard:
    """What an actor returns for a shard: its counts, or an error after which it may be retried; and log lines."""

    counts: ScoreCounts = field(default_factory=ScoreCounts)
    error: str = ""
    lines: list[tuple[int, str]] = field(default_factory=list)


class ShardActor:
    """Runs in a process that Ray starts. The models are loaded by the first call, also after a restart."""

    def __init__(self, make_scorer: Callable[[], Scorer], folder: str, arguments: list[str]):
        """Take over the folder of the command, for relative paths, and its arguments, which tables record."""
        self.make_scorer, self.scorer = make_scorer, None
        with suppress(OSError):  # another machine may not have the folder
            os.chdir(folder)
        sys.argv = arguments
        self.lines = _LogLines()
        log.addHandler(self.lines)
        log.propagate = False
        log.setLevel(logging.INFO)

    def load(self) -> str:
        """Load the models; returns the id of the actor's node."""
        with extra("ray"):
            import ray

        self.scorer = self.scorer or self.make_scorer()
        return ray.get_runtime_context().get_node_id()

    def score(self, shard: str) -> ScoredShard:
        """Score a shard, unless its table is finished.

        Raises:
            WorkError: the disk is full or the GPU failed, so that the run should end.
        """
        self.load()
        assert self.scorer
        result = ScoredShard()
        try:
            finished = self.scorer.is_finished(shard)
            result.counts = ScoreCounts(skipped_shards=1) if finished else self.scorer.score(shard)
        except RETRIED as error:
            result.error = describe_error(error)
            raise_if_fatal(error, shard, result.error)
        result.lines = self.lines.take()
        return result


class _LogLines(logging.Handler):
    """Collects log lines for the process that runs the command."""

    def __init__(self):
        super().__init__()
        self.lines: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelno, record.getMessage()))

    def take(self) -> list[tuple[int, str]]:
        lines, self.lines = self.lines, []
        return lines
