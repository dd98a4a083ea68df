"""Marks of shards in work, which outlive the process: so a shard that ends its process outright is found."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def read_deaths(folder: Path) -> Counter[str]:
    """How many processes ended while they had each shard in work, and did not live to say so.

    Call it while no process works: a shard in work is marked like one whose process has died.
    """
    return Counter(line for mark in folder.glob("*") for line in mark.read_text("utf-8").splitlines())


@contextmanager
def in_work(folder: Path, shard: str, deaths: int) -> Iterator[None]:
    """Mark a shard as in work inside the block; an error, even Ctrl-C, takes the mark away as the block's end does.

    A mark is a file with a line, the shard's name, for each process that began and did not come back.

    Args:
        deaths: how many lines there are already.
    """
    mark, line = folder / hashlib.sha256(shard.encode()).hexdigest()[:32], f"{shard}\n".encode()
    with suppress(OSError):  # where no mark can be written no table can either, and that says better why
        folder.mkdir(exist_ok=True)
        with mark.open("ab") as file:
            file.write(line)
    try:
        yield
    finally:
        with suppress(OSError):
            os.truncate(mark, deaths * len(line)) if deaths else mark.unlink()
