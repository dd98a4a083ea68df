"""The index of many shards in one folder, which all processes read from the same files.

Nothing is held per sample: opening a shard reads its part of the files, some 400 kB for 10,000 samples, from the page
cache that the processes of a machine share.

The folder holds, in the order of the shards:

    members.npy    uint32 [samples, 7]: see `ShardIndex.members`
    key_ends.npy   uint32 [samples]: where each key ends in the text of its shard's keys
    keys.npy       uint8 [bytes]: the keys in UTF-8
    shards.parquet path, stamp, samples, key_bytes of each shard
    bad.parquet    shard (its number), key, reason of each bad sample
"""

import json
import os
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlp.data.bad_samples import BadSample
from vlp.data.cache import file_stamp, identity
from vlp.data.shard_index import Keys, ShardIndex
from vlp.errors import UserError, WorkError
from vlp.remote import is_remote

FORMAT = "data-index-2"
ABOUT = "index.json"
ARRAYS = ("members", "key_ends", "keys")
SHARDS = pa.schema([("path", pa.string()), ("stamp", pa.string()), ("samples", pa.int64()), ("key_bytes", pa.int64())])
BAD = pa.schema([("shard", pa.int32()), ("key", pa.string()), ("reason", pa.string())])
REQUESTS_AT_ONCE = 16
READ_AT_ONCE = 65_536  # bad samples


class StoredArray:
    """A .npy file of which parts are read. It stays open, so that a new index in its place does not matter."""

    def __init__(self, path: Path):
        self.path = path
        with open(path, "rb") as file:
            np.lib.format.read_magic(file)
            self.shape, _, self.dtype = np.lib.format.read_array_header_1_0(file)
            self.start = file.tell()
            self.file = os.dup(file.fileno())
        weakref.finalize(self, os.close, self.file)
        self.entry = self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))  # bytes
        if os.fstat(self.file).st_size != self.start + self.shape[0] * self.entry:
            raise ValueError(f"{path.name} is cut off")

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredArray, (self.path,)

    def read(self, start: int, end: int) -> np.ndarray:
        """The entries from `start` up to `end`. Processes that share the file do not disturb each other."""
        data = os.pread(self.file, (end - start) * self.entry, self.start + start * self.entry)
        if len(data) < (end - start) * self.entry:
            raise WorkError(f"{self.path} has become shorter; run `vlp data index` again.")
        return np.frombuffer(data, dtype=self.dtype).reshape(-1, *self.shape[1:])


