"""Reads a shard's images in the forms that the scorers need, and decodes the next batch while one is scored."""

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
from vlp.data.score_tables import image_uid
from vlp.data.shard_stream import Digest, stream_samples
from vlp.data.shards import Sample, iterate_samples
from vlp.data.transforms import evaluation_image

DECODERS = 4  # threads; decoding and hashing release Python's global lock


@dataclass
class ScoringBatch:
    """Samples of one shard with their decoded images.

    Attributes:
        uids: of the images, see `image_uid`.
        sizes: width and height of the stored images, in pixels.
        uint8: [samples, 3, size, size] by image size, for the BLIP models.
        clip: float32 [samples, 3, size, size] for each open_clip model.
        full: the images at full size for `transformers` captioners; empty if there are none.
    """

    samples: list[Sample]
    uids: list[str]
    sizes: list[tuple[int, int]]
    uint8: dict[int, Tensor]
    clip: list[Tensor]
    full: list[Image.Image]


@dataclass
class _DecodedImage:
    """One image in the forms of `ScoringBatch`."""

    uid: str
    size: tuple[int, int]
    uint8: dict[int, Tensor]
    clip: list[Tensor]
    full: Image.Image | None


def read_batches(
    shard: str, scorers: Scorers, batch_size: int, bad: BadSamples, digest: Digest | None = None
) -> Iterator[ScoringBatch]:
    """The samples of a shard in order, `batch_size` at a time. Bad samples are left out and added to `bad`.

    Memory holds at most two batches of images. `digest` gets all bytes of the shard, which is then read in sequence.

    Raises:
        WorkError: the share of bad samples exceeds the limit of `bad`.
    """
    samples = iterate_samples([shard], bad) if digest is None else stream_samples(shard, bad, digest=digest)
    with ThreadPoolExecutor(DECODERS) as pool:

        def start() -> list[tuple[Sample, Future[_DecodedImage]]]:
            return [(sample, pool.submit(_decode, sample, scorers)) for sample in islice(samples, batch_size)]

        following = start()
        while following:
            current, following = following, start()
            if batch := _collect(current, bad):
                yield batch


def _decode(sample: Sample, scorers: Scorers) -> _DecodedImage:
    sizes = {model.image_size for model in scorers.models}
    full = any(isinstance(captioner, TransformersCaptioner) for captioner in scorers.captioners)
    largest = max([*sizes, *(scorer.image_size for scorer in scorers.clips)])
    stored = EncodedImage(sample.image)
    pixels = stored.pixels(1 if full else shrink_for(stored.width, stored.height, largest))
    image = Image.fromarray(pixels)
    return _DecodedImage(
        image_uid(sample.image, sample.info),  # here, as it takes milliseconds of a large file
        (stored.width, stored.height),
        {size: torch.as_tensor(evaluation_image(pixels, size)) for size in sizes},
        [scorer.prepare(image) for scorer in scorers.clips],
        image if full else None,
    )


def _collect(started: list[tuple[Sample, "Future[_DecodedImage]"]], bad: BadSamples) -> ScoringBatch | None:
    """Wait for the images of a batch; None if no image can be decoded."""
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
        [one.uid for one in decoded],
        [one.size for one in decoded],
        {size: torch.stack([one.uint8[size] for one in decoded]) for size in decoded[0].uint8},
        [torch.stack(images) for images in zip(*(one.clip for one in decoded), strict=True)],
        [one.full for one in decoded if one.full is not None],
    )
