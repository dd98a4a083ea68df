"""The bytes of a shard in sequence, from a file, an address or a command, with retries and a local cache.

An address takes one request: a GET whose body is read as it arrives. A broken connection is continued by a request for
the remaining bytes. S3 addresses are signed, which takes no request. Other object stores are copied to a temporary file
by their fsspec file system.
"""

import errno
import http.client
import random
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from vlp.data.shard_cache import CachedCopy, cached_shard, current_stamp
from vlp.errors import FullDiskError, WorkError
from vlp.remote import filesystem, is_remote, is_transient, remote_errors

SECONDS_PER_READ = 60.0  # that a server may take to answer
FIRST_DELAY = 0.5  # seconds before the second attempt
LONGEST_DELAY = 30.0  # seconds between two attempts
SIGNED_FOR = 6 * 3600  # seconds
PROGRESS = 2**20  # bytes after which failures are forgotten
BLOCK = 2**20

Opened = tuple[Any, int | None]  # a file at the wanted byte, and the size of the whole shard if it is known


@dataclass(frozen=True)
class Access:
    """How shards are read.

    Attributes:
        retries: attempts after a failed request.
        delay: seconds before the first of them, doubled for each further one and varied at random; None: `FIRST_DELAY`.
        cache: folder for copies of remote shards; empty: none.
        cache_gib: its size limit.
        since: when the run began, in seconds since 1970; the copies of shards that have changed before are not used.
    """

    retries: int = 5
    delay: float | None = None
    cache: str = ""
    cache_gib: float = 100.0
    since: float = field(default_factory=time.time)


