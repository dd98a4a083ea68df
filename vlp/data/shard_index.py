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
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import braceexpand
import fsspec
import numpy as np

from vlp.data.bad_samples import BadSample
from vlp.data.cache import cache_file
from vlp.distributed import share_out, world_size
from vlp.errors import UserError, WorkError
from vlp.files import writing
from vlp.remote import filesystem, is_remote, remote_errors

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


@dataclass
class ShardIndex:
    """The samples of one shard.

    Attributes:
        members: int64 [samples, 6]: offset and size in bytes of the image, the text and the JSON; -1 if absent.
        bad: samples that cannot be read; with an empty key, the shard itself.
    """

    path: str
    keys: list[str]
    members: np.ndarray
    bad: list[BadSample]

    def subset(self, kept: np.ndarray) -> "ShardIndex":
        """The index with some of its samples; `kept` is bool [samples]."""
        keys = [key for key, keep in zip(self.keys, kept.tolist(), strict=True) if keep]
        return ShardIndex(self.path, keys, self.members[kept], self.bad)


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
            raise UserError(f"No shard matches {path!r}; check the path, or the numbers in braces.")
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
        UserError: no address matches, or fsspec cannot read the scheme.
    """
    if url.startswith("pipe:"):
        return [url]
    files, path = filesystem(url)
    if not any(letter in path for letter in WILDCARDS) or url.startswith(("http://", "https://")):
        return [url]  # a query of a web address may hold a question mark
    with remote_errors(url):
        found = [files.unstrip_protocol(match) for match in sorted(files.glob(path))]
    if not found:
        raise UserError(f"No shard matches {url!r}; check the address.")
    return found


def index_shard(path: str) -> ShardIndex:
    """The index of a shard, from the cache unless the shard has changed."""
    cached = cache_file("index-4", path)
    if cached is not None and cached.exists():
        try:
            return _load(path, cached)
        except Exception:
            log.debug("%s is damaged and is rebuilt", cached)  # NumPy, zipfile and zlib raise a dozen kinds of errors
    index = scan_shard(path)
    if cached is not None:
        _store(index, cached)
    return index


def index_shards(paths: list[str]) -> list[ShardIndex]:
    """The indexes of many shards; processes that run together share the scanning, through the cache."""
    if world_size() > 1:
        share_out(lambda path: index_shard(path) and None, paths)
    return [index_shard(path) for path in paths]


def open_shard(path: str) -> IO[bytes]:
    """A shard's file, local or remote, open for reading; raises OSError."""
    return cast(IO[bytes], cast(fsspec.core.OpenFile, fsspec.open(path, "rb")).open())


class _Scan:
    """Groups consecutive members into samples by key."""

    def __init__(self, path: str):
        self.index = ShardIndex(path, [], np.empty((0, 6), dtype=np.int64), [])
        self.rows: list[list[int]] = []
        self.seen: set[str] = set()
        self.key: str | None = None
        self.row = [-1] * 6

    def member(self, header: tarfile.TarInfo) -> None:
        key, extension = split_name(header.name)
        column = 0 if extension in IMAGE_EXTENSIONS else {"txt": 2, "json": 4}.get(extension)
        if key != self.key or (column is not None and self.row[column] >= 0):
            self.close()
            self.key = key
        if column is not None:
            self.row[column : column + 2] = [header.offset_data, header.size]

    def close(self) -> None:
        """Finish the current sample."""
        if self.key is not None:
            if self.key in self.seen:
                self.bad("duplicate key")
            elif self.row[0] < 0:
                self.bad("no image")
            else:
                self.index.keys.append(self.key)
                self.rows.append(self.row)
            self.seen.add(self.key)
        self.key, self.row = None, [-1] * 6

    def bad(self, reason: str) -> None:
        self.index.bad.append(BadSample(self.index.path, self.key or "", reason))


def scan_shard(path: str) -> ShardIndex:
    """Read all headers of a tar, skipping the contents. Samples before a cut or damage are kept."""
    scan = _Scan(path)
    try:
        with open_shard(path) as file:
            _scan_members(scan, file)
    except DAMAGE as error:
        whole_file = not scan.rows and scan.key is None
        scan.close()
        scan.bad("zero bytes" if "empty file" in str(error) else "unreadable shard" if whole_file else "truncated")
    except OSError:
        scan.close()
        scan.bad("unreadable shard")
    scan.close()
    scan.index.members = np.array(scan.rows, dtype=np.int64).reshape(-1, 6)
    return scan.index


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
                scan.bad("truncated")
                scan.key = None
                return
            if header.isfile():
                scan.member(header)
        # The iteration ends at a damaged header as it does at the end of the archive, which is a block of zeros.
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError("damaged header")


def split_name(name: str) -> tuple[str, str]:
    """A member's key and extension, as webdataset splits them: at the first dot of the last part of the name."""
    name = name.encode("utf-8", "backslashreplace").decode()  # bytes that are no UTF-8 are shown, not passed on
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def _load(path: str, cached: Path) -> ShardIndex:
    with open(cached, "rb") as file, np.load(file, allow_pickle=False) as stored:
        text = json.loads(stored["text"].tobytes())
        return ShardIndex(path, text["keys"], stored["members"], [BadSample(path, *pair) for pair in text["bad"]])


def _store(index: ShardIndex, cached: Path) -> None:
    text = json.dumps({"keys": index.keys, "bad": [[bad.key, bad.reason] for bad in index.bad]}).encode()
    with suppress(WorkError), writing(cached) as temporary, open(temporary, "wb") as file:  # it only saves time
        np.savez(file, members=index.members, text=np.frombuffer(text, dtype=np.uint8))
