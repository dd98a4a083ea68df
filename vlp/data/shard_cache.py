"""A local folder with whole copies of remote shards; the copies used last stay within a size limit.

All processes of a machine may share it: a copy appears by rename, and one that is being read can be removed.
"""

import hashlib
import logging
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from vlp.files import locked

LEFT_AFTER = 24 * 3600  # seconds; an older unfinished copy is of a process that was killed

log = logging.getLogger("vlp")
_full: set[str] = set()  # folders that could not be written


def cached_shard(folder: str, path: str) -> IO[bytes] | None:
    """The copy of a shard, opened and marked as used; None if there is none."""
    copy = _place(folder, path)
    try:
        file = copy.open("rb")
    except OSError:
        return None
    with suppress(OSError):
        os.utime(copy)
    return file


class CachedCopy:
    """A copy that is being written. If the disk cannot take it, a warning is logged once and the cache stays unused."""

    def __init__(self, folder: str, limit_gib: float, path: str):
        """Nothing is written yet."""
        self.folder, self.limit, self.place = folder, int(limit_gib * 2**30), _place(folder, path)
        self.file: IO[bytes] | None = None
        self.name = ""
        self.written = 0
        if folder in _full:
            return
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            handle, self.name = tempfile.mkstemp(dir=folder, prefix=".", suffix=".tmp")
            self.file = os.fdopen(handle, "wb")
        except OSError as error:
            self._give_up(error)

    def write(self, data: bytes) -> None:
        """Add the next bytes."""
        if self.file is None:
            return
        self.written += len(data)
        if self.written > self.limit:
            self.close()
            return
        try:
            self.file.write(data)
        except OSError as error:
            self._give_up(error)

    def finish(self) -> None:
        """Make the copy visible, and remove the ones that were not used for the longest time if there are too many."""
        if self.file is None:
            return
        try:
            self.file.close()
            with locked(Path(self.folder) / ".lock", wait=True):
                _make_room(Path(self.folder), self.limit - self.written)
                os.replace(self.name, self.place)
            self.file = None
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Remove the copy unless it is finished."""
        file, self.file = self.file, None
        if file is not None:
            with suppress(OSError):
                file.close()
            with suppress(OSError):
                os.unlink(self.name)

    def _give_up(self, error: OSError) -> None:
        self.close()
        if self.folder not in _full:
            _full.add(self.folder)
            reason = (error.strerror or str(error)).rstrip(".")
            log.warning(
                "data.cache %s cannot be written (%s); shards are read without it from now on", self.folder, reason
            )


def _place(folder: str, path: str) -> Path:
    return Path(folder) / f"{hashlib.sha256(path.encode()).hexdigest()[:32]}.tar"


def _make_room(folder: Path, limit: int) -> None:
    """Remove copies until those that remain have at most `limit` bytes."""
    found = []
    for file in folder.iterdir():
        with suppress(OSError):
            status = file.stat()
            if file.suffix == ".tar":
                found.append((status.st_mtime_ns, status.st_size, file))
            elif file.suffix == ".tmp" and status.st_mtime < time.time() - LEFT_AFTER:
                file.unlink()
    total = sum(size for _, size, _ in found)
    for _, size, file in sorted(found):
        if total <= limit:
            return
        file.unlink(missing_ok=True)
        total -= size
