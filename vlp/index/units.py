"""Work on many images in units that the processes of a run share; every process reads the same list of units."""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from uuid import uuid4

import numpy as np
import torch.distributed as dist

from vlp.data.shard_index import index_shard
from vlp.distributed import (
    failing_together,
    gather_objects,
    is_main,
    run_on_main,
    shared_count,
    shared_store,
    world_size,
)
from vlp.errors import WorkError
from vlp.index.places import Place, Unit
from vlp.log import Progress

Report = Callable[[int], None]  # counts finished images

LARGEST, SMALLEST = 2048, 256  # images of a unit; an interrupted run loses at most the units in progress
UNITS = 4  # for each process, where there are enough images


def split_units(
    files: Sequence[Place], shards: Sequence[tuple[str, str, np.ndarray]], largest: int = 0, smallest: int = 0
) -> list[Unit]:
    """Units of similar size.

    Args:
        shards: path, stamp and rows (int64) of each shard.
        largest, smallest: numbers of images; 0: `LARGEST` and `SMALLEST`.
    """
    images = len(files) + sum(len(rows) for _, _, rows in shards)
    size = min(largest or LARGEST, max(smallest or SMALLEST, -(-images // (UNITS * world_size()))))
    units = [Unit(files=list(files[start : start + size])) for start in range(0, len(files), size)]
    for path, stamp, rows in shards:
        units += [Unit([], path, stamp, rows[start : start + size]) for start in range(0, len(rows), size)]
    return units


def all_rows(path: str) -> tuple[Sequence[str], np.ndarray]:
    """The keys of all samples of a shard, and their rows in its index, int64."""
    keys = index_shard(path).keys
    return keys, np.arange(len(keys))


def share_units(units: list[Unit], work: Callable[[int, Unit, Report], None], stage: str, quiet: bool = False) -> None:
    """Call `work` on each unit in one of the processes, and show progress; all processes return when all are done.

    Args:
        work: gets the number of a unit, the unit, and a function that counts finished images.

    Raises:
        WorkError: the processes see different images.
        SystemExit: another process failed, which shows the error.
    """
    digest = hashlib.sha256()
    for unit in units:
        digest.update(repr((unit.files, unit.shard, unit.stamp)).encode() + unit.rows.tobytes())
    if len(set(gather_objects(digest.hexdigest()))) > 1:
        raise WorkError("The processes found different images; rerun when nothing changes them any more.")
    store = dist.PrefixStore(run_on_main(lambda: uuid4().hex), shared_store())
    total = sum(map(len, units))
    with (
        failing_together(),
        Progress("images", total, quiet=quiet or not is_main()) as bar,
        shared_count(partial(bar.add, stage), spread=True) as count,
    ):
        while (number := store.add("units", 1) - 1) < len(units):
            done = 0

            def report(images: int) -> None:
                nonlocal done
                done += images
                count(images)

            work(number, units[number], report)
            count(len(units[number]) - done)  # the bad ones
