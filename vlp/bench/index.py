"""`vlp bench index`: start-up and memory of indexed reading, with a simulated index of any number of samples."""

import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from vlp.bench.timing import Measured
from vlp.data.cache import file_stamp
from vlp.data.index_writer import write_folder
from vlp.data.shard_index import COLUMNS, Keys, ShardIndex, scan_shard
from vlp.data.shard_writer import ShardWriter
from vlp.errors import WorkError
from vlp.log import Progress

SAMPLES_PER_SHARD = 10_000  # as img2dataset writes
SMALL = 10_000  # samples of the index that a worker's memory is compared with
# A process of its own, so that memory and start-up are those of a rank. It reads one batch, then only positions.
RANK = """
import json, sys, time
import numpy as np, psutil
from vlp.bench.train import bench_examples
from vlp.config import DataConfig, SourceConfig
from vlp.data.indexed_loader import IndexedLoader
folder, workers = sys.argv[1], 2
started = time.perf_counter()
data = DataConfig([SourceConfig(f"{folder}/shards/*.tar", index=f"{folder}/index")], workers=workers)
loader = IndexedLoader(data, 32, bench_examples(64), 256)
next(batches := iter(loader))
first_batch = time.perf_counter() - started
rank = psutil.Process()
private = [worker.memory_full_info().uss for worker in rank.children()]
positions = np.random.default_rng(0).integers(0, loader.epoch_size, 100) // 256 * 256
count, began = 0, time.perf_counter()
for start in [*positions.tolist(), *range(0, 256 * 400, 256)]:
    for number in loader.order.numbers(np.arange(start, start + 256)).tolist():
        index, row, _ = loader.dataset.find(number)
        index.places(row)
        count += 1
seconds = time.perf_counter() - began
memory = rank.memory_info().rss
batches.close()
print(json.dumps({"first_batch": first_batch, "rank": memory, "worker": max(private), "rate": count / seconds}))
"""


def bench_index(samples: int) -> list[Measured]:
    """Start a rank with two workers on an index of `samples` samples in shards of 10,000.

    The index takes 41 bytes a sample in the folder for temporary files (TMPDIR). All its shards are links to one small
    real shard.

    Raises:
        WorkError: the disk is full, or the rank failed.
    """
    large, small = _measure(samples), _measure(SMALL)
    lines = (
        ("start to first batch", large["first_batch"], "s"),
        ("memory of a rank", large["rank"] / 2**30, "GiB"),
        ("the same with 10,000 samples", small["rank"] / 2**30, "GiB"),
        ("more memory of a worker than with 10,000", (large["worker"] - small["worker"]) / 2**30, "GiB"),
        ("sample numbers and positions", large["rate"], "samples/s"),
    )
    return [Measured(what, value, None, unit, None, "-", large["rank"] / 2**30, 0.0) for what, value, unit in lines]


def _measure(samples: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="vlp-bench-index-") as folder:
        simulate_index(Path(folder), samples)
        done = subprocess.run([sys.executable, "-c", RANK, folder], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise WorkError(f"Reading from an index of {samples} samples failed; see the message above.")
    return json.loads(done.stdout.splitlines()[-1])


def simulate_index(folder: Path, samples: int) -> None:
    """Write FOLDER/index, and FOLDER/shards with links to one real shard, whose samples every shard repeats."""
    with ShardWriter(str(folder / "real")) as writer:
        for row in range(64):
            data = io.BytesIO()
            Image.new("RGB", (32, 32), (row, row, row)).save(data, "JPEG")
            writer.write(f"{row:09d}", data.getvalue(), "jpg", "w5 w6 w7", {})
    real = scan_shard(str(folder / "real/00000.tar"))
    members = np.resize(real.members, (SAMPLES_PER_SHARD, COLUMNS))
    keys = Keys.of([f"{row:09d}" for row in range(SAMPLES_PER_SHARD)])
    stamp, shards = file_stamp(real.path) or "", -(-samples // SAMPLES_PER_SHARD)
    (folder / "shards").mkdir()
    (folder / "index").mkdir()

    def indexes() -> Iterator[ShardIndex]:
        for number in range(shards):
            path = folder / "shards" / f"{number:06d}.tar"
            path.symlink_to(real.path)
            rows = min(SAMPLES_PER_SHARD, samples - number * SAMPLES_PER_SHARD)
            yield ShardIndex(str(path), Keys(keys.text[: 9 * rows], keys.ends[:rows]), members[:rows], [], stamp)

    with Progress("shards", shards, quiet=shards == 1) as bar:
        write_folder(indexes(), folder / "index", bar.add)
