"""Lists of the samples to train on: uids or keys, compared with the samples of shards."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlp.data.bad_samples import BadSampleError
from vlp.data.cache import cache_path, identity
from vlp.data.score_tables import NAME, image_uid, is_same_shard, read_settings, table_path
from vlp.data.shard_index import ShardIndex
from vlp.data.shards import ShardReader
from vlp.errors import UserError, WorkError
from vlp.files import writing
from vlp.remote import is_remote

PAIR = np.dtype("u8,u8")
UID = re.compile(r"[0-9a-fA-F]{32}")  # how DataComp's uids and sha256 hashes begin
AT_ONCE = 1_000_000  # entries


@dataclass(frozen=True)
class SampleList:
    """The samples of a list.

    Attributes:
        pairs: sorted numbers of 128 bits, `u8,u8` [entries]: uids, or hashes of names. A .npy file is not read whole.
        by_uid: whether the list holds uids; else names.
        with_shards: whether some of its names may be SHARD/KEY.
    """

    path: str
    pairs: np.ndarray
    by_uid: bool
    with_shards: bool = False

    def listed(self, shard: str, keys: Sequence[str], uids: np.ndarray | None) -> np.ndarray:
        """Whether the list has each of some samples of a shard: bool [samples].

        Args:
            uids: uint64 [samples, 2], see `uid_numbers`; only read if the list holds uids.
        """
        if self.by_uid:
            return self._contains(np.zeros((len(keys), 2), dtype=np.uint64) if uids is None else uids)
        found = self._contains(_name_numbers(keys))
        if self.with_shards:
            name = shard.rpartition("/")[2]
            for one in {name, name.removesuffix(".tar")}:
                found |= self._contains(_name_numbers(f"{one}/{key}" for key in keys))
        return found

    def _contains(self, wanted: np.ndarray) -> np.ndarray:
        """Whether each number, uint64 [numbers, 2], is in the list: bool [numbers]. A binary search of all at once."""
        low, high = np.zeros(len(wanted), dtype=np.int64), np.full(len(wanted), len(self.pairs))
        while (searching := low < high).any():
            middle = (low + high) // 2
            entry = self.pairs[np.minimum(middle, len(self.pairs) - 1)]
            less = (entry["f0"] < wanted[:, 0]) | ((entry["f0"] == wanted[:, 0]) & (entry["f1"] < wanted[:, 1]))
            low, high = np.where(searching & less, middle + 1, low), np.where(searching & ~less, middle, high)
        entry = self.pairs[np.minimum(low, len(self.pairs) - 1)]
        return (low < len(self.pairs)) & (entry["f0"] == wanted[:, 0]) & (entry["f1"] == wanted[:, 1])


def read_list(path: str) -> SampleList:
    """A list of samples.

    Args:
        path: a .npy of dtype `u8,u8` with uids, as DataComp and `vlp capfilt select --uids` write it; a .txt with a
            key or SHARD/KEY in each line; or a .parquet with a column `key` (and perhaps `shard`) or `uid`. SHARD is
            the name of the shard's file.

    Raises:
        UserError: the file is missing, empty, or of another kind.
    """
    kinds = {".npy": _read_npy, ".txt": _read_txt, ".parquet": _read_parquet}
    read = kinds.get(Path(path).suffix)
    if read is None:
        raise UserError(f"The list {path} is of an unknown kind; give a .npy, .txt or .parquet file.")
    try:
        found = read(path)
    except FileNotFoundError:
        raise UserError(f"There is no list {path}.") from None
    except (OSError, ValueError, EOFError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise UserError(f"The list {path} cannot be read: {reason}.") from None
    if not len(found.pairs):
        raise UserError(f"The list {path} is empty.")
    return found


def _read_npy(path: str) -> SampleList:
    pairs = np.load(path, mmap_mode="r", allow_pickle=False)
    if pairs.dtype != PAIR or pairs.ndim != 1:
        raise ValueError(f"it has the dtype {pairs.dtype} and {pairs.ndim} dimensions, not u8,u8 and one")
    for start in range(0, len(pairs) - 1, AT_ONCE):
        part = pairs[start : start + AT_ONCE + 1]
        first, second = part["f0"], part["f1"]
        if ((first[1:] < first[:-1]) | ((first[1:] == first[:-1]) & (second[1:] < second[:-1]))).any():
            return SampleList(path, np.sort(pairs), by_uid=True)
    return SampleList(path, pairs, by_uid=True)


def _read_txt(path: str) -> SampleList:
    numbers, with_shards = [], False

    def names() -> Iterator[str]:
        nonlocal with_shards
        with open(path, encoding="utf-8-sig") as file:
            for line in map(str.strip, file):
                with_shards |= "/" in line
                if line:
                    yield line

    lines = names()
    while len(part := _name_numbers(islice(lines, AT_ONCE))):
        numbers.append(part)
    return SampleList(path, _sorted_pairs(numbers), by_uid=False, with_shards=with_shards)


def _read_parquet(path: str) -> SampleList:
    with pq.ParquetFile(path) as file:
        columns = set(file.schema_arrow.names)
        if not columns & {"key", "uid"}:
            raise ValueError("it has no column named key or uid")
        by_uid = "key" not in columns or ("shard" not in columns and "uid" in columns)
        wanted = ["uid"] if by_uid else sorted(columns & {"key", "shard"})
        numbers = []
        for batch in file.iter_batches(AT_ONCE, columns=wanted, use_threads=False):
            values = {name: batch.column(name).cast(pa.string()).fill_null("").to_pylist() for name in wanted}
            if by_uid:
                numbers.append(uid_numbers(values["uid"]))
            elif "shard" in wanted:
                pairs = zip(values["shard"], values["key"], strict=True)
                numbers.append(_name_numbers(f"{shard.rpartition('/')[2]}/{key}" for shard, key in pairs))
            else:
                numbers.append(_name_numbers(values["key"]))
    return SampleList(path, _sorted_pairs(numbers), by_uid, with_shards="shard" in wanted)


def uid_numbers(uids: Iterable[str]) -> np.ndarray:
    """Numbers of 128 bits, uint64 [uids, 2]: the first 32 hexadecimal digits of each uid, or a hash of another uid."""
    data = b"".join(bytes.fromhex(uid[:32]) if UID.match(uid) else _hash(uid) for uid in uids)
    return np.frombuffer(data, dtype=">u8").astype(np.uint64).reshape(-1, 2)


def _name_numbers(names: Iterable[str]) -> np.ndarray:
    """A hash of each name, uint64 [names, 2]."""
    return np.frombuffer(b"".join(map(_hash, names)), dtype=">u8").astype(np.uint64).reshape(-1, 2)


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _sorted_pairs(numbers: list[np.ndarray]) -> np.ndarray:
    every = np.concatenate([*numbers, np.empty((0, 2), dtype=np.uint64)])
    every = every[np.lexsort((every[:, 1], every[:, 0]))]
    return np.ascontiguousarray(every).view(PAIR).reshape(-1)


def shard_uids(index: ShardIndex, table: str = NAME) -> np.ndarray:
    """The uids of a shard's samples, uint64 [samples, 2]; computed once until the shard changes.

    They come from the shard's score table or img2dataset's SHARD.parquet where there is one. Otherwise the samples are
    read: see `image_uid`. Samples that cannot be read get zeros.

    Args:
        table: name of the score tables.
    """
    cached = cache_path("uids-1", [identity(index.path), index.stamp]) if index.stamp else None
    if cached is not None and cached.exists():
        try:
            with open(cached, "rb") as file:
                numbers = np.load(file, allow_pickle=False)
            if numbers.shape == (len(index.keys), 2):
                return numbers
        except (OSError, ValueError, EOFError):
            pass  # damaged: computed again
    numbers = _compute_uids(index, table)
    if cached is not None:
        try:
            with writing(cached) as temporary, open(temporary, "wb") as file:
                np.save(file, numbers)
        except WorkError:
            pass  # the cache only saves time
    return numbers


def _compute_uids(index: ShardIndex, table: str) -> np.ndarray:
    import pyarrow.compute as pc

    uids: list[str | None] = [None] * len(index.keys)
    for path in _tables_of(index.path, table):
        try:
            with pq.ParquetFile(path) as file:
                columns = file.read(["key", "uid"], use_threads=False)
        except (OSError, ValueError, KeyError, pa.ArrowException):
            continue  # missing, damaged, or without uids
        rows = pc.index_in(index.keys.arrow(), value_set=columns["key"].cast(pa.string()).combine_chunks())
        uids = columns["uid"].cast(pa.string()).take(rows).to_pylist()
        break
    reader = ShardReader(most_open=1)
    numbers = np.zeros((len(uids), 2), dtype=np.uint64)
    for row, uid in enumerate(uids):
        if uid is None:
            try:
                sample = reader.read(index, row)
            except BadSampleError:
                continue  # named when it is read in training
            uid = image_uid(sample.image, sample.info)
        numbers[row] = uid_numbers([uid])[0]
    reader.close()
    return numbers


def _tables_of(shard: str, name: str) -> Iterator[str | Path]:
    """Parquet files beside a shard that may hold the uids of its samples."""
    if is_remote(shard):
        return
    if is_same_shard(shard, read_settings(shard, name) or {}):
        yield table_path(shard, name)
    yield f"{shard.removesuffix('.tar')}.parquet"
