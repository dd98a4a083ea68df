"""How fast `vlp app` counts: opens score tables of random texts and times rules and orders on them.

    python scripts/bench/review.py /tmp/million --rows 1000000

The tables are written into the folder first if it is new. Prints the median seconds of five calls.
"""

import argparse
import json
import resource
import statistics
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlp.capfilt.review_tables import ReviewTables, RowOrder
from vlp.data.score_tables import METADATA, SCHEMA, VERSION

ROWS_PER_TABLE = 10_000
RULES = (
    "itm >= {}",
    "itm >= {} and nll <= 3",
    "itm >= {} and best(1)",
    "web(itm >= {}) or synthetic(top(itc, 0.3)) and best(1)",
)


def write_tables(folder: Path, rows: int) -> None:
    """Tables with a web and a synthetic text for each image."""
    folder.mkdir(parents=True)
    words = np.array(["a", "the", "dog", "cat", "beach", "car", "red", "blue", "small", "large", "on", "under"])
    rng = np.random.default_rng(0)
    for number in range(rows // ROWS_PER_TABLE):
        images = ROWS_PER_TABLE // 2
        lengths = rng.integers(4, 14, ROWS_PER_TABLE)
        columns = {
            "key": np.repeat([f"{number:05d}{image:04d}" for image in range(images)], 2),
            "uid": np.repeat([f"{number:016x}{image:016x}" for image in range(images)], 2),
            "source": ["web", "synthetic"] * images,
            "caption_id": np.zeros(ROWS_PER_TABLE, np.int32),
            "text": [" ".join(rng.choice(words, length)) for length in lengths],
            "itm": rng.beta(0.5, 0.5, ROWS_PER_TABLE).astype(np.float32),
            "itc": rng.normal(0.4, 0.1, ROWS_PER_TABLE).astype(np.float32),
            "clip": rng.normal(0.25, 0.05, ROWS_PER_TABLE).astype(np.float32),
            "nll": rng.gamma(2, 1, ROWS_PER_TABLE).astype(np.float32),
            "tokens": lengths.astype(np.int32),
            "width": np.full(ROWS_PER_TABLE, 640, np.int32),
            "height": np.full(ROWS_PER_TABLE, 480, np.int32),
            "decoding": pa.nulls(ROWS_PER_TABLE, pa.string()),
        }
        facts = {"version": VERSION, "path": str(folder / f"{number:05d}.tar")}
        table = pa.table(columns, schema=SCHEMA).replace_schema_metadata({METADATA: json.dumps(facts)})
        pq.write_table(table, folder / f"{number:05d}.capfilt.parquet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    given = parser.parse_args()
    if not given.folder.exists():
        write_tables(given.folder.absolute(), given.rows)
    start = time.perf_counter()
    tables = ReviewTables(str(given.folder / "*.capfilt.parquet"))
    print(f"{'open':<60} {time.perf_counter() - start:.2f}")
    for rule in RULES:
        print(f"{rule:<60} {timed(lambda number, rule=rule: tables.counts(rule.format(0.4 + number / 100))):.3f}")
    for kind in ("sample", "near", "highest", "disagreement"):
        print(f"{kind:<60} {timed(lambda n, kind=kind: tables.order(RowOrder(kind, 'itm', n / 10, '', 'clip'))):.3f}")
    tables.close()
    print(f"{'GiB of memory, at most':<60} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f}")


def timed(call) -> float:
    """The median of five calls, in seconds."""
    seconds = []
    for number in range(5):
        start = time.perf_counter()
        call(number)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
