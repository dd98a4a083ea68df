"""Marks of shards in work, which outlive the process: so a shard that ends its process outright is found."""

import glob
import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def read_deaths(listed: Path) -> Counter[str]:
    """How many processes ended while they had each shard in work, and did not live to say so.

    Call it while no process works: a shard in work is marked like one whose process has died.

    Args:
        listed: the list of failures, beside which the marks lie.
    """
    names = (name for mark in _marks(listed) for name in os.fsdecode(mark.read_bytes()).split("\n"))
    return Counter(name for name in names if name)


@contextmanager
def in_work(listed: Path, shard: str, deaths: int) -> Iterator[None]:
    """Mark a shard as in work inside the block; an error, even Ctrl-C, takes the mark away as the block's end does.

    A mark is a file with a line, the shard's name, for each process that began and did not come back.

    Args:
        deaths: how many lines there are already.
    """
    line = os.fsencode(f"{shard}\n")
    mark = _mark(listed, hashlib.sha256(line).hexdigest()[:32])
    with suppress(OSError), mark.open("ab") as file:  # without room for a mark a table has none: that says more
        file.write(line)
    try:
        yield
    finally:
        with suppress(OSError):
            os.truncate(mark, deaths * len(line)) if deaths else mark.unlink()


def forget_deaths(listed: Path) -> None:
    """Remove all marks; every shard has its table or is listed."""
    for mark in _marks(listed):
        mark.unlink(missing_ok=True)


def _mark(listed: Path, which: str) -> Path:
    return listed.with_name(f".{listed.name}.in-work-{which}")


def _marks(listed: Path) -> list[Path]:
    return list(listed.parent.glob(_mark(Path(glob.escape(listed.name)), "*").name))
