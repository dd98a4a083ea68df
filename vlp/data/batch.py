"""What the loaders give out: batches of images with their tokenized captions."""

from dataclasses import dataclass, field, fields, replace
from typing import Self

import torch
from torch import Tensor

from vlp.transfers import to_device


@dataclass
class DeviceBatch:
    """What the batches of all tasks have in common.

    Attributes:
        images: uint8 [batch, 3, size, size], or [batch, 2, 3, size, size] where samples are pairs.
        keys: of each sample, for people.
    """

    images: Tensor
    keys: list[str]

    def to(self, device: torch.device) -> Self:
        """The batch with its tensors on a device.

        The host waits for none of them but for images that are not page-locked (`data.pin_memory`).
        """
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "images"}
        tensors = {name: to_device(value, device) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, images=self.images.to(device, non_blocking=True), **tensors)


@dataclass
class Batch(DeviceBatch):
    """Images with one or several captions each; the captions of an image are adjacent and in the order of the images.

    Attributes:
        text_ids, text_mask: int64 and bool [texts, tokens]; ids begin with [CLS].
        text_hashes: int64 [texts]; equal where the cleaned captions are equal.
        image_hashes: int64 [batch]; equal where shard and key, or data set and `Sample.image_id`, are equal.
        texts: the cleaned captions, for people.
        image_index: int64 [texts], the image of each caption; None where all images have equally many.
        captioned: bool [batch], False for an image that has no caption and a wrong text in its place; None: all have.
        wrong_ids, wrong_mask: int64 and bool [wrong, tokens], wrong texts of images beside those; ids begin with [ENC].
        wrong_images: int64 [wrong], their images. These three are None where there are none.
        lengths: the tokens of each caption, for the host; None where it has not counted them.
    """

    text_ids: Tensor
    text_mask: Tensor
    text_hashes: Tensor
    image_hashes: Tensor
    texts: list[str]
    image_index: Tensor | None = None
    captioned: Tensor | None = None
    wrong_ids: Tensor | None = None
    wrong_mask: Tensor | None = None
    wrong_images: Tensor | None = None
    lengths: list[int] | None = None

    def tokens(self, first: int = 0, last: int | None = None) -> int | None:
        """The tokens of all captions from position `first` to before `last`; None where the host does not know it."""
        if self.lengths is None:
            return None
        return sum(max(0, min(length, last or length) - first) for length in self.lengths)


@dataclass
class EvaluationBatch:
    """Images uint8 [batch, 3, size, size] with all their captions, keys and JSON facts, in the shards' order.

    Where samples are pairs, images are [batch, 2, 3, size, size].
    `number` is that of the batch in the shards, and `skipped` counts the samples by reason that are missing in it.
    """

    images: Tensor
    captions: list[list[str]]
    keys: list[str]
    infos: list[dict]
    number: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