class DataIndex:
    """The samples of some of the shards of an index folder, in the order in which they are named.

    Attributes:
        paths: of the shards.
        counts: int64 [shards]: the samples of each shard, without those that `keep` leaves out.
    """

    def __init__(self, folder: Path, paths: Sequence[str], numbers: np.ndarray, table: pa.Table):
        """`numbers`, int64 [shards], are the shards' rows in the folder's `table` of all shards.

        Raises:
            ValueError, OSError: a file is damaged.
        """
        self.folder, self.paths, self.numbers = folder, list(paths), numbers
        self.arrays = {name: StoredArray(folder / f"{name}.npy") for name in ARRAYS}
        totals, key_bytes = (table[name].to_numpy() for name in ("samples", "key_bytes"))
        self.starts, self.key_starts = (np.concatenate([[0], np.cumsum(sizes)]) for sizes in (totals, key_bytes))
        ends = {"members": self.starts[-1], "key_ends": self.starts[-1], "keys": self.key_starts[-1]}
        for name in (name for name, array in self.arrays.items() if array.shape[0] != ends[name]):
            raise ValueError(f"{name}.npy does not belong to shards.parquet")
        self.stamps: list[str] = table["stamp"].take(pa.array(numbers)).to_pylist()
        self.counts = totals[numbers]
        self.masks: list[np.ndarray | None] = [None] * len(self.paths)

    def shard(self, number: int) -> ShardIndex:
        """The index of one of the shards, without the samples that `keep` left out, and without its bad samples."""
        index, mask = self.whole_shard(number), self.masks[number]
        return index if mask is None else index.subset(np.unpackbits(mask, count=len(index.keys)).astype(bool))

    def whole_shard(self, number: int) -> ShardIndex:
        """The index of one of the shards with all its samples, without its bad samples."""
        row = int(self.numbers[number])
        samples = int(self.starts[row]), int(self.starts[row + 1])
        text = self.arrays["keys"].read(int(self.key_starts[row]), int(self.key_starts[row + 1]))
        keys = Keys(text, self.arrays["key_ends"].read(*samples))
        return ShardIndex(self.paths[number], keys, self.arrays["members"].read(*samples), [], self.stamps[number])

    def keep(self, masks: Sequence[np.ndarray | None]) -> None:
        """Leave samples out: for each shard packed bits over all its samples, 1 for a sample to keep; None keeps all.

        Masks that were set before hold as well.
        """
        for number, mask in enumerate(masks):
            before = self.masks[number]
            if mask is not None:
                both = mask if before is None else mask & before
                self.masks[number], self.counts[number] = both, int(np.unpackbits(both.astype(np.uint8)).sum())

    def bad(self) -> Iterator[BadSample]:
        """The bad samples of the shards."""
        known = {int(row): path for row, path in zip(self.numbers, self.paths, strict=True)}
        with pq.ParquetFile(self.folder / "bad.parquet") as file:
            for batch in file.iter_batches(READ_AT_ONCE, use_threads=False):
                for shard, key, reason in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    if shard in known:
                        yield BadSample(known[shard], key, reason)


def open_index(folder: str | Path, paths: list[str]) -> DataIndex:
    """The samples of shards from a folder that `vlp data index` wrote. URLs are not asked whether they have changed.

    Raises:
        UserError: the folder is no index or damaged, or a shard is not in it or has changed.
    """
    again = f"run `vlp data index` again, with --out {folder}"
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"There is no index {folder}; write it with `vlp data index SHARDS --out {folder}`.")
    try:
        about = json.loads((folder / ABOUT).read_text())
        if about["format"] != FORMAT:
            raise UserError(f"The index {folder} has the format {about['format']}, not {FORMAT}; {again}.")
        table = pq.read_table(folder / "shards.parquet", schema=SHARDS, use_threads=False)
        rows = _find_rows(table["path"].to_pylist(), paths)
        for path in (path for path, row in zip(paths, rows, strict=True) if row < 0):
            raise UserError(f"The index {folder} does not have {path}; {again}.")
        index = DataIndex(folder, paths, np.array(rows, dtype=np.int64), table)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise UserError(f"The index {folder} cannot be read ({' '.join(str(error).split())[:200]}); {again}.") from None
    local = [number for number, path in enumerate(paths) if not is_remote(path)]
    for number, stamp in zip(local, stamps_of([paths[number] for number in local]), strict=True):
        if (stamp or "") != index.stamps[number]:
            raise UserError(f"{paths[number]} has changed since the index {folder} was written; {again}.")
    return index


def _find_rows(known: list[str], paths: list[str]) -> list[int]:
    """The row of each path among the known ones, -1 where it is missing.

    Another machine may have mounted the shards elsewhere: if no path is known, the names of the files are compared.
    """
    rows = {path: row for row, path in enumerate(known)}
    found = [rows.get(identity(path), -1) for path in paths]
    if max(found, default=-1) < 0:
        names = {os.path.basename(path): row for row, path in enumerate(known)}
        if len(names) == len(known):
            found = [names.get(os.path.basename(path), -1) for path in paths]
    return found


def stamps_of(paths: list[str]) -> list[str | None]:
    """The stamps of shards, many at once: a network file system or object store takes a while for each."""
    if len(paths) <= REQUESTS_AT_ONCE:
        return [file_stamp(path) for path in paths]
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        return list(pool.map(file_stamp, paths))
