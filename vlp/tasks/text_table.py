"""The texts of a batch as a table with equally many places for each image, which processes can exchange."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlp.data.batch import Batch


@dataclass
class TextTable:
    """Which place of the table each text takes. An image with fewer texts than places leaves its last places empty.

    Attributes:
        images: int64 [texts], the image of each text.
        places: int64 [texts], the place of each text: image x places of an image + number of the text in it.
        filled: bool [all places].
        source: int64 [all places], the text in each place; in an empty one the first text of its image.
        is_full: whether no place is empty.
    """

    images: Tensor
    places: Tensor
    filled: Tensor
    source: Tensor
    is_full: bool

    def spread(self, rows: Tensor) -> Tensor:
        """[texts, ...] -> [all places, ...]; an empty place holds the row of the image's first text."""
        return rows if self.is_full else rows.index_select(0, self.source)


def text_table(batch: Batch, each: int) -> TextTable:
    """The table of a batch, with `each` places for an image. The host does not wait for the device."""
    count, number, device = len(batch.text_ids), len(batch.images), batch.text_ids.device
    images = batch.image_index
    if images is None:
        images = torch.arange(number, device=device).repeat_interleave(count // number)
    starts = torch.searchsorted(images, torch.arange(number, device=device))  # the first text of each image
    texts = torch.arange(count, device=device)
    places = images * each + texts - starts[images]
    filled = torch.zeros(number * each, dtype=torch.bool, device=device)
    filled.index_fill_(0, places, True)  # setting items to a number would make the host wait
    source = starts.repeat_interleave(each)
    source[places] = texts
    return TextTable(images, places, filled, source, count == number * each)
