"""Images with all their reference captions: the examples of self-critical training."""

import random
from dataclasses import dataclass

from vlp.data.bad_samples import NO_TEXT, FilteredSampleError
from vlp.data.batch import DeviceBatch
from vlp.data.chunk import Chunk
from vlp.data.shards import Sample
from vlp.data.transforms import clean_caption


@dataclass
class ReferenceBatch(DeviceBatch):
    """Images with their reference captions.

    Attributes:
        references: of each image, at least one.
    """

    references: list[list[str]]


class ReferenceExamples:
    """All captions of each image."""

    images = 1
    texts = 1
    label = None

    def draw(self, sample: Sample, rng: random.Random) -> list[str]:
        """The sample's own captions.

        Raises:
            FilteredSampleError: it has none.
        """
        usable = usable_references(sample)
        if not usable:
            raise FilteredSampleError(NO_TEXT)
        return usable

    def batch(self, chunk: Chunk) -> ReferenceBatch:
        """The images with their references."""
        return ReferenceBatch(chunk.images, chunk.keys, chunk.drawn)


def usable_references(sample: Sample) -> list[str]:
    """The captions of a sample that have words."""
    return [caption for caption in sample.captions if clean_caption(caption)]
