"""A shard's images as the scorers take them, batch by batch; the next batch is decoded while one is scored."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import torch
from PIL import Image
from torch import Tensor

from vlp.capfilt.scorers import Scorers
from vlp.capfilt.transformers_captioner import TransformersCaptioner
from vlp.data.bad_samples import BadSample, BadSampleError, BadSamples
from vlp.data.image_decoding import EncodedImage, shrink_for
from vlp.data.shards import Sample, iterate_samples
from vlp.data.transforms import evaluation_image

DECODERS = 4  # threads: Pillow works outside of Python's lock


@dataclass
class ScoringBatch:
    """Samples of one shard whose images are readable.

    Attributes:
        sizes: width and height of the stored images, in pixels.
        uint8: [samples, 3, size, size] for each `size` that a BLIP model takes.
        clip: float32 [samples, 3, size, size] for each open_clip model.
        whole: the pictures themselves, where a captioner of `transformers` needs them.
    """

    samples: list[Sample]
    sizes: list[tuple[int, int]]
    uint8: dict[int, Tensor]
    clip: list[Tensor]
    whole: list[Image.Image]


@dataclass
class _Decoded:
    """One image, as in `Batch`."""

    size: tuple[int, int]
    uint8: dict[int, Tensor]
    clip: list[Tensor]
    whole: Image.Image | None


def read_batches(shard: str, scorers: Scorers, batch_size: int, bad: BadSamples) -> Iterator[ScoringBatch]:
    """The samples of a shard in order, `batch_size` at a time, bad ones left out and given to `bad`.

    At most two batches of images are held at once, whatever the size of the shard.

    Raises:
        WorkError: the share of bad samples is above `bad`'s limit.
    """
    samples = iterate_samples([shard], bad)
    with ThreadPoolExecutor(DECODERS) as pool:

        def start() -> list[tuple[Sample, Future[_Decoded]]]:
            return [(sample, pool.submit(_decode, sample.image, scorers)) for sample in islice(samples, batch_size)]

        following = start()
        while following:
            current, following = following, start()
            if batch := _collect(current, bad):
                yield batch


def _decode(data: bytes, scorers: Scorers) -> _Decoded:
    sizes = {model.image_size for model in scorers.models}
    whole = any(isinstance(captioner, TransformersCaptioner) for captioner in scorers.captioners)
    largest = max([*sizes, *(scorer.image_size for scorer in scorers.clips)])
    stored = EncodedImage(data)
    pixels = stored.pixels(1 if whole else shrink_for(stored.width, stored.height, largest))
    image = Image.fromarray(pixels)
    return _Decoded(
        (stored.width, stored.height),
        {size: torch.as_tensor(evaluation_image(pixels, size)) for size in sizes},
        [scorer.prepare(image) for scorer in scorers.clips],
        image if whole else None,
    )


def _collect(started: list[tuple[Sample, "Future[_Decoded]"]], bad: BadSamples) -> ScoringBatch | None:
    """The batch, when its images are decoded; None where none could be."""
    samples, decoded = [], []
    for sample, future in started:
        try:
            decoded.append(future.result())
        except BadSampleError as error:
            bad.add(BadSample(sample.shard, sample.key, error.reason), counted=True)
            continue
        samples.append(sample)
    if not samples:
        return None
    return ScoringBatch(
        samples,
        [one.size for one in decoded],
        {size: torch.stack([one.uint8[size] for one in decoded]) for size in decoded[0].uint8},
        [torch.stack(images) for images in zip(*(one.clip for one in decoded), strict=True)],
        [one.whole for one in decoded if one.whole is not None],
    )
