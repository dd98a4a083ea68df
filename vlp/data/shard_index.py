"""The index of a shard: the position of every sample, from one scan of the tar's headers, cached.

The positions give exact epochs, a position to resume from, and any split over processes and workers without reading
the samples of others.
"""

import json
import logging
import math
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import IO, TYPE_CHECKING, Any, cast

import braceexpand
import fsspec
import numpy as np

from vlp.data.bad_samples import BadSample
from vlp.data.cache import cache_file, cache_path, file_stamp, identity
from vlp.errors import UserError, WorkError
from vlp.files import writing
from vlp.object_store import is_incomplete
from vlp.remote import filesystem, is_remote, remote_errors

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = "index-6"  # of cached indexes
COLUMNS, LABEL = 7, 6  # of `ShardIndex.members`; the column of the .cls member
MOST = 2**32 - 1  # bytes of a member, and blocks before it
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
WILDCARDS = "*?["
BRACE_NUMBERS = re.compile(r"\{(-?\d{1,18})\.\.(-?\d{1,18})")
MOST_SHARDS = 10_000_000  # of a brace pattern
DAMAGE = (  # what tarfile raises for broken and hostile headers
    tarfile.TarError,
    EOFError,
    ArithmeticError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)

log = logging.getLogger("vlp")


class Keys(Sequence[str]):
    """The keys of a shard's samples, held as UTF-8 in one array; a string is made when one is asked for."""

    def __init__(self, text: np.ndarray, ends: np.ndarray):
        """`text` is uint8 [bytes]; `ends`, uint32 [samples], tells where in it each key ends."""
        self.text, self.ends = text, ends

    @classmethod
    def of(cls, keys: Sequence[str]) -> "Keys":
        """The keys of strings."""
        encoded = [key.encode() for key in keys]
        ends = np.cumsum([len(key) for key in encoded], dtype=np.uint32)
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[one] for one in range(*row.indices(len(self)))]
        row = range(len(self))[row]  # from the end, or out of range
        return self.text[self.ends[row - 1] if row else 0 : self.ends[row]].tobytes().decode()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def arrow(self) -> "pa.Array":
        """The keys as an Arrow array of strings, without a copy of the text."""
        import pyarrow as pa

        offsets = np.concatenate([[0], self.ends]).astype(np.int32)
        return pa.StringArray.from_buffers(len(self), pa.py_buffer(offsets), pa.py_buffer(self.text))

    def take(self, rows: np.ndarray) -> "Keys":
        """The keys in some rows, int64 [rows]."""
        return Keys.of([self[row] for row in rows.tolist()])


@dataclass
class ShardIndex:
    """The samples of one shard.

    Attributes:
        members: uint32 [samples, 7]: of the image, the text and the JSON the place in blocks of 512 bytes and the size
            in bytes, then the place of the .cls member, a class, which is in one block; place 0 if absent.
        bad: samples that cannot be read; with an empty key, the shard itself.
        stamp: size and time of change of the shard before it was scanned, see `file_stamp`; empty where unknown.
    """

    path: str
    keys: Keys
    members: np.ndarray
    bad: list[BadSample]
    stamp: str = ""

    def places(self, row: int) -> list[tuple[int, int]]:
        """Offset and size in bytes of a sample's image, text and JSON; offset 0 if absent."""
        image, image_size, text, text_size, info, info_size, _ = self.members[row].tolist()
        return [(image * BLOCKSIZE, image_size), (text * BLOCKSIZE, text_size), (info * BLOCKSIZE, info_size)]

    def label_offset(self, row: int) -> int:
        """Offset in bytes of a sample's .cls member; 0 if absent or empty."""
        return int(self.members[row, LABEL]) * BLOCKSIZE

    def subset(self, kept: np.ndarray) -> "ShardIndex":
        """The index with some of its samples; `kept` is bool [samples]."""
        rows = np.flatnonzero(kept)
        return ShardIndex(self.path, self.keys.take(rows), self.members[rows], self.bad, self.stamp)


