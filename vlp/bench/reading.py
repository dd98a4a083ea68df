"""How fast shards are read, from files and from an S3 server, beside a plain webdataset loader of the same work."""

import io
import itertools
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import fsspec
import numpy as np
import torch
from PIL import Image

from vlp.bench.caption import Size
from vlp.bench.timing import Measured, Work, compare
from vlp.bench.train import MAX_TOKENS, bench_examples
from vlp.config import AugmentConfig, DataConfig, SourceConfig
from vlp.data.loader import training_loader
from vlp.data.shard_index import expand_shards
from vlp.errors import WorkError
from vlp.remote import filesystem

CROP = AugmentConfig(operations=0)  # random crop and flip
BUFFER = 128  # samples that ours shuffles
BUCKET = "s3://vlp-bench"
STARTS_WITHIN = 30.0  # seconds


def bench_reading(size: Size, batch: int, batches: int, repeats: int, shards: str) -> list[Measured]:
    """Read, decode, crop and flip in one process, like a loader worker; a line for each way to read.

    The line for S3 needs moto, whose server it starts, and curl, which the plain loader calls; else it is left out.
    """
    paths = expand_shards(shards)
    plain = plain_loader(paths, size.image_size, batch, batches)
    lines = []
    for reading in ("indexed", "streamed"):
        ours = our_loader(shards, size, batch, batches, reading)
        lines.append(_line(f"{reading}, local files", batch * batches, ours, plain, repeats))
    if shutil.which("curl") and shutil.which("moto_server"):
        with _s3_server(paths) as (urls, links):
            ours = our_loader(urls, size, batch, batches, "streamed")
            plain = plain_loader([f"pipe:curl -sf '{link}'" for link in links], size.image_size, batch, batches)
            lines.append(_line("streamed, S3 server", batch * batches, ours, plain, repeats))
    return lines


def our_loader(shards: str | list[str], size: Size, batch: int, batches: int, reading: Any) -> Work:
    """Batches of our loader without RandAugment, which the plain loader lacks."""
    data = DataConfig([SourceConfig(shards)], reading, 0, shuffle_buffer=BUFFER, max_tokens=MAX_TOKENS, augment=CROP)
    stream = iter(training_loader(data, size.image_size, bench_examples(size.vocabulary), batch))
    return lambda: [next(stream) for _ in range(batches)]


def plain_loader(paths: list[str], image_size: int, batch: int, batches: int) -> Work:
    """Batches of webdataset's samples, which Pillow decodes and crops; nothing is shuffled."""
    rng = random.Random(0)
    stream = _plain_samples(paths)

    def read() -> torch.Tensor:
        return torch.stack([plain_image(next(stream)["jpg"], image_size, rng) for _ in range(batch)])

    return lambda: [read() for _ in range(batches)]


def _plain_samples(paths: list[str]) -> Iterator[dict[str, Any]]:
    """The samples of shards without end, by webdataset's tar reader and grouping."""
    from webdataset.gopen import gopen
    from webdataset.tariterators import group_by_keys, tar_file_expander

    for path in itertools.cycle(paths):
        with closing(gopen(path)) as file:  # `WebDataset` leaves files open
            yield from group_by_keys(tar_file_expander([{"url": path, "stream": file}]))


def plain_image(data: bytes, size: int, rng: random.Random) -> torch.Tensor:
    """A random crop of 20% to 100% of the area and a flip, as torchvision makes them of Pillow's images: uint8."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    area, ratio = picture.width * picture.height * rng.uniform(0.2, 1.0), rng.uniform(3 / 4, 4 / 3)
    width = min(picture.width, round((area * ratio) ** 0.5))
    height = min(picture.height, round((area / ratio) ** 0.5))
    left, top = rng.randint(0, picture.width - width), rng.randint(0, picture.height - height)
    picture = picture.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def _line(what: str, count: int, ours: Work, plain: Work, repeats: int) -> Measured:
    line = compare(what, "images/s", count, "uint8", ours, lambda: plain, repeats)
    return replace(line, what=f"{what}; webdataset")


@contextmanager
def _s3_server(paths: list[str]) -> Iterator[tuple[list[str], list[str]]]:
    """Copies of shards on a server of this machine: their addresses, and links that need no credentials."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
    settings = {**dict.fromkeys(names[:2], "bench"), names[2]: "us-east-1"}
    settings["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log, mock.patch.dict(os.environ, settings):
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait_for(port)
            fsspec.get_filesystem_class("s3").clear_instance_cache()  # they keep the address of another server
            files, _ = filesystem(BUCKET)
            files.mkdir(BUCKET)
            for path in paths:
                files.put_file(path, f"{BUCKET}/{Path(path).name}")
            urls = [f"{BUCKET}/{Path(path).name}" for path in paths]
            yield urls, [files.sign(url, expiration=24 * 3600) for url in urls]
        finally:
            fsspec.get_filesystem_class("s3").clear_instance_cache()
            server.terminate()
            server.wait()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < deadline:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise WorkError(f"moto's S3 server did not start within {STARTS_WITHIN:g} seconds; run the benchmark again.")
