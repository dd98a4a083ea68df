"""Hands out the shards of a run to its processes, retries those that fail, and lists those that keep failing."""

import json
import logging
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from uuid import uuid4

import torch.distributed as dist

from vlp.capfilt.crash_markers import count_crashes, crash_marker, remove_markers
from vlp.capfilt.score import ScoreCounts
from vlp.capfilt.shared_progress import SharedProgress
from vlp.distributed import is_main, rank, restarts, run_on_main, shared_store, world_size
from vlp.errors import FullDiskError, WorkError
from vlp.files import write_text
from vlp.log import Progress, ReportProgress

ATTEMPTS = 3  # for a shard that fails with an error
CRASHES = 2  # for a shard that kills its process
SILENCE = 30 * 60.0  # seconds without progress after which the remaining processes count as dead
POLL = 0.2  # seconds between two looks at the other processes' counters
# Errors of reading, computing and writing. Any other error, such as a TypeError, is a bug of ours and ends the run.
RETRIED = (WorkError, OSError, RuntimeError, ValueError, LookupError, ArithmeticError, MemoryError, tarfile.TarError)

log = logging.getLogger("vlp")


@dataclass
class Failure:
    """A shard that was given up: a line of the list of failures."""

    shard: str
    error: str
    attempts: int


class ShardQueue:
    """The shards that the processes of a run share. Every process makes one, at the same time.

    Each free process takes the next shard. A shard that fails is retried after the others, `ATTEMPTS` times in all.
    Shards that were in progress when a process crashed (`crash_marker`) are suspects. The first process begins with
    them, one at a time, so that a shard that crashes `CRASHES` times was the only suspect in progress; it is given up.
    """

    def __init__(self, shards: list[str], failures_path: Path):
        """Join the queue.

        Args:
            failures_path: the list of shards that were given up; a JSON object (shard, error, attempts) per line.

        Raises:
            WorkError: this very run wrote the list, and its exit code made the launcher restart the processes.
        """
        self.shards, self.failures_path = shards, failures_path
        name, crashes = run_on_main(lambda: _start(failures_path))
        self.store = dist.PrefixStore(name, shared_store())  # an earlier queue of these processes counted there too
        self.crashes = Counter[str](crashes)
        self.counts, self.failures = ScoreCounts(), list[Failure]()  # of this process

    def process(
        self, score: Callable[[str, ReportProgress], ScoreCounts], is_finished: Callable[[str], bool]
    ) -> ScoreCounts:
        """Score this process's share of the shards, and wait for the others.

        Returns:
            The counts of all processes.

        Raises:
            WorkError: in the first process, shards were given up or another process is gone; in the others, the first
                process is gone. If the first process raises, the others exit with the same code.
        """
        suspects = [shard for shard in self.shards if self.crashes[shard]] if is_main() else []
        for shard in suspects:
            log.warning("A process crashed on %s (%d of %d times)", shard, self.crashes[shard], CRASHES)
        with Progress("images", quiet=not is_main()) as bar:
            progress = SharedProgress(self.store, bar, self.shards)
            try:
                self._score_all(chain(suspects, self._handed_out()), score, is_finished, progress)
                if not is_main():
                    own = {"counts": asdict(self.counts), "failures": [asdict(one) for one in self.failures]}
                    self.store.set(f"result/{rank()}", json.dumps(own))
            except dist.DistError:
                raise WorkError("The first process of the run ended; see its error message.") from None
            return ScoreCounts(**run_on_main(lambda: asdict(self._finish(progress))))

    def _handed_out(self) -> Iterator[str]:
        """Shards that no other process gets; a counter in the store gives their numbers."""
        shards = [shard for shard in self.shards if not self.crashes[shard]]
        while (number := self.store.add("handed out", 1) - 1) < len(shards):
            yield shards[number]

    def _score_all(
        self,
        shards: Iterable[str],
        score: Callable[[str, ReportProgress], ScoreCounts],
        is_finished: Callable[[str], bool],
        progress: SharedProgress,
    ) -> None:
        retries: list[tuple[str, int]] = []
        for shard, attempt in _with_retries(shards, retries):
            progress.start_shard()
            try:
                if is_finished(shard):
                    self.counts.skipped_shards += 1
                    progress.leave_out()
                    continue
                if self.crashes[shard] >= CRASHES:
                    self._give_up(Failure(shard, "its process crashed", self.crashes[shard]), progress)
                    continue
                with crash_marker(self.failures_path, shard, self.crashes[shard]):
                    counts = score(shard, progress.count)
            except RETRIED as error:
                message = describe_error(error)
                raise_if_fatal(error, shard, message)
                log.warning("%s failed, attempt %d of %d: %s", shard, attempt, ATTEMPTS, message)
                progress.take_back()
                if attempt < ATTEMPTS:
                    retries.append((shard, attempt + 1))
                else:
                    self._give_up(Failure(shard, message, attempt), progress)
            else:
                self.counts.add(counts)
                progress.finish_shard(counts.images)

    def _give_up(self, failure: Failure, progress: SharedProgress) -> None:
        self.failures.append(failure)
        progress.leave_out()

    def _finish(self, progress: SharedProgress) -> ScoreCounts:
        """In the first process: collect the results of all processes, and list the shards that were given up."""
        self._wait_for_results(progress)
        for one in range(1, world_size()):
            result = json.loads(self.store.get(f"result/{one}"))
            self.counts.add(ScoreCounts(**result["counts"]))
            self.failures += [Failure(**failure) for failure in result["failures"]]
        remove_markers(self.failures_path)
        report_failures(self.failures, self.failures_path)
        return self.counts

    def _wait_for_results(self, progress: SharedProgress) -> None:
        """Wait for the other processes.

        Raises:
            WorkError: no process made progress for too long.
        """
        waiting, counted, changed = list(range(1, world_size())), -1, time.monotonic()
        while waiting := [one for one in waiting if not self.store.check([f"result/{one}"])]:
            before, counted = counted, self.store.add("handed out", 0) + progress.images()
            if counted != before:
                changed = time.monotonic()
            elif time.monotonic() - changed > SILENCE:
                raise WorkError(
                    f"Process {waiting[0]} has made no progress for {SILENCE / 60:.0f} minutes; "
                    "rerun: finished tables are kept."
                )
            progress.show("score")
            time.sleep(POLL)