def expand_shards(shards: str | list[str]) -> list[str]:
    """Paths and URLs of shards from brace patterns, local globs, and lists of both.

    Raises:
        UserError: no file matches.
    """
    patterns = [shards] if isinstance(shards, str) else list(shards)
    found: list[str] = []
    for path in (path for pattern in patterns for path in _expand_braces(pattern)):
        if is_remote(path):
            found += _expand_remote(path)
        elif any(letter in path for letter in WILDCARDS):
            anchor = Path(Path(path).anchor or ".")
            try:
                found += sorted(str(match) for match in anchor.glob(path.lstrip("/")) if match.is_file())
            except (ValueError, NotImplementedError) as error:  # such as a ** within a name
                raise UserError(f"The pattern {path!r} cannot be used: {error}.") from None
        elif Path(path).is_file():
            found.append(path)
        else:
            inside = f"name those of the folder: '{path}/*.tar'" if path and Path(path).is_dir() else ""
            raise UserError(f"No shard matches {path!r}; {inside or 'check the path, or the numbers in braces'}.")
    if not found:
        raise UserError(f"No shard matches {' '.join(patterns) or 'an empty name'}; check the path.")
    return found


def _expand_braces(pattern: str) -> Iterator[str]:
    """What a brace pattern stands for, as in a shell: `{000..127}.tar`, `{a,b}.tar`."""
    numbers = [abs(int(last) - int(first)) + 1 for first, last in BRACE_NUMBERS.findall(pattern)]
    if math.prod(numbers) > MOST_SHARDS:
        raise UserError(f"The pattern {pattern!r} stands for more than {MOST_SHARDS:,} shards; check its numbers.")
    try:
        yield from braceexpand.braceexpand(pattern)
    except ValueError as error:  # unbalanced braces
        raise UserError(f"The pattern {pattern!r} cannot be used: {error}.") from None


def _expand_remote(url: str) -> list[str]:
    """An address as it is, or the addresses that match its wildcards.

    Raises:
        UserError: no address matches, fsspec cannot read the scheme, or a matching folder is incomplete.
    """
    if url.startswith("pipe:"):
        return [url]
    files, path = filesystem(url)
    if not any(letter in path for letter in WILDCARDS) or url.startswith(("http://", "https://")):
        return [url]  # a query of a web address may hold a question mark
    with remote_errors(url):
        found = [files.unstrip_protocol(match) for match in sorted(files.glob(path))]
        folders = sorted({match.rpartition("/")[0] for match in found})
        incomplete = [folder for folder in folders if is_incomplete(files, folder)]
    if incomplete:
        raise UserError(f"{incomplete[0]} is incomplete; wait for the command that writes it, or rerun that command.")
    if not found:
        raise UserError(f"No shard matches {url!r}; check the address.")
    return found


def index_shard(path: str) -> ShardIndex:
    """The index of a shard, from the cache unless the shard has changed."""
    stamp = file_stamp(path)
    cached = None if stamp is None else cache_path(FORMAT, [identity(path), stamp])
    if cached is not None and cached.exists():
        try:
            return _load(path, cached, stamp or "")
        except Exception:
            log.debug("%s is damaged and is rebuilt", cached)  # NumPy, zipfile and zlib raise a dozen kinds of errors
    index = scan_shard(path)
    index.stamp = stamp or ""
    if cached is not None:
        _store(index, cached)
    return index


def is_indexed(path: str) -> bool:
    """Whether the cache has the index of a shard as it is now."""
    cached = cache_file(FORMAT, path)
    return cached is not None and cached.exists()


def open_shard(path: str) -> IO[bytes]:
    """A shard's file, local or remote, open for reading; raises OSError."""
    return cast(IO[bytes], cast(fsspec.core.OpenFile, fsspec.open(path, "rb")).open())


