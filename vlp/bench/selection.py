"""`vlp bench select`: rows per second and memory when selection rules run on random score tables."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from vlp.bench.timing import Measured
from vlp.data.score_tables import NAME, SCHEMA, write_beside
from vlp.errors import WorkError

TABLE_ROWS = 20_000  # two texts per image and 10,000 images per shard, as img2dataset writes
CASES = (("itm >= 0.5 and best(1)", "uids"), ("top(itc, 0.3)", "table"))
# Peak memory as Linux counts it. The one of the module `resource` includes the parent process.
SELECT = """
import re, sys
from vlp.capfilt.selection import select
scores, rules, form, target = sys.argv[1:]
select(scores, rules, **{form: target}, quiet=True)
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


def bench_select(rows: int) -> list[Measured]:
    """Select from tables with `rows` texts, each case once and in a separate process.

    The tables are written to the folder for temporary files (TMPDIR) and take about 90 bytes per row.
    """
    with tempfile.TemporaryDirectory(prefix="vlp-bench-select-") as folder:
        write_random_tables(Path(folder), rows)
        return [_measure(Path(folder), rules, form, rows) for rules, form in CASES]


def write_random_tables(folder: Path, rows: int) -> None:
    """Write tables 00000.capfilt.parquet, ... with a web and a synthetic text per image; always the same tables."""
    for number, start in enumerate(range(0, rows, TABLE_ROWS)):
        count, rng = min(TABLE_ROWS, rows - start), np.random.default_rng(number)
        images = np.arange(count) // 2
        synthetic = np.arange(count) % 2 == 1
        uids = rng.bytes(16 * (count // 2 + 1)).hex()
        columns = {
            "key": pa.array([f"{number:05d}{image:04d}" for image in images]),
            "uid": pa.array([uids[32 * image : 32 * image + 32] for image in images]),
            "source": pa.array(np.where(synthetic, "synthetic", "web")),
            "caption_id": pa.array(np.zeros(count, np.int32)),
            "text": pa.array([f"a text of {one} words" for one in rng.integers(0, 10**12, count)]),
            "itm": pa.array(rng.random(count, np.float32)),
            "itc": pa.array(rng.random(count, np.float32)),
            "clip": pa.nulls(count, pa.float32()),
            "nll": pa.array(rng.random(count, np.float32)),
            "tokens": pa.array(rng.integers(3, 30, count).astype(np.int32)),
            "width": pa.array(rng.integers(64, 2000, count).astype(np.int32)),
            "height": pa.array(rng.integers(64, 2000, count).astype(np.int32)),
            "decoding": pa.array(np.full(count, '{"top_p": 0.9}'), mask=~synthetic),
        }
        state = {"shard": "0-0", "shard_sha256": ""}  # there are no shards
        write_beside(str(folder / f"{number:05d}.tar"), pa.table(columns, SCHEMA), {}, state, NAME)


def _measure(folder: Path, rules: str, form: str, rows: int) -> Measured:
    scores = str(folder / "*.capfilt.parquet")
    command = [sys.executable, "-c", SELECT, scores, rules, form, str(folder / form)]
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise WorkError(f"Selecting from {rows} rows in {folder} failed; see its message above.")
    return Measured(f"{rules} to {form}", rows / seconds, None, "rows/s", None, "-", int(done.stdout) / 2**20, 0.0)
