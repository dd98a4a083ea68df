"""Labels of reviewers: accept or reject for pairs of image and text, kept in a folder where no label is ever lost.

Each process appends its labels to a journal of its own, `review.HOST-PID-TIME.jsonl`, and flushes every line to disk.
`review.labels.parquet` takes over the lines of journals whose process has ended. A journal is removed only after the
parquet file holds its lines, and readers read the journals first; so every reader sees every label.
"""

import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlp.errors import UserError, WorkError
from vlp.files import locked, writing

PARQUET, LOCK, JOURNALS = "review.labels.parquet", ".review.lock", "review.*.jsonl"
VERDICTS = ("accept", "reject", "")  # "" takes a verdict back
LABELS = pa.schema(
    [
        ("shard", pa.string()),  # file name of the image's shard
        ("key", pa.string()),
        ("uid", pa.string()),
        ("source", pa.string()),
        ("caption_id", pa.int32()),
        ("text", pa.string()),
        ("verdict", pa.string()),  # "accept" or "reject"
        ("reviewer", pa.string()),
        ("shown", pa.string()),  # how the row came up, as `RowOrder.name` says; "chosen" if the reviewer picked it
        ("time", pa.int64()),  # nanoseconds since 1970
    ]
)
PAIR = ("shard", "key", "uid", "source", "text")  # what a label is about


class LabelStore:
    """The labels in a folder. Several threads, processes and machines may add labels at once."""

    def __init__(self, folder: str | Path):
        """Take over the journals of ended processes. Nothing is written where the folder cannot be written."""
        self.folder = Path(folder)
        self.lock = threading.Lock()
        self.journal: IO[bytes] | None = None
        self.torn = False  # the last line of the journal is incomplete
        with suppress(OSError, WorkError, UserError):
            self.compact()

    def check(self) -> None:
        """Raise UserError if labels cannot be written here."""
        if not self.folder.is_dir():
            raise UserError(
                f"There is no folder {self.folder} for the labels; create it or name another with --labels."
            )
        if not os.access(self.folder, os.W_OK):
            raise UserError(
                f"Labels cannot be written in {self.folder}, which is read-only; name a folder with --labels."
            )

    def add(self, label: dict[str, Any]) -> int:
        """Write a label; after this call neither a crash of the process nor one of the machine loses it.

        Args:
            label: the fields of `LABELS` without `time`; a verdict "" takes back the reviewer's earlier one.

        Returns:
            The `time` of the label.

        Raises:
            UserError: the folder is read-only or missing, or the verdict is not one of `VERDICTS`.
            WorkError: the label cannot be written for another reason, such as a full disk.
        """
        if label["verdict"] not in VERDICTS:
            raise UserError(f"{label['verdict']!r} is not a verdict; use accept, reject or an empty one.")
        self.check()
        with self.lock:
            now = time.time_ns()
            line = json.dumps({**{name: label.get(name) for name in LABELS.names}, "time": now}) + "\n"
            try:
                if self.journal is None:
                    self.journal = self._open_journal()
                self.journal.write((("\n" if self.torn else "") + line).encode())
                self.torn = True
                self.journal.flush()
                os.fsync(self.journal.fileno())
                self.torn = False
                return now
            except OSError as error:
                raise WorkError(
                    f"The label cannot be written in {self.folder}: {error.strerror or error}; it was not kept."
                ) from None

    def read(self) -> pa.Table:
        """The last label of every reviewer and pair, in the order of time, with the columns of `LABELS`.

        Raises:
            WorkError: the parquet file is damaged.
        """
        lines = [line for path in self._journals() for line in _read_journal(path)]  # before the parquet file
        return _last([*self.stored(), *lines])

    def compact(self) -> None:
        """Move the lines of ended processes, and of this one if it is closed, into the parquet file.

        Raises:
            UserError, WorkError: the parquet file is damaged, or cannot be written.
        """
        if not self._journals():
            return
        with locked(self.folder / LOCK, wait=False) as alone:
            if not alone:
                return
            with _ended(self._journals()) as ended:
                if not ended:
                    return
                rows = [*self.stored(), *(line for path in ended for line in _read_journal(path))]
                table = _last(rows, keep_removed=True)
                with writing(self.folder / PARQUET) as temporary:
                    pq.write_table(table, temporary)
                for path in ended:
                    path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the journal and move its lines into the parquet file; where this fails, the journal remains."""
        with self.lock:
            if self.journal is not None:
                self.journal.close()
                self.journal = None
        with suppress(OSError, WorkError, UserError):
            self.compact()

    def _journals(self) -> list[Path]:
        return sorted(self.folder.glob(JOURNALS))

    def stored(self) -> list[dict[str, Any]]:
        """The labels of the parquet file, also verdicts that were taken back; raises WorkError if it is damaged."""
        path = self.folder / PARQUET
        try:
            return pq.read_table(path).select(LABELS.names).to_pylist()
        except FileNotFoundError:
            return []
        except (OSError, KeyError, pa.ArrowException) as error:
            raise WorkError(
                f"The labels {path} cannot be read: {str(error).splitlines()[0].rstrip('.')}; "
                "restore the file or move it away."
            ) from None

    def _open_journal(self) -> IO[bytes]:
        while True:
            name = f"review.{socket.gethostname()}-{os.getpid()}-{time.time_ns():x}{secrets.token_hex(2)}.jsonl"
            file = open(self.folder / name, "xb")  # noqa: SIM115 (open until `close`)
            with suppress(OSError):  # a file system without locks; then the journal is never taken over
                fcntl.flock(file, fcntl.LOCK_EX)
            if (self.folder / name).exists():
                _flush_folder(self.folder)
                return file
            file.close()  # another process took it over, empty, before it was locked


def _flush_folder(folder: Path) -> None:
    """Write the names of a folder's files to disk."""
    number = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # not every file system can
            os.fsync(number)
    finally:
        os.close(number)


@contextmanager
def _ended(paths: list[Path]) -> Iterator[list[Path]]:
    """Those journals whose process has ended; they are locked inside the block."""
    files: dict[Path, IO[bytes]] = {}
    try:
        for path in paths:
            with suppress(OSError):
                file = open(path, "rb+")  # noqa: SIM115 (closed below)
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    file.close()
                else:
                    files[path] = file
        yield list(files)
    finally:
        for file in files.values():
            file.close()


def _read_journal(path: Path) -> list[dict[str, Any]]:
    try:
        return parse_lines(path.read_bytes())
    except OSError:
        return []


def parse_lines(lines: bytes) -> list[dict[str, Any]]:
    """The complete lines of a journal; the last one may be torn by a crash."""
    found = []
    for line in lines.split(b"\n"):
        with suppress(ValueError):
            label = json.loads(line)
            if isinstance(label, dict) and set(LABELS.names) <= label.keys():
                found.append({name: label[name] for name in LABELS.names})
    return found


def _last(rows: list[dict[str, Any]], keep_removed: bool = False) -> pa.Table:
    """The last of the rows about each pair by each reviewer, without those that take a verdict back."""
    last: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda one: one["time"]):
        name = (row["reviewer"], *(row[column] for column in PAIR))
        last.pop(name, None)
        last[name] = row
    kept = [row for row in last.values() if keep_removed or row["verdict"]]
    return pa.Table.from_pylist(kept, LABELS)