class ByteStream:
    """Reads a shard in sequence, and continues at the byte where a connection broke."""

    def __init__(self, path: str, access: Access, open_at: Callable[[int], Opened]):
        """Nothing is opened yet; `open_at` opens the shard at a byte."""
        self.path, self.access, self.open_at = path, access, open_at
        self.file: Any = None
        self.size: int | None = None
        self.position = 0
        self.failures = 0
        self.failed_at = 0
        self.random = random.Random()  # not the global one, whose state belongs to training

    def read(self, size: int) -> bytes:
        """The next `size` bytes; fewer only at the end.

        Raises:
            UserError: the shard does not exist, or access is denied.
            WorkError: it could not be read in spite of all attempts, or the credentials have expired.
        """
        parts, missing = [], size
        while missing > 0:
            data = self._some(missing)
            if not data:
                break
            parts.append(data)
            missing -= len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Close the connection."""
        file, self.file = self.file, None
        if file is not None:
            with suppress(OSError, http.client.HTTPException, subprocess.TimeoutExpired):
                file.close()

    def _some(self, size: int) -> bytes:
        while True:
            try:
                if self.file is None:
                    self.file, self.size = self.open_at(self.position)
                data = self.file.read(size)
                if not data and self.size is not None and self.position < self.size:
                    raise ConnectionError(f"the connection was closed after {self.position} of {self.size} bytes")
            except Exception as error:
                self.close()
                self._wait(error)
                continue
            self.position += len(data)
            return data

    def _wait(self, error: Exception) -> None:
        """Wait before the next attempt; raise where there is none."""
        if self.position >= self.failed_at + PROGRESS:
            self.failures = 0
        self.failures, self.failed_at = self.failures + 1, self.position
        if not is_transient(error) or self.failures > self.access.retries:
            with remote_errors(self.path):
                raise error
        first = FIRST_DELAY if self.access.delay is None else self.access.delay
        delay = first * 2 ** (self.failures - 1) * self.random.uniform(0.5, 1.5)
        time.sleep(min(delay, LONGEST_DELAY))


@contextmanager
def open_stream(path: str, access: Access) -> Iterator[Any]:
    """A shard, local or remote, for reading in sequence: an object with `read(size)` and `size`, None if unknown.

    If the block ends without an error, the rest is read too where that checks a command or completes a cached copy.

    Raises:
        OSError: a local shard cannot be read.
        UserError, WorkError: see `ByteStream.read`.
    """
    if not is_remote(path) or path.startswith("file://"):
        with open(path.removeprefix("file://"), "rb") as file:
            yield _Local(file)
        return
    stamp = current_stamp(access.cache, path, access.since) if access.cache else ""
    copy = cached_shard(access.cache, path, stamp) if access.cache else None
    if copy is not None:
        with copy:
            yield _Local(copy)
        return
    stream = ByteStream(path, access, _opener(path))
    writer = CachedCopy(access.cache, access.cache_gib, path, stamp) if access.cache else None
    try:
        reader = _Tee(stream, writer) if writer else stream
        yield reader
        if writer or path.startswith("pipe:"):
            while reader.read(BLOCK):
                pass
        if writer:
            writer.finish()
    finally:
        stream.close()
        if writer:
            writer.close()


def copy_remote(url: str, path: str | Path) -> None:
    """Copy a remote file to a local one, with the retries of a shard.

    Raises:
        OSError: the local file cannot be written.
        UserError, WorkError: see `ByteStream.read`.
    """
    with open_stream(url, Access()) as stream, open(path, "wb") as file:
        while block := stream.read(BLOCK):
            file.write(block)


class _Local:
    def __init__(self, file: IO[bytes]):
        self.read = file.read
        self.size = file.seek(0, 2) if file.seekable() else None
        if file.seekable():
            file.seek(0)


class _Tee:
    """A stream whose bytes are also written to the cache."""

    def __init__(self, stream: ByteStream, writer: CachedCopy):
        self.stream, self.writer = stream, writer

    @property
    def size(self) -> int | None:
        return self.stream.size

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.writer.write(data)
        return data


def _opener(path: str) -> Callable[[int], Opened]:
    """What opens a remote shard at a byte."""
    scheme = path.partition(":")[0].lower()
    if scheme == "pipe":
        return lambda position: _open_command(path.removeprefix("pipe:"), position)
    if scheme in ("http", "https"):
        return _WebAddress(lambda: urllib.parse.quote(path, safe="%/:=&?~#+!$,;'@()*[]"))
    if scheme in ("s3", "s3a"):
        return _WebAddress(lambda: _signed(path))
    return lambda position: _open_copy(path, position)


def _signed(path: str) -> str:
    files, inner = filesystem(path)
    return files.sign(inner, expiration=SIGNED_FOR)


class _WebAddress:
    """Opens a web address at a byte, and makes sure that later requests find the same file."""

    def __init__(self, address: Callable[[], str]):
        self.address = address
        self.tag: str | None = None

    def __call__(self, position: int) -> Opened:
        headers = {"User-Agent": "vlp"} | ({"Range": f"bytes={position}-"} if position else {})
        request = urllib.request.Request(self.address(), headers=headers)
        response = urllib.request.urlopen(request, timeout=SECONDS_PER_READ)
        tag = response.headers.get("ETag")
        if position and tag != self.tag:
            response.close()
            raise WorkError(f"{request.full_url.partition('?')[0]} changed while it was read; rerun the command.")
        self.tag = tag
        if response.status == 206:
            total = response.headers.get("Content-Range", "").rpartition("/")[2]
            return response, int(total) if total.isdigit() else None
        _skip(response, position)  # the server knows no ranges
        length = response.headers.get("Content-Length")
        return response, int(length) if length else None


def _open_command(command: str, position: int) -> Opened:
    from webdataset.gopen import Pipe

    class Output(Pipe):
        """Raises OSError at the end where the command failed."""

        def read(self, size: int) -> bytes:
            data = self.stream.read(size)
            if not data:
                self.wait_for_child()
            return data

    output = Output(command, shell=True, mode="r", ignore_status=[141, -13])  # SIGPIPE, if it is not read to the end
    _skip(output, position)
    return output, None


def _open_copy(path: str, position: int) -> Opened:
    """A temporary copy, whose disk space is free again when it is closed."""
    files, inner = filesystem(path)
    try:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "shard"
            files.get_file(inner, str(copy))
            file = copy.open("rb")
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise FullDiskError(f"{tempfile.gettempdir()} is full; free some space, or set TMPDIR.") from None
        raise
    size = file.seek(0, 2)
    file.seek(position)
    return file, size


def _skip(file: Any, count: int) -> None:
    while count > 0:
        data = file.read(min(count, BLOCK))
        if not data:
            raise ConnectionError("the connection was closed early")
        count -= len(data)
