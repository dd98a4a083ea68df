"""Work that survives: shards handed out one by one to processes, tried again, and listed where they go on failing."""

import itertools
import json
import logging
import re
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from vlp.capfilt.crash_markers import forget_deaths, in_work, read_deaths
from vlp.capfilt.score import ScoreCounts, ShardCounts
from vlp.data.shard_index import index_shard
from vlp.distributed import is_main, rank, restarts, world_size
from vlp.errors import FullDiskError, UserError, WorkError
from vlp.files import write_text
from vlp.log import Progress, ReportProgress

TRIES = 3
SILENCE = 30 * 60.0  # seconds without a sign after which a process is taken for dead
POLL = 0.2  # seconds between two looks at what the other processes say
# What reading, computing and writing raise. Others, such as a TypeError, are mistakes of ours and end the run.
FAILING = (WorkError, OSError, RuntimeError, ValueError, LookupError, ArithmeticError, MemoryError, tarfile.TarError)

log = logging.getLogger("vlp")
_calls = itertools.count()  # every process of a run calls `work_off` equally often


@dataclass
class Failure:
    """A shard that was given up."""

    shard: str
    error: str
    attempts: int


def parse_part(text: str) -> tuple[int, int]:
    """`3/16` -> (3, 16): the third of sixteen parts; "" is the whole, (1, 1).

    Raises:
        UserError: it is not of this form, or there is no such part.
    """
    if not text:
        return 1, 1
    matched = re.fullmatch(r"(\d+)/(\d+)", text)
    number, parts = (int(matched[1]), int(matched[2])) if matched else (0, 0)
    if not 1 <= number <= parts:
        raise UserError(f"--part takes NUMBER/PARTS, from 1/16 to 16/16 for sixteen parts, not {text!r}.")
    return number, parts


def work_off(
    shards: list[str],
    score: Callable[[str, ReportProgress], ShardCounts],
    is_finished: Callable[[str], bool],
    listed: Path,
) -> ScoreCounts:
    """Do this process's share of the shards: whoever is free takes the next one.

    A shard that fails is tried again after the others, three times in all. So is one whose process died, by processes
    that are started again: marks beside `listed` tell them of it. What other processes had in work then is suspected
    too, so the third time is the first process's, when no other works.

    The first process waits for the rest, and writes what was given up to `listed`, a JSON object (shard, error,
    attempts) a line.

    Returns:
        In the first process the counts of all together, in each other its own.

    Raises:
        WorkError: in the first process, when shards were given up or another process died.
    """
    board = _Board()
    deaths = Counter[str](board.said_by_first(lambda: _read_and_tell(listed)))
    together = sorted((shard for shard in shards if deaths[shard] < TRIES - 1), key=deaths.__getitem__)
    alone = [shard for shard in shards if deaths[shard] >= TRIES - 1]
    with Progress("images", quiet=not is_main()) as bar:
        show = _Display(bar, board, shards).show if is_main() else lambda what: None

        def progress(what: str, images: int) -> None:
            board.count(images)
            show(what)

        def score_marked(shard: str, progress: ReportProgress) -> ShardCounts:
            with in_work(listed, shard, deaths[shard]):
                return score(shard, progress)

        def share(shards: Iterable[str]) -> dict:
            counts, failures = _share(board, shards, deaths, score_marked, is_finished, progress)
            return {"counts": asdict(counts), "failures": [asdict(one) for one in failures]}

        mine = share(_handed_out(board, together))
        board.post(mine)
        if not is_main():
            return ScoreCounts(**mine["counts"])
        results = [*board.collect(show), share(alone)]
    forget_deaths(listed)
    _report([one for result in results for one in result["failures"]], len(shards), listed)
    return _together([result["counts"] for result in results])


def start_list(listed: Path) -> None:
    """Make room for the list of this run; call it when the processes have come together, before the work.

    Raises:
        WorkError: the list was written by this very run, and its end with exit code 1 made the launcher start the
            processes again.
    """
    if restarts() and listed.exists():
        raise WorkError(_sentence([json.loads(line) for line in listed.read_text().splitlines()], listed))
    if is_main():
        listed.unlink(missing_ok=True)
        listed.parent.mkdir(parents=True, exist_ok=True)


def _read_and_tell(listed: Path) -> dict[str, int]:
    deaths = read_deaths(listed)
    for shard, count in deaths.items():
        log.warning("%s was in work when its process died, %d of %d times", shard, count, TRIES)
    return deaths


def _share(
    board: "_Board",
    shards: Iterable[str],
    deaths: Counter[str],
    score: Callable[[str, ReportProgress], ShardCounts],
    is_finished: Callable[[str], bool],
    progress: ReportProgress,
) -> tuple[ScoreCounts, list[Failure]]:
    """What this process did of `shards`, which may come from `_handed_out`."""
    counts, bad = ScoreCounts(), Counter[str]()
    again: list[tuple[str, int]] = []
    failures: list[Failure] = []
    for shard, attempt in itertools.chain(((shard, 1) for shard in shards), _emptied(again)):
        board.begin()
        try:
            if is_finished(shard):
                counts.skipped_shards += 1
                board.add("left out", 1)
                continue
            if deaths[shard] >= TRIES:
                failures.append(Failure(shard, "its process died", deaths[shard]))
                board.add("left out", 1)
                continue
            done = score(shard, progress)
        except FAILING as error:
            said = str(error) if isinstance(error, WorkError) else f"{type(error).__name__}: {error}"
            log.warning("%s failed, attempt %d of %d: %s", shard, attempt, TRIES, said)
            if _is_fatal(error):
                raise
            board.take_back()
            if attempt < TRIES:
                again.append((shard, attempt + 1))
            else:
                failures.append(Failure(shard, said, attempt))
                board.add("left out", 1)
            continue
        counts.shards += 1
        counts.images += done.images
        counts.texts += done.texts
        bad.update(done.bad)
        board.add("shards", 1)
        board.add("images of these", done.images)
    counts.bad = dict(bad)
    return counts, failures


