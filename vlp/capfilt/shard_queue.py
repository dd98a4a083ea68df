"""Hands out the shards of a run to its processes, retries those that fail, and lists those that keep failing."""

import json
import logging
import os
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import chain
from pathlib import Path

import torch.distributed as dist

from vlp.capfilt.crash_markers import count_crashes, crash_marker, remove_markers
from vlp.capfilt.score import ScoreCounts
from vlp.capfilt.shared_progress import SharedProgress
from vlp.distributed import gather_objects, is_main, rank, restarts, world_size
from vlp.errors import FullDiskError, WorkError
from vlp.files import write_text
from vlp.log import Progress, ReportProgress

ATTEMPTS = 3  # for a shard that fails with an error
CRASHES = 2  # for a shard that kills its process
CONNECTING = timedelta(seconds=60)
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
        if restarts() and failures_path.exists():
            raise WorkError(_describe(_read_failures(failures_path), failures_path)) if is_main() else SystemExit(1)
        self.shards, self.failures_path = shards, failures_path
        self.counts, self.failures = ScoreCounts(), list[Failure]()  # of this process
        if is_main():
            failures_path.unlink(missing_ok=True)
            failures_path.parent.mkdir(parents=True, exist_ok=True)
        with _first_process_alive():
            self.store, self.crashes = _join(failures_path)

    def process(
        self, score: Callable[[str, ReportProgress], ScoreCounts], is_finished: Callable[[str], bool]
    ) -> ScoreCounts:
        """Score this process's share of the shards; the first process waits for the others and lists the failures.

        Returns:
            The counts of all processes in the first one, in the others their own.

        Raises:
            WorkError: shards were given up (in the first process), or another process is gone.
        """
        suspects = [shard for shard in self.shards if self.crashes[shard]]
        for shard in suspects if is_main() else []:
            log.warning("A process crashed on %s (%d of %d times)", shard, self.crashes[shard], CRASHES)
        with Progress("images", quiet=not is_main()) as bar:
            progress = SharedProgress(self.store, bar, self.shards)
            with _first_process_alive():
                shards = chain(suspects if is_main() else [], self._handed_out())
                self._score_all(shards, score, is_finished, progress)
                if not is_main():
                    own = {"counts": asdict(self.counts), "failures": [asdict(one) for one in self.failures]}
                    self.store.set(f"result/{rank()}", json.dumps(own))
                    return self.counts
                self._collect(progress)
        remove_markers(self.failures_path)
        if self.failures:
            write_text(self.failures_path, "".join(json.dumps(asdict(one)) + "\n" for one in self.failures))
            raise WorkError(_describe(self.failures, self.failures_path))
        return self.counts

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
                message = str(error) if isinstance(error, WorkError) else f"{type(error).__name__}: {error}"
                _raise_if_fatal(error, shard, message)
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

    def _collect(self, progress: SharedProgress) -> None:
        """Wait for the other processes, and add their results to this one's.

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
        for one in range(1, world_size()):
            result = json.loads(self.store.get(f"result/{one}"))
            self.counts.add(ScoreCounts(**result["counts"]))
            self.failures += [Failure(**failure) for failure in result["failures"]]


def _join(failures_path: Path) -> tuple[dist.Store, Counter[str]]:
    """A key-value store that all processes of the run share, served by the first; and the crashes of earlier runs."""
    if world_size() == 1:
        return dist.HashStore(), count_crashes(failures_path)
    host = os.environ.get("MASTER_ADDR", "localhost")  # of the first process
    store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False) if is_main() else None  # 0: any free port
    port, crashes = gather_objects((store.port if store else 0, count_crashes(failures_path)))[0]
    return store or dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=CONNECTING), crashes


@contextmanager
def _first_process_alive() -> Iterator[None]:
    """Turn the errors of a store whose server is gone into one sentence."""
    try:
        yield
    except dist.DistError:
        raise WorkError("The first process of the run is gone; rerun: finished tables are kept.") from None


def _with_retries(shards: Iterable[str], retries: list[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    """Every shard with the number of its attempt: first `shards`, then what is appended to `retries` meanwhile."""
    for shard in shards:
        yield shard, 1
    while retries:
        yield retries.pop(0)


def _raise_if_fatal(error: Exception, shard: str, message: str) -> None:
    """Raise errors after which this process can score no other shard."""
    if isinstance(error, (dist.DistError, FullDiskError)):
        raise error
    if "CUDA error" in message:
        reason = message.splitlines()[0]
        raise WorkError(f"The GPU failed on {shard} ({reason}); rerun: finished tables are kept.") from error


def _read_failures(path: Path) -> list[Failure]:
    return [Failure(**json.loads(line)) for line in path.read_text().splitlines()]


def _describe(failures: list[Failure], path: Path) -> str:
    first = failures[0]
    count = f"{len(failures)} shards have" if len(failures) > 1 else "1 shard has"
    return (
        f"{count} no score table, the first is {first.shard} ({first.error.rstrip('.')}, {first.attempts} attempts); "
        f"{path} lists them and all others are scored: fix or leave out the listed shards, and rerun."
    )
