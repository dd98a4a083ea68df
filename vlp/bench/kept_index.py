"""`vlp bench index --kept`: answers of a kept index with any number of images, their recall, time and memory."""

import json
import resource
import subprocess
import sys
import tempfile
import time
from functools import lru_cache
from pathlib import Path

import numpy as np

from vlp.bench.timing import Measured
from vlp.errors import WorkError
from vlp.index.manifest import IndexModel, Manifest, part_path, write_manifest
from vlp.index.neighbors import update_neighbors
from vlp.index.opened import Rows, open_files
from vlp.index.parts import IndexedImage, write_part
from vlp.index.places import Place
from vlp.log import Progress

WIDTH = 256  # BLIP's embeddings
PART = 32_768  # images; as many rows as 16 parts of `vlp index`, so that simulating takes less time
CONCEPTS, NOISE = 20_000, 0.9  # centers of the vectors, and the length of the noise that is added to one of length 1
QUERIES, K = 40, 10
# A process of its own, so that memory and start-up are those of a search. Recall is against a comparison with all.
SEARCH = """
import json, sys, time
import numpy as np, psutil
from vlp.bench.kept_index import K, make_vectors, QUERIES
from vlp.index import open_index
started = time.perf_counter()
index = open_index(sys.argv[1])
opened = time.perf_counter() - started
queries = make_vectors(QUERIES, seed=1)
first = time.perf_counter()
index.search(queries[0], K)
first = time.perf_counter() - first
seconds, answers = [], []
for query in [*queries, *queries]:
    began = time.perf_counter()
    answers.append(index.search(query, K))
    seconds.append(time.perf_counter() - began)
answers = answers[QUERIES:]
for one in answers[-1]:
    index.key(one.number)
memory = psutil.Process().memory_info().rss
best = np.empty((QUERIES, 0), np.float32)
for start in range(0, index.total, 32768):
    vectors = index._rows.read(start, min(start + 32768, index.total)).astype(np.float32)
    best = np.sort(np.concatenate([best, queries @ vectors.T], axis=1), axis=1)[:, -K:]
right = sum(one.score >= scores[0] - 1e-6 for scores, found in zip(best, answers) for one in found)
later = sorted(seconds[QUERIES:])
print(json.dumps({"open": opened, "first": first, "median": later[QUERIES // 2], "slowest": later[-1],
                  "recall": 100 * right / (QUERIES * K), "memory": memory}))
"""


def bench_kept_index(images: int) -> list[Measured]:
    """Build the search of a simulated index, and search in it; with vectors of `WIDTH` values.

    The index takes some 1.3 kB an image in the folder for temporary files (TMPDIR). Vectors are noisy copies of
    `CONCEPTS` centers, and so are the queries.

    Raises:
        WorkError: the disk is full, or the search failed.
    """
    with tempfile.TemporaryDirectory(prefix="vlp-bench-index-") as name:
        manifest = simulate_kept_index(Path(name), images)
        started = time.perf_counter()
        _build(Path(name), manifest)
        build = time.perf_counter() - started
        done = subprocess.run([sys.executable, "-c", SEARCH, name], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise WorkError(f"The search in an index of {images} images failed; see the message above.")
    found = json.loads(done.stdout.splitlines()[-1])
    lines = (
        (f"build the search over {images:,} images", build, "s"),
        ("peak memory of that", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "GiB"),
        ("open", found["open"] * 1000, "ms"),
        ("first answer", found["first"] * 1000, "ms"),
        ("answer, median", found["median"] * 1000, "ms"),
        ("answer, slowest", found["slowest"] * 1000, "ms"),
        (f"recall of the {K} nearest", found["recall"], "%"),
        ("memory with mapped files", found["memory"] / 2**30, "GiB"),
    )
    peak = found["memory"] / 2**30
    return [Measured(what, value, None, unit, None, "-", peak, 0.0) for what, value, unit in lines]


def make_vectors(count: int, seed: int) -> np.ndarray:
    """Unit vectors float32 [count, WIDTH]; the centers do not depend on the seed."""
    rng = np.random.default_rng((1, seed))
    vectors = _centers()[rng.integers(0, CONCEPTS, count)]
    vectors += (NOISE / np.sqrt(WIDTH)) * rng.standard_normal((count, WIDTH), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@lru_cache(maxsize=1)
def _centers() -> np.ndarray:
    """Unit vectors float32 [CONCEPTS, WIDTH]."""
    centers = np.random.default_rng(0).standard_normal((CONCEPTS, WIDTH), np.float32)
    return centers / np.linalg.norm(centers, axis=1, keepdims=True)


def simulate_kept_index(folder: Path, images: int) -> Manifest:
    """Write the parts of an index of images that do not exist, without thumbnails."""
    manifest = Manifest(model=IndexModel("none", "none", WIDTH))
    (folder / "neighbors").mkdir()
    with Progress("images", images, quiet=images <= PART) as bar:
        for start in range(0, images, PART):
            numbers = range(start, min(start + PART, images))
            rows = [
                IndexedImage(Place(f"{n:09d}", f"/none/{n // 10_000:06d}.tar", "1 1", 512), None, 1, 1) for n in numbers
            ]
            manifest.parts.append(f"{start:012d}")
            manifest.rows.append(len(rows))
            write_part(part_path(folder, manifest.parts[-1]), rows, make_vectors(len(rows), seed=2 + start))
            bar.add("simulate", len(rows))
    return manifest


def _build(folder: Path, manifest: Manifest) -> None:
    rows = Rows(open_files(folder, manifest), manifest.starts)
    images = int(manifest.starts[-1])
    with Progress("images", images, quiet=images <= PART) as bar:
        update_neighbors(folder, manifest, rows.read, WIDTH, bar.add)
    write_manifest(folder, manifest)