def _handed_out(board: "_Board", shards: list[str]) -> Iterator[str]:
    """Shards that no other process gets."""
    while (number := board.add("handed out", 1) - 1) < len(shards):
        yield shards[number]


def _emptied(again: list[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    """What is in the list or comes to it, from the front."""
    while again:
        yield again.pop(0)


def _is_fatal(error: Exception) -> bool:
    """Whether the process can do nothing more: its store is gone, its disk is full or its GPU no longer answers."""
    return isinstance(error, (dist.DistError, FullDiskError)) or "CUDA error" in str(error)


class _Board:
    """What the processes of a run tell each other while they work, in the process group's own store."""

    def __init__(self) -> None:
        store = _get_default_store() if world_size() > 1 else dist.HashStore()
        # Processes that were started again count anew: what is finished is skipped.
        self.store = dist.PrefixStore(f"capfilt/{restarts()}/{next(_calls)}", store)

    def add(self, name: str, number: int) -> int:
        """Add to a counter, in one step for all processes; returns its sum."""
        return self.store.add(name, number)

    def said_by_first(self, make: Callable[[], dict[str, int]]) -> dict[str, int]:
        """What the first process makes; once in a run."""
        if is_main():
            self.store.set("said by first", json.dumps(make()))
        return json.loads(self.store.get("said by first"))

    def begin(self) -> None:
        """Say that this process turns to another shard."""
        self.images = 0  # of this shard
        self.store.add(f"sign/{rank()}", 1)

    def count(self, images: int) -> None:
        """Say that so many more images of this shard are done."""
        self.images += images
        self.store.add("images", images)
        self.store.add(f"sign/{rank()}", 1)

    def take_back(self) -> None:
        """Say that this shard's images are to be done again."""
        self.store.add("images", -self.images)

    def post(self, result: dict) -> None:
        """Say what this process did: it does nothing more."""
        self.store.set(f"result/{rank()}", json.dumps(result))

    def collect(self, show: Callable[[str], None]) -> list[dict]:
        """What every process did, once all have said it.

        Raises:
            WorkError: one has given no sign for too long.
        """
        signs = {one: (0, time.monotonic()) for one in range(world_size())}
        while signs:
            for one, (last, heard) in list(signs.items()):
                sign = self.store.add(f"sign/{one}", 0)
                if self.store.check([f"result/{one}"]):
                    del signs[one]
                elif sign != last:
                    signs[one] = (sign, time.monotonic())
                elif time.monotonic() - heard > SILENCE:
                    raise WorkError(
                        f"Process {one} has given no sign for {SILENCE / 60:.0f} minutes; "
                        "run again: finished shards are kept."
                    )
            show("score")
            if signs:
                time.sleep(POLL)
        return [json.loads(self.store.get(f"result/{one}")) for one in range(world_size())]


class _Display:
    """Shows what all processes have done. How many images there are is estimated: shards are not read to count them."""

    def __init__(self, bar: Progress, board: _Board, shards: list[str]):
        self.bar, self.board, self.shards = bar, board, len(shards)
        self.first = len(index_shard(shards[0]).keys) if shards else 0

    def show(self, what: str) -> None:
        """Bring the bar up to date."""
        shards, images = self.board.add("shards", 0), self.board.add("images of these", 0)
        each = images / shards if shards else self.first
        self.bar.total = round(each * (self.shards - self.board.add("left out", 0))) or None
        self.bar.add(what, self.board.add("images", 0) - self.bar.done)


def _report(failures: list[dict], shards: int, listed: Path) -> None:
    """Write the list of what was given up, and fail; nothing where nothing was.

    Raises:
        WorkError: shards were given up.
    """
    if not failures:
        return
    write_text(listed, "".join(json.dumps(one) + "\n" for one in failures))
    raise WorkError(_sentence(failures, listed, f" of {shards}"))


def _sentence(failures: list[dict], listed: Path, of: str = "") -> str:
    first = failures[0]
    return (
        f"{len(failures)}{of} shards failed {TRIES} times and have no table, the first of them {first['shard']} "
        f"({first['error'].rstrip('.')}); {listed} lists them, and the others are finished: mend them and run again."
    )


def _together(parts: list[dict]) -> ScoreCounts:
    """The counts of all processes."""
    bad = sum((Counter(part["bad"]) for part in parts), Counter())
    names = ("shards", "skipped_shards", "images", "texts")
    return ScoreCounts(**{name: sum(part[name] for part in parts) for name in names}, bad=dict(bad))
