"""Builds the index of many shards: the folder that `data_index.py` reads."""

import json
import logging
import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch.utils.data import Dataset

from vlp.data.cache import cache_path, identity
from vlp.data.data_index import ABOUT, ARRAYS, BAD, FORMAT, SHARDS, DataIndex, open_index, stamps_of
from vlp.data.shard_index import COLUMNS, ShardIndex, index_shard, is_indexed
from vlp.data.workers import start_workers
from vlp.distributed import gather_objects, is_main, rank, share_out, world_size
from vlp.errors import UserError, WorkError
from vlp.files import remove, scratch_folder
from vlp.log import Progress, ReportProgress, no_progress

ENTRIES = {"members": ("<u4", COLUMNS), "key_ends": ("<u4",), "keys": ("|u1",)}  # dtype, and shape of an entry
SHARDS_PER_WORKER = 8  # fewer are not worth the start of a process

log = logging.getLogger("vlp")


def write_index(
    paths: list[str], folder: Path, workers: int, progress: ReportProgress = no_progress, replace: bool = True
) -> None:
    """Index shards and write an index folder, which appears when it is complete.

    The shards' own indexes are cached, so that a killed call continues where it was.

    Args:
        workers: processes that scan shards; 0 or 1 scan in this one.
        progress: called for each shard.
        replace: whether the folder replaces an index that is there, or appears meanwhile.

    Raises:
        UserError: the folder is not empty and holds no index.
        WorkError: it cannot be written, or a worker was killed.
    """
    check_index_output(folder)
    with scratch_folder(folder) as scratch:
        (scratch / "new").mkdir()
        write_folder(_indexes(paths, workers), scratch / "new", progress)
        if folder.exists() and not replace:
            return
        if folder.exists():
            os.replace(folder, scratch / "old")
        os.replace(scratch / "new", folder)


def check_index_output(folder: Path) -> None:
    """Raise a UserError if a folder for an index holds something else."""
    if folder.exists() and not (folder / ABOUT).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not an index; choose another name or remove it.")


def write_folder(indexes: Iterable[ShardIndex], folder: Path, progress: ReportProgress) -> None:
    """Write the files of an index to an empty folder; `progress` is called for each shard."""
    shards: dict[str, list] = {name: [] for name in SHARDS.names}
    with ExitStack() as stack:
        files = {name: stack.enter_context(open(folder / f"{name}.npy", "wb")) for name in ARRAYS}
        bad = stack.enter_context(pq.ParquetWriter(folder / "bad.parquet", BAD))
        for name, file in files.items():
            _write_header(file, name, 0)
        for number, index in enumerate(indexes):
            for name, array in (("members", index.members), ("key_ends", index.keys.ends), ("keys", index.keys.text)):
                files[name].write(array.tobytes())
            row = (identity(index.path), index.stamp, len(index.keys), len(index.keys.text))
            for name, value in zip(SHARDS.names, row, strict=True):
                shards[name].append(value)
            if index.bad:
                columns = [[number] * len(index.bad), *zip(*((one.key, one.reason) for one in index.bad), strict=True)]
                bad.write_table(pa.table(dict(zip(BAD.names, columns, strict=True)), schema=BAD))
            progress("index", 1)
        samples, key_bytes = sum(shards["samples"]), sum(shards["key_bytes"])
        for name, file in files.items():
            file.seek(0)
            _write_header(file, name, key_bytes if name == "keys" else samples)
    pq.write_table(pa.table(shards, schema=SHARDS), folder / "shards.parquet")
    (folder / ABOUT).write_text(json.dumps({"format": FORMAT, "samples": samples, "shards": len(shards["path"])}))


def _write_header(file: IO[bytes], name: str, length: int) -> None:
    """The header of a .npy file. NumPy leaves room in it, so its size does not depend on the length."""
    dtype, *entry = ENTRIES[name]
    values = {"descr": dtype, "fortran_order": False, "shape": (length, *entry)}
    np.lib.format.write_array_header_1_0(file, values)


class _ShardIndexes(Dataset):
    """Indexes shards in worker processes."""

    def __getitem__(self, path: str) -> ShardIndex:
        return index_shard(path)


def _indexes(paths: list[str], workers: int) -> Iterator[ShardIndex]:
    """The index of each shard, in order."""
    workers = min(workers, len(paths) // SHARDS_PER_WORKER)
    if workers < 2:
        yield from map(index_shard, paths)
        return
    try:
        yield from start_workers(_ShardIndexes(), workers, prefetch=2, pin=False, items=iter(paths))
    except RuntimeError as error:
        if "worker" not in str(error):
            raise
        raise WorkError("A process that indexes shards was killed; rerun the command to continue.") from None


def cached_index(paths: list[str], workers: int = 0, share: bool = False) -> DataIndex:
    """The samples of shards, from an index in the cache that is built first where it is missing.

    Args:
        workers: processes that scan shards, see `write_index`.
        share: all processes of the run call this with the same shards: they share the scanning, and the first one of
            each machine writes the index.

    Raises:
        UserError, WorkError: see `write_index`.
    """
    stamps = stamps_of(paths)
    known = all(stamp is not None for stamp in stamps)
    facts = [one or "" for pair in zip(map(identity, paths), stamps, strict=True) for one in pair]
    folder = cache_path(FORMAT, facts)
    ready = known and (folder / ABOUT).exists()
    if share and world_size() > 1:
        if not all(gather_objects(ready)):
            _build_together(paths, folder if known else None)
    elif known and not ready:
        _cache(paths, folder, workers)
    try:
        return open_index(folder, paths)
    except UserError:  # the cache cannot be written, is damaged, or a shard has just changed
        if folder.is_dir():
            remove(folder)
        temporary = Path(tempfile.mkdtemp(prefix="vlp-index-"))
        write_index(paths, temporary / "index", 0)
        index = open_index(temporary / "index", paths)
        weakref.finalize(index, _remove_in, os.getpid(), temporary)
        return index


def _remove_in(process: int, folder: Path) -> None:
    """Remove a folder, but not in a worker that was forked from the process."""
    if os.getpid() == process:
        remove(folder)


def _cache(paths: list[str], folder: Path, workers: int) -> None:
    """Write the index of shards to the cache, where it only saves time."""
    missing = sum(not is_indexed(path) for path in paths)
    if missing:
        log.info("indexing %d of %d shards: they are new, or have changed", missing, len(paths))
    with Progress("shards", len(paths), quiet=not is_main() or not missing) as bar:
        try:
            write_index(paths, folder, workers, bar.add, replace=False)
        except (UserError, WorkError) as error:
            log.warning("the index is not cached: %s", str(error))


def _build_together(paths: list[str], folder: Path | None) -> None:
    """Scan the shards that are not in the cache, each in one process, then write the index once on each machine."""
    missing = sorted(set().union(*gather_objects({path for path in paths if not is_indexed(path)})))
    if missing and is_main():
        log.info("indexing %d of %d shards: they are new, or have changed", len(missing), len(paths))
    with Progress("shards", -(-len(missing) // world_size()), quiet=not is_main()) as bar:

        def index(path: str) -> None:
            index_shard(path)
            bar.add("index")

        share_out(index, missing)

    def write(_process: int) -> None:
        first_here = int(os.environ.get("LOCAL_RANK", rank())) == 0
        if folder is not None and first_here and not (folder / ABOUT).exists():
            _cache(paths, folder, workers=0)

    share_out(write, range(world_size()))
