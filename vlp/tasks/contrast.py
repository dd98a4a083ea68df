"""ITC of this process's rows against the columns of all processes and the queue, some rows at a time.

Similarities of a part of the rows are made, used and forgotten, and made again for the gradient: memory grows with the
number of columns, not with rows times columns.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlp.losses.contrastive import contrastive_loss, contrastive_targets
from vlp.losses.matching import draw_hard_negatives, uniform_noise
from vlp.losses.parts import in_parts


@dataclass
class Rows:
    """The images that are compared with all texts, or the texts that are compared with all images.

    Attributes:
        features, twin: float32 [rows, embed_dim], of the model and of its momentum twin.
        own: int64 [rows], the column that belongs to each row.
        image_hashes, text_hashes: int64 [rows], equal where images or texts are.
    """

    features: Tensor
    twin: Tensor
    own: Tensor
    image_hashes: Tensor
    text_hashes: Tensor

    def part(self, start: int, stop: int) -> "Rows":
        """Some of the rows."""
        return Rows(*(getattr(self, name)[start:stop] for name in self.__dataclass_fields__))


@dataclass
class Columns:
    """What the rows are compared with: the batch of all processes, then the queue.

    Attributes:
        features: float32 [columns, embed_dim], of the momentum twin.
        present: bool [columns], False where the queue is still empty.
        image_hashes: int64 [columns].
        text_hashes: int64 [batch], for the batch only.
    """

    features: Tensor
    present: Tensor
    image_hashes: Tensor
    text_hashes: Tensor


def contrast(
    rows: Rows, columns: Columns, temperature: Tensor, alpha: float, same_image: bool, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The ITC loss of one direction, and a hard negative from the batch for each row.

    Args:
        temperature: scalar, with gradient.
        alpha: the weight of the twin's similarities in the targets.
        same_image: whether all columns of a row's image are its positives, or only its own column.
        seed: seeds the draw of negatives.

    Returns:
        The mean loss over rows; negatives int64 [rows], columns of the batch; bool [rows], False where there is none.
    """
    count = len(rows.own)

    def part(start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        loss, drawn, has = _contrast(rows.part(start, stop), columns, temperature, alpha, same_image, seed)
        return loss * ((stop - start) / count), drawn, has

    losses, negatives, found = zip(*in_parts(part, count), strict=True)
    return torch.stack(losses).sum(), torch.cat(negatives), torch.cat(found)


def _contrast(
    rows: Rows, columns: Columns, temperature: Tensor, alpha: float, same_image: bool, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    everyone = len(columns.text_hashes)
    if same_image:
        positives = rows.image_hashes[:, None] == columns.image_hashes
    else:
        positives = torch.arange(len(columns.present), device=rows.own.device) == rows.own[:, None]
    absent = ~columns.present
    similarities = (rows.features @ columns.features.T / temperature).masked_fill(absent, float("-inf"))
    with torch.no_grad():
        twin = (rows.twin @ columns.features.T / temperature).masked_fill(absent, float("-inf"))
        targets = contrastive_targets(twin, positives & columns.present, alpha)
        # Two samples with the same image or the same caption are not negatives of each other.
        equal = (rows.text_hashes[:, None] == columns.text_hashes) | (
            rows.image_hashes[:, None] == columns.image_hashes[:everyone]
        )
        noise = uniform_noise(seed, rows.own, everyone)
        negatives, found = draw_hard_negatives(similarities[:, :everyone], equal, noise)
    return contrastive_loss(similarities, targets), negatives, found