def _start(failures_path: Path) -> tuple[str, dict[str, int]]:
    """In the first process: remove the list of an earlier run; returns a unique name, and the crashes per shard."""
    if restarts() and failures_path.exists():
        failures = [Failure(**json.loads(line)) for line in failures_path.read_text().splitlines()]
        raise WorkError(_describe(failures, failures_path))
    failures_path.unlink(missing_ok=True)
    failures_path.parent.mkdir(parents=True, exist_ok=True)
    return uuid4().hex, count_crashes(failures_path)


def _with_retries(shards: Iterable[str], retries: list[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    """Every shard with the number of its attempt: first `shards`, then what is appended to `retries` meanwhile."""
    for shard in shards:
        yield shard, 1
    while retries:
        yield retries.pop(0)


def describe_error(error: Exception) -> str:
    """The error of a shard for the log and the list of failures."""
    return str(error) if isinstance(error, WorkError) else f"{type(error).__name__}: {error}"


def raise_if_fatal(error: Exception, shard: str, message: str) -> None:
    """Raise errors after which this process can score no other shard."""
    if isinstance(error, (dist.DistError, FullDiskError)):
        raise error
    if "CUDA error" in message:
        reason = message.splitlines()[0]
        raise WorkError(f"The GPU failed on {shard} ({reason}); rerun: finished tables are kept.") from error


def report_failures(failures: list[Failure], path: Path) -> None:
    """Write the list of shards that were given up, if there are any.

    Raises:
        WorkError: there are.
    """
    if failures:
        write_text(path, "".join(json.dumps(asdict(one)) + "\n" for one in failures))
        raise WorkError(_describe(failures, path))


def _describe(failures: list[Failure], path: Path) -> str:
    first = failures[0]
    count = f"{len(failures)} shards have" if len(failures) > 1 else "1 shard has"
    return (
        f"{count} no score table, the first is {first.shard} ({first.error.rstrip('.')}, {first.attempts} attempts); "
        f"{path} lists them and all others are scored: fix or leave out the listed shards, and rerun."
    )
