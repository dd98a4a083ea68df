"""How fast a Hugging Face data set in parquet files is read, beside a plain `datasets` loader of the same work."""

import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from vlp.bench.caption import Size
from vlp.bench.reading import BUFFER, CROP, plain_image
from vlp.bench.timing import Measured, Work, compare
from vlp.bench.train import MAX_TOKENS, bench_examples
from vlp.config import DataConfig, SourceConfig
from vlp.data.loader import training_loader
from vlp.data.open_dataset import open_dataset
from vlp.data.shards import iterate_samples

ROWS_PER_FILE = 64
ROWS_PER_GROUP = 8


def bench_dataset(size: Size, batch: int, batches: int, repeats: int, shards: str) -> Measured:
    """Read, decode, crop and flip the images of shards, copied to parquet files, in one process."""
    with _parquet_files(shards) as folder:
        data = DataConfig(
            [SourceConfig(dataset=folder)], "streamed", 0, shuffle_buffer=BUFFER, max_tokens=MAX_TOKENS, augment=CROP
        )
        stream = iter(training_loader(data, size.image_size, bench_examples(size.vocabulary), batch))

        def ours() -> None:
            for _ in range(batches):
                next(stream)

        plain = _plain_loader(folder, size.image_size, batch, batches)
        line = compare("streamed, parquet", "images/s", batch * batches, "uint8", ours, lambda: plain, repeats)
        return replace(line, what="streamed, parquet; datasets")


def _plain_loader(folder: str, image_size: int, batch: int, batches: int) -> Work:
    """Batches of the rows that `datasets` streams, which Pillow decodes and crops; nothing is shuffled."""
    rng, rows = random.Random(0), _plain_rows(folder)

    def read() -> torch.Tensor:
        return torch.stack([plain_image(next(rows)["image"]["bytes"], image_size, rng) for _ in range(batch)])

    return lambda: [read() for _ in range(batches)]


def _plain_rows(folder: str) -> Iterator[dict[str, Any]]:
    rows = open_dataset(folder, "train").rows
    while True:
        yield from rows


@contextmanager
def _parquet_files(shards: str) -> Iterator[str]:
    """A folder of parquet files with the images and texts of shards."""
    with tempfile.TemporaryDirectory() as folder:
        samples = [(sample.image, (sample.captions or [""])[0]) for sample in iterate_samples(shards)]
        for start in range(0, len(samples), ROWS_PER_FILE):
            part = samples[start : start + ROWS_PER_FILE]
            images = [{"bytes": image, "path": None} for image, _ in part]
            table = pa.table({"image": images, "text": [text for _, text in part]})
            path = f"{folder}/train-{start // ROWS_PER_FILE:05d}.parquet"
            pq.write_table(table, path, row_group_size=ROWS_PER_GROUP, compression="none")
        yield folder
