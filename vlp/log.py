"""Logs of a run as JSON lines and in a tracker, and progress with a rate and an estimate of the time left."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from vlp.files import write_errors, write_text

SECONDS_BETWEEN_LINES = 10.0

ReportProgress = Callable[[str, int], None]  # (name of the stage, items finished since the last call)


def no_progress(stage: str, items: int) -> None:
    """A `ReportProgress` that reports nothing."""


class Progress:
    """Counts finished work: a bar on a terminal, otherwise a plain line every few seconds. Use it in a `with` block."""

    def __init__(self, unit: str, total: int | None = None, done: int = 0, quiet: bool = False):
        """Start counting.

        Args:
            unit: the plural name of what is counted.
            done: how many were finished earlier; they do not count toward the rate.
            quiet: print nothing, as in every process but the first.
        """
        self.unit, self.total, self.done, self.before = unit, total, done, done
        self.quiet = quiet
        self.started = self.last_line = time.monotonic()
        self.bar: Bar | None = None
        if sys.stdout.isatty() and not quiet:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
            self.bar = Bar(TextColumn("{task.description}"), *columns)
            self.row = self.bar.add_task(unit, total=total, completed=done, note="")

    def __enter__(self) -> "Progress":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def expect(self, count: int) -> None:
        """Add further work to the total."""
        self.total = (self.total or 0) + count

    def advance(self, count: int = 1, what: str = "") -> None:
        """Count finished work and move the bar; prints nothing itself."""
        self.done += count
        if self.bar:
            note = f"{self.rate():.1f} {self.unit}/s"
            self.bar.update(self.row, completed=self.done, total=self.total, note=note, description=what or self.unit)

    def add(self, what: str = "", count: int = 1) -> None:
        """Count finished work; `what` names the stage. Without a bar, a line is printed every few seconds."""
        self.advance(count, what)
        if not self.bar and not self.quiet and time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            of = f"/{self.total}" if self.total else ""
            self.say(f"{what or self.unit} {self.done}{of}  {self.rate():.1f} {self.unit}/s  {self.left()}")

    def say(self, line: str) -> None:
        """Print a line, above the bar where there is one."""
        if self.quiet:
            return
        if self.bar:
            self.bar.console.print(line, highlight=False)
        else:
            print(line, flush=True)

    def rate(self) -> float:
        """Units finished per second since the start."""
        return (self.done - self.before) / max(time.monotonic() - self.started, 1e-9)

    def left(self) -> str:
        """An estimate of the time left, for people."""
        if not self.total or self.done == self.before:
            return ""
        return f"{format_duration((self.total - self.done) / self.rate())} left"


def format_duration(seconds: float) -> str:
    """A duration for people, such as 80 s, 12 min or 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class RunLog:
    """A run's records: `log.jsonl` in the run folder, and a tracker."""

    def __init__(self, folder: Path, from_step: int = 0, tracker: Any = None):
        """Open the log. Records after `from_step` are removed: the resumed run writes them again.

        Args:
            tracker: gets each record too, by `log(values, step=...)`; `close` calls its `finish()`.
        """
        self.path = folder / "log.jsonl"
        if self.path.exists():
            kept = [line for line in self.path.read_text().splitlines() if _step(line) <= from_step]
            write_text(self.path, "".join(f"{line}\n" for line in kept))
        self.tracker = tracker

    def write(self, record: dict[str, float]) -> None:
        """Append a record; its `step` is the x axis of the curves."""
        with write_errors(self.path), self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        if self.tracker:
            values = {name: value for name, value in record.items() if name != "step"}
            self.tracker.log(values, step=int(record["step"]))

    def close(self) -> None:
        """Flush and close."""
        if self.tracker:
            self.tracker.finish()


def read_log(path: str | Path) -> list[dict[str, float]]:
    """The records of a `log.jsonl`, without a last line that was cut off."""
    return [json.loads(line) for line in Path(path).read_text().splitlines() if _step(line) < float("inf")]


def _step(line: str) -> float:
    """The step of a record; infinite for a line that was cut off."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