class _Scan:
    """Groups consecutive members into samples by key."""

    def __init__(self, path: str):
        self.path = path
        self.keys: list[str] = []
        self.rows: list[list[int]] = []
        self.bad: list[BadSample] = []
        self.seen: set[str] = set()
        self.key: str | None = None
        self.row = [0] * COLUMNS

    def member(self, header: tarfile.TarInfo) -> None:
        key, extension = split_name(header.name)
        column = 0 if extension in IMAGE_EXTENSIONS else {"txt": 2, "json": 4, "cls": LABEL}.get(extension)
        if key != self.key or (column is not None and self.row[column]):
            self.close()
            self.key = key
        if column is not None:
            place = header.offset_data // BLOCKSIZE
            self.row[column : column + 2] = [place if header.size else 0] if column == LABEL else [place, header.size]

    def close(self) -> None:
        """Finish the current sample."""
        if self.key is not None:
            if self.key in self.seen:
                self.name_bad("duplicate key")
            elif not self.row[0]:
                self.name_bad("no image")
            elif max(self.row) > MOST:
                self.name_bad("member too large")
            else:
                self.keys.append(self.key)
                self.rows.append(self.row)
            self.seen.add(self.key)
        self.key, self.row = None, [0] * COLUMNS

    def name_bad(self, reason: str) -> None:
        self.bad.append(BadSample(self.path, self.key or "", reason))

    def index(self) -> ShardIndex:
        members = np.array(self.rows, dtype=np.uint32).reshape(-1, COLUMNS)
        return ShardIndex(self.path, Keys.of(self.keys), members, self.bad)


def scan_shard(path: str) -> ShardIndex:
    """Read all headers of a tar, skipping the contents. Samples before a cut or damage are kept."""
    scan = _Scan(path)
    try:
        with open_shard(path) as file:
            _scan_members(scan, file)
    except DAMAGE as error:
        whole_file = not scan.rows and scan.key is None
        scan.close()
        scan.name_bad("zero bytes" if "empty file" in str(error) else "unreadable shard" if whole_file else "truncated")
    except OSError:
        scan.close()
        scan.name_bad("unreadable shard")
    scan.close()
    return scan.index()


def _scan_members(scan: _Scan, file: IO[bytes]) -> None:
    """Give every member of a tar to `scan`, up to the first one that is cut off."""
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    position = -1
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for header in archive:
            if header.size < 0 or header.offset <= position:  # hostile: it would be read for ever
                raise tarfile.ReadError("negative size")
            position = header.offset
            if header.offset_data + header.size > end:
                key = split_name(header.name)[0]
                if key != scan.key:
                    scan.close()  # the sample before the cut is whole
                scan.key = key
                scan.name_bad("truncated")
                scan.key = None
                return
            if header.isfile():
                scan.member(header)
        # The iteration ends at a damaged header as it does at the end of the archive, which is a block of zeros.
        file.seek(archive.offset)
        if file.read(BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError("damaged header")


def split_name(name: str) -> tuple[str, str]:
    """A member's key and extension, as webdataset splits them: at the first dot of the last part of the name."""
    name = name.encode("utf-8", "backslashreplace").decode()  # bytes that are no UTF-8 are shown, not passed on
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def _load(path: str, cached: Path, stamp: str) -> ShardIndex:
    with open(cached, "rb") as file, np.load(file, allow_pickle=False) as stored:
        bad = [BadSample(path, *pair) for pair in json.loads(stored["bad"].tobytes())]
        return ShardIndex(path, Keys(stored["keys"], stored["key_ends"]), stored["members"], bad, stamp)


def _store(index: ShardIndex, cached: Path) -> None:
    bad = json.dumps([[bad.key, bad.reason] for bad in index.bad]).encode()
    with suppress(WorkError), writing(cached) as temporary, open(temporary, "wb") as file:  # it only saves time
        bad = np.frombuffer(bad, dtype=np.uint8)
        np.savez(file, keys=index.keys.text, key_ends=index.keys.ends, members=index.members, bad=bad)
