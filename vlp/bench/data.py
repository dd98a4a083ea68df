"""`vlp bench data`: training images that one worker reads per second, beside plain webdataset, datasets and LAVIS."""

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from vlp.bench.caption import Size
from vlp.bench.dataset_reading import bench_dataset
from vlp.bench.peers import PeerProcess
from vlp.bench.reading import bench_reading
from vlp.bench.timing import Measured, compare
from vlp.bench.train import MAX_TOKENS, bench_examples
from vlp.config import DataConfig, SourceConfig
from vlp.data.loader import training_loader
from vlp.data.shard_index import expand_shards
from vlp.data.shard_writer import ShardWriter

PHOTOS = 128
SAMPLES_PER_SHARD = 8  # so many shards that each stream reads whole ones
BATCHES = 8  # per measurement


def bench_data(size: Size, batch: int, peers: bool, repeats: int, shards: str) -> list[Measured]:
    """Read, decode, crop, flip and augment (RandAugment) images in one process with one thread, like a loader worker.

    Further lines leave out RandAugment, and compare each way to read with a plain loader; see `bench_reading` and
    `bench_dataset`.

    Args:
        batch: images in each of the eight batches of a measurement.
        shards: JPEG shards; if empty, 128 generated images of 640 x 480 that are as large as photos at quality 90.

    Raises:
        UserError: no shard matches, or the peer was requested and is not installed.
    """
    with nullcontext(shards) if shards else photos() as paths:
        settings = {"image_size": size.image_size, "batch": batch, "batches": BATCHES, "shards": expand_shards(paths)}
        with PeerProcess("lavis_data", settings) if peers else nullcontext() as peer, _one_thread():
            data = DataConfig([SourceConfig(paths)], workers=0, max_tokens=MAX_TOKENS)
            loader = training_loader(data, size.image_size, bench_examples(size.vocabulary), batch)
            batches = iter(loader)

            def ours() -> None:
                for _ in range(BATCHES):
                    next(batches)

            make_peer = (lambda peer=peer: peer) if peer else None
            line = compare("reading shards", "images/s", batch * BATCHES, "uint8", ours, make_peer, repeats)
            line = replace(line, peer_peak_memory_gib=peer.peak_memory_gib if peer else None)
            lines = bench_reading(size, batch, BATCHES, repeats, paths)
            return [line, *lines, bench_dataset(size, batch, BATCHES, repeats, paths)]


@contextmanager
def photos() -> Iterator[str]:
    """Shards of images that are as expensive to decode as photos: smooth shapes with fine noise."""
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        with ShardWriter(f"{folder}/photos", SAMPLES_PER_SHARD) as writer:
            for number in range(PHOTOS):
                coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
                smooth = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC), dtype=np.float32)
                noise = random.normal(0, 4, (480, 640, 1))
                data = io.BytesIO()
                Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8)).save(data, "JPEG", quality=90)
                writer.write(f"{number:05d}", data.getvalue(), "jpg", "w5 w6 w7", {})
        yield f"{folder}/photos/*.tar"


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
