"""The verdicts on the rows of the page, by reviewer: those of its sessions, and those that other processes add."""

import threading
from collections import Counter, defaultdict
from contextlib import suppress

from vlp.capfilt.review import Review
from vlp.capfilt.review_news import LabelNews
from vlp.errors import WorkError


class Marks:
    """The last verdict of each reviewer on each row. Several threads may use it."""

    def __init__(self, review: Review):
        """Read the labels that there are; raises WorkError if they are damaged."""
        self.review = review
        self.news = LabelNews(review.labels)
        self.lock = threading.Lock()
        self.given: dict[int, dict[str, tuple[int, str]]] = defaultdict(dict)  # row -> reviewer -> time, verdict
        self._read()

    def __contains__(self, row: int) -> bool:
        return bool(self.of(row))

    def of(self, row: int) -> dict[str, str]:
        """The verdict of each reviewer on a row."""
        with self.lock:
            return {reviewer: verdict for reviewer, (_, verdict) in self.given.get(row, {}).items() if verdict}

    def add(self, row: int, reviewer: str, verdict: str, time: int) -> None:
        """Note a verdict, "" if one was taken back, unless the reviewer has given a later one."""
        with self.lock:
            before, _ = self.given[row].get(reviewer, (-1, ""))
            if time > before:
                self.given[row][reviewer] = time, verdict

    def refresh(self) -> None:
        """Read what others have added."""
        with suppress(WorkError):  # `suggest` and `export` name the damage
            self._read()

    def counts(self) -> tuple[int, int, int]:
        """The rows with a verdict, and the accepted and rejected ones; a disputed row is both."""
        with self.lock:
            rows = [{verdict for _, verdict in one.values()} - {""} for one in self.given.values()]
        found = Counter(verdict for one in rows for verdict in one)
        return sum(map(bool, rows)), found["accept"], found["reject"]

    def _read(self) -> None:
        for row, label in self.review.rows_of(self.news.look()):
            self.add(row, label["reviewer"] or "", label["verdict"], label["time"])
