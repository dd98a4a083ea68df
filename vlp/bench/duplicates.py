"""`vlp bench duplicates`: time, memory and recall of the search for duplicates among synthetic embeddings."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlp.bench.timing import Measured
from vlp.capfilt.image_tables import EMBEDDINGS, SCHEMA, ImageTables
from vlp.data.score_tables import table_path, write_beside
from vlp.errors import WorkError
from vlp.log import Progress

SHARD = 10_000  # images, as img2dataset writes
WIDTH = 256  # numbers of an embedding, as BLIP's
PER_TOPIC = 1_000  # images on average that share a topic, whose cosines are about 0.5
PLANTED = 0.1  # share of near copies, with cosines from 0.95 to 1
ABOVE = 0.95
CHECKED = 2_000  # near copies that are compared with every image before them
# Peak memory as Linux counts it. The one of the module `resource` includes the parent process.
FIND = """
import json, re, sys, time
import numpy as np
from vlp.capfilt.duplicates import write_matches
from vlp.capfilt.image_tables import EMBEDDINGS, ImageTables
from vlp.capfilt.match_images import match_images
result, above, *shards = json.load(sys.stdin)
started, tables = time.perf_counter(), ImageTables(EMBEDDINGS, {})
found = match_images(shards, [], tables, np.arange(tables.count(shards)), above)
write_matches(shards, [], tables, found, {})
peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]
json.dump([time.perf_counter() - started, int(peak)], open(result, "w"))
"""


def bench_duplicates(images: int) -> list[Measured]:
    """Find the duplicates among `images` embeddings in a separate process, and check some against all others.

    The tables are written to the folder for temporary files (TMPDIR), and take 1.2 KB per image with the temporary
    embeddings.
    """
    with tempfile.TemporaryDirectory(prefix="vlp-bench-duplicates-") as folder:
        shards = [str(Path(folder) / f"{number:05d}.tar") for number in range(-(-images // SHARD))]
        planted = write_random_embeddings(shards, images)
        result = Path(folder) / "result.json"
        call = [sys.executable, "-c", FIND]
        done = subprocess.run(call, input=json.dumps([str(result), ABOVE, *shards]), text=True)
        if done.returncode:
            raise WorkError(f"The search among {images} images in {folder} failed; see its message above.")
        seconds, peak = json.loads(result.read_text())
        recall = _recall(shards, planted)
    rest = (None, "-", peak / 2**20, 0.0)
    return [
        Measured(f"duplicates among {images:,} images", seconds, None, "seconds", *rest),
        Measured("images compared", images / seconds, None, "images/s", *rest),
        Measured("recall of near copies", 100 * recall, None, "% of exhaustive", *rest),
    ]


def write_random_embeddings(shards: list[str], images: int) -> np.ndarray:
    """Write a table of embeddings for each shard, always the same; returns the numbers of the planted copies."""
    centres = _normal(np.random.default_rng(0), max(1, images // PER_TOPIC))
    pool, planted = np.empty((0, WIDTH), np.float32), []
    with Progress("images", images) as progress:
        for number, shard in enumerate(shards):
            count, rng = min(SHARD, images - number * SHARD), np.random.default_rng(number + 1)
            vectors = centres[rng.integers(len(centres), size=count)] + _normal(rng, count)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            if len(pool):
                copies = np.flatnonzero(rng.random(count) < PLANTED)
                cosines = rng.uniform(ABOVE, 1, (len(copies), 1)).astype(np.float32)
                originals = pool[rng.integers(len(pool), size=len(copies))]
                vectors[copies] = cosines * originals + np.sqrt(1 - cosines**2) * _normal(rng, len(copies))
                planted.append(number * SHARD + copies)
            if len(pool) < 5 * SHARD:
                pool = np.concatenate([pool, vectors])
            _write_table(shard, number * SHARD, vectors, rng)
            progress.add("make", count)
    return np.concatenate([np.empty(0, np.int64), *planted])


def _normal(rng: np.random.Generator, count: int) -> np.ndarray:
    """Random vectors of length 1 (nearly): float32 [count, WIDTH]."""
    return rng.standard_normal((count, WIDTH), np.float32) / np.float32(WIDTH**0.5)


def _write_table(shard: str, first: int, vectors: np.ndarray, rng: np.random.Generator) -> None:
    count = len(vectors)
    digests = np.frombuffer(rng.bytes(32 * count), "S32").tolist()
    columns = {
        "key": [f"{first + place:09d}" for place in range(count)],
        "sha256": [digest.ljust(32, b"\0") for digest in digests],  # NumPy drops zeros at the end
    }
    rows = pa.table({**columns, **{name: pa.nulls(count) for name in SCHEMA.names if name not in columns}})
    flat = pa.array(vectors.astype(np.float16).ravel())
    table = rows.select(SCHEMA.names).cast(SCHEMA)
    table = table.append_column("embedding", pa.FixedSizeListArray.from_arrays(flat, WIDTH))
    state = {"shard": "0-0", "shard_sha256": ""}  # there are no shards
    write_beside(shard, table, {}, state, EMBEDDINGS)


def _recall(shards: list[str], planted: np.ndarray) -> float:
    """The share of duplicates among some near copies that an exhaustive comparison with the kept images finds."""
    if not len(planted):
        return 1.0
    tables = ImageTables(EMBEDDINGS, {})
    checked = np.sort(np.random.default_rng(0).choice(planted, min(CHECKED, len(planted)), replace=False))
    queries = np.concatenate(
        [tables.embeddings(shard)[checked[checked // SHARD == number] % SHARD] for number, shard in enumerate(shards)]
    ).astype(np.float32)
    best, marked = np.full(len(checked), -1.0, np.float32), np.zeros(len(checked), bool)
    for number, shard in enumerate(shards):
        keys = pq.read_table(table_path(shard, "duplicates"), columns=["key"])["key"].to_pylist()
        duplicates = np.array(keys, np.int64)
        marked |= np.isin(checked, duplicates)
        vectors = tables.embeddings(shard).astype(np.float32)
        numbers = np.arange(number * SHARD, number * SHARD + len(vectors))
        kept = ~np.isin(numbers, duplicates)
        before = numbers[kept] < checked[:, None]
        best = np.maximum(best, np.where(before, queries @ vectors[kept].T, -1).max(axis=1, initial=-1))
    should = marked | (best >= np.float32(ABOVE))
    return float(marked[should].mean()) if should.any() else 1.0
