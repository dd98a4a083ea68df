"""A local folder with whole copies of remote shards; the copies used last stay within a size limit.

All processes of a machine may share it: a copy appears by rename, and one that is being read can be removed. Its name
contains the stamp of the shard, so that a shard that was uploaded again is copied again, in place of the old copy. The
stamp that the store gave last is in a small file, whose time tells the processes of a run whether to ask again.
"""

import hashlib
import logging
import math
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from vlp.data.cache import fresh_stamp
from vlp.errors import UserError, WorkError
from vlp.files import locked, write_text

LEFT_AFTER = 24 * 3600  # seconds; an older unfinished copy is of a process that was killed
STAMP_KEPT = 30 * LEFT_AFTER  # seconds; the stamp of a shard that is not read any more is removed

log = logging.getLogger("vlp")
_full: set[str] = set()  # folders that could not be written
_unchecked: set[str] = set()  # folders with copies of shards whose stores gave no stamp


def current_stamp(folder: str, path: str, since: float) -> str:
    """The `shard_stamp` of a remote shard; "" if it is unknown. The store is asked by one process of a run.

    If the store cannot be asked, a warning is logged once and the last stamp stays valid.

    Args:
        since: when the run began; stamps from before are asked for again.
    """
    if path.startswith("pipe:"):
        return ""
    noted = Path(folder) / f"{_digest(path)}.stamp"
    try:
        with noted.open(encoding="utf-8") as file:
            stamp, asked = file.read(), os.fstat(file.fileno()).st_mtime
    except (OSError, UnicodeDecodeError):
        stamp, asked = "", 0.0
    if asked >= since:
        return stamp
    try:
        stamp = fresh_stamp(path)
    except (UserError, WorkError) as error:
        if folder not in _unchecked:
            _unchecked.add(folder)
            log.warning("data.cache %s: whether the shards have changed is unknown: %s", folder, error)
    with suppress(UserError, WorkError):  # it only saves requests
        write_text(noted, stamp)
    return stamp


def cached_shard(folder: str, path: str, stamp: str) -> IO[bytes] | None:
    """The copy of a shard with this stamp, opened and marked as used; None if there is none."""
    copy = _place(folder, path, stamp)
    try:
        file = copy.open("rb")
    except OSError:
        return None
    with suppress(OSError):
        os.utime(copy)
    return file


class CachedCopy:
    """A copy that is being written. If the disk cannot take it, a warning is logged once and the cache stays unused."""

    def __init__(self, folder: str, limit_gib: float, path: str, stamp: str):
        """Nothing is written yet."""
        self.folder, self.limit = folder, int(limit_gib * 2**30)
        self.path, self.place = path, _place(folder, path, stamp)
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
        """Make the copy visible in place of older ones of its shard.

        The copies that were not used for the longest time are removed if there are too many.
        """
        if self.file is None:
            return
        try:
            self.file.close()
            with locked(Path(self.folder) / ".lock", wait=True):
                for old in Path(self.folder).glob(f"{_digest(self.path)}*.tar"):
                    old.unlink(missing_ok=True)
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


def _place(folder: str, path: str, stamp: str) -> Path:
    return Path(folder) / f"{_digest(path)}-{_digest(stamp)}.tar"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _make_room(folder: Path, limit: int) -> None:
    """Remove copies until those that remain have at most `limit` bytes, and what is left of others."""
    found = []
    for file in folder.iterdir():
        with suppress(OSError):
            status = file.stat()
            if file.suffix == ".tar":
                found.append((status.st_mtime_ns, status.st_size, file))
            elif time.time() - status.st_mtime > {".tmp": LEFT_AFTER, ".stamp": STAMP_KEPT}.get(file.suffix, math.inf):
                file.unlink()
    total = sum(size for _, size, _ in found)
    for _, size, file in sorted(found):
        if total <= limit:
            return
        file.unlink(missing_ok=True)
        total -= size
