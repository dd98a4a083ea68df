"""Crash markers: files that record the shard in progress, so that one that kills its process can be identified."""

import glob
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vlp.processes import is_running, this_process


@contextmanager
def crash_marker(failures: Path, shard: str, crashes: int) -> Iterator[None]:
    """Mark a shard as in progress. The marker is removed at the end and on any exception; only a crash leaves it.

    Args:
        failures: the list of failed shards; markers are hidden files next to it.
        crashes: how many markers the shard has already.
    """
    name = hashlib.sha256(shard.encode(errors="surrogateescape")).hexdigest()[:32]
    marker = failures.with_name(f".{failures.name}.in-progress-{name}-{crashes}")
    try:
        with suppress(OSError):  # a full disk: writing the shard's table reports it better
            marker.write_text(json.dumps({"shard": shard, **this_process()}))
        yield
    finally:
        with suppress(OSError):
            marker.unlink()


def count_crashes(failures: Path) -> Counter[str]:
    """How many processes crashed on each shard. Call it while no process of this run is scoring.

    Shards that another run on this machine has in progress do not count; those of other machines cannot be told apart.
    """
    crashes = Counter[str]()
    for marker in _markers(failures):
        with suppress(OSError, ValueError):  # removed meanwhile, or empty because the process died when it wrote it
            content = json.loads(marker.read_text())
            crashes[content["shard"]] += not is_running(content)
    return +crashes


def remove_markers(failures: Path) -> None:
    """Remove the markers of all shards."""
    for marker in _markers(failures):
        marker.unlink(missing_ok=True)


def _markers(failures: Path) -> list[Path]:
    return list(failures.parent.glob(f".{glob.escape(failures.name)}.in-progress-*"))
