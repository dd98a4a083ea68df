"""Labels that other processes add to a folder while this one runs; looking costs a few stats."""

import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from vlp.capfilt.review_labels import JOURNALS, PARQUET, LabelStore, parse_lines

Stamp = tuple[int, int, int]  # of a file: its number, its time of change and its size
SETTLED = 3  # seconds after which a change of a folder shows in its time, also where that is coarse


class LabelNews:
    """Reads what was added to the labels of a folder since the last look. Several threads may use it."""

    def __init__(self, store: LabelStore):
        """Nothing is read yet, so the first look finds all labels."""
        self.store = store
        self.lock = threading.Lock()
        self.looked = False
        self.folder_time = -1  # -1: look for journals
        self.read: dict[Path, int] = {}  # bytes that were read of each journal
        self.parquet: Stamp | None = None

    def look(self) -> list[dict[str, Any]]:
        """The new labels, with the fields of `LABELS`; some of them may have been returned before.

        The journal of this process is read in the first look only: the process knows what it adds.

        Raises:
            WorkError: the parquet file is damaged.
        """
        with self.lock:
            first, self.looked = not self.looked, True
            self._find_journals()
            own = Path(self.store.journal.name) if self.store.journal else None
            found = [row for path in self.read if first or path != own for row in self._added(path)]
            return [*self._taken_over(), *found]  # after the journals, as in `LabelStore.read`

    def _find_journals(self) -> None:
        """Look for journals if files were added to the folder or removed from it."""
        with suppress(OSError):  # there is no folder yet
            changed = os.stat(self.store.folder).st_mtime_ns
            if changed != self.folder_time:
                self.read = {path: self.read.get(path, 0) for path in sorted(self.store.folder.glob(JOURNALS))}
                self.folder_time = changed if time.time_ns() - changed > SETTLED * 10**9 else -1

    def _added(self, path: Path) -> list[dict[str, Any]]:
        """The complete lines that a journal got."""
        try:
            if os.stat(path).st_size <= self.read[path]:
                return []
            with open(path, "rb") as file:
                file.seek(self.read[path])
                added = file.read()
        except OSError:  # it was taken over
            return []
        whole = added[: added.rfind(b"\n") + 1]  # the rest is being written
        self.read[path] += len(whole)
        return parse_lines(whole)

    def _taken_over(self) -> list[dict[str, Any]]:
        """All labels of the parquet file if it has changed: it took over the lines of an ended process."""
        try:
            facts = os.stat(self.store.folder / PARQUET)
        except OSError:
            return []
        stamp = facts.st_ino, facts.st_mtime_ns, facts.st_size
        if stamp == self.parquet:
            return []
        rows = self.store.stored()
        self.parquet = stamp
        return rows
