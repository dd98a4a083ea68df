"""What classification learns from: images with the number of their class."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from vlp.data.batch import DeviceBatch
from vlp.data.chunk import Chunk
from vlp.data.class_names import CLASS_KEY, read_class
from vlp.data.shards import Sample


@dataclass
class LabelBatch(DeviceBatch):
    """Images with a class each.

    Attributes:
        labels: int64 [batch].
    """

    labels: Tensor


class LabelExamples:
    """The class of each image."""

    images = 1
    texts = 1

    def __init__(self, classes: int, label: str = ""):
        """`label` is the key of the class in the JSON of samples, or the column of data sets; "": see `DataConfig`."""
        self.classes, self.label = classes, label

    def draw(self, sample: Sample, rng: random.Random) -> int:
        """The number of the sample's class.

        Raises:
            BadSampleError: it has none, or one that does not exist.
        """
        return read_class(sample.info.get(self.label or CLASS_KEY), self.classes)

    def batch(self, chunk: Chunk) -> LabelBatch:
        """The images with their classes."""
        return LabelBatch(chunk.images, chunk.keys, torch.tensor(chunk.drawn))
