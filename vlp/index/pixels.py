"""Decodes images and videos ahead of the model, in threads, and groups them into batches."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlp.data.bad_samples import BadSampleError, BadSamples
from vlp.data.image_decoding import EncodedImage, shrink_for
from vlp.data.image_encoding import small_jpeg
from vlp.data.transforms import evaluation_image
from vlp.data.video import load_frames
from vlp.index.places import Item, read_bytes

THREADS = 4  # decoding releases Python's global lock
THUMBNAIL = 192  # pixels of the longer side
QUALITY = 75  # of the thumbnails' JPEG


@dataclass
class Decoded:
    """An image or a video as the model takes it.

    Attributes:
        pixels: uint8 [1, 3, size, size], or [frames, 3, size, size] of a video.
        width, height: of the upright image, in pixels; of a video, of its frames at the model's size.
        thumbnail: JPEG; empty unless asked for.
    """

    item: Item
    pixels: np.ndarray
    width: int
    height: int
    thumbnail: bytes = b""


@dataclass
class ImageBatch:
    """Decoded images, or videos with equally many frames; `pixels` is uint8 [items, frames, 3, size, size]."""

    decoded: list[Decoded]
    pixels: Tensor
    frames: int


def decode(item: Item, size: int, frames: int, thumbnail: bool = False) -> Decoded:
    """Decode one image or video.

    Args:
        size: of the model's images, see `ImageSize`.
        frames: of a video.

    Raises:
        BadSampleError: it is missing or damaged.
        UserError: it is a video, and `av` is not installed.
    """
    if item.place.is_video:
        pixels = load_frames(item.place.path, frames, size)
        middle = pixels[frames // 2].transpose(1, 2, 0)
        return Decoded(item, pixels, size, size, small_jpeg(middle, THUMBNAIL, QUALITY) if thumbnail else b"")
    image = EncodedImage(read_bytes(item.place) if item.data is None else item.data)
    pixels = image.pixels(shrink_for(image.width, image.height, size))
    small = b""
    if thumbnail:
        largest = max(image.width, image.height)
        enough = max(pixels.shape) >= min(THUMBNAIL, largest)  # not so for models of small images
        small_pixels = pixels if enough else image.pixels(shrink_for(largest, largest, THUMBNAIL))
        small = small_jpeg(small_pixels, THUMBNAIL, QUALITY)
    return Decoded(item, evaluation_image(pixels, size)[None], image.width, image.height, small)


def read_batches(
    items: Iterable[Item], size: int, frames: int, batch_size: int, bad: BadSamples, thumbnails: bool = False
) -> Iterator[ImageBatch]:
    """Decode items in order, in batches of at most `batch_size` images or frames.

    Unreadable items are skipped, named in the log, and added to `bad`. The next batch is decoded while the caller works
    on one.

    Raises:
        UserError: an item is a video, and `av` is not installed.
    """
    decoded = _decode_ahead(items, partial(decode, size=size, frames=frames, thumbnail=thumbnails), batch_size, bad)
    for count, group in groupby(decoded, lambda one: len(one.pixels)):
        while batch := list(islice(group, max(1, batch_size // count))):
            yield ImageBatch(batch, torch.from_numpy(np.stack([one.pixels for one in batch])), count)


def _decode_ahead(items: Iterable[Item], work: "partial[Decoded]", ahead: int, bad: BadSamples) -> Iterator[Decoded]:
    waiting: deque[tuple[Item, Future[Decoded]]] = deque()
    items = iter(items)
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        try:
            while True:
                for item in islice(items, ahead - len(waiting)):
                    waiting.append((item, pool.submit(work, item)))
                if not waiting:
                    return
                item, future = waiting.popleft()
                try:
                    one = future.result()
                except BadSampleError as error:
                    bad.add(item.place.bad(error.reason))
                    continue
                bad.seen()
                yield one
        finally:
            for _, future in waiting:
                future.cancel()


def picture(data: bytes | Path) -> Image.Image:
    """An encoded image or its file at full size, upright, RGB; raises BadSampleError if it is unreadable."""
    try:
        return Image.fromarray(EncodedImage(data.read_bytes() if isinstance(data, Path) else data).pixels())
    except OSError:
        raise BadSampleError("unreadable file") from None
