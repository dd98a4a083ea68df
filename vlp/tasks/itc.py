"""ITC of this process's rows against the columns of all processes and the queue, some rows at a time.

Similarities of a part of the rows are made, used and forgotten, and made again for the gradient: memory grows with the
number of columns, not with rows times columns.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vlp.losses.matching import draw_hard_negatives, uniform_noise
from vlp.losses.parts import in_parts
from vlp.losses.soft_targets import contrastive_loss, contrastive_targets


@dataclass
class Rows:
    """The images that are compared with all texts, or the texts that are compared with all images.

    Attributes:
        features, twin: float32 [rows, embed_dim], of the model and of its momentum twin; without a twin both are equal.
        numbers: int64 [rows], of each row among the rows of all processes; they decide the random draws.
        images: int64 [rows], the number of each row's image in the batch of all processes.
        image_hashes: int64 [rows], equal where images are.
        text_hashes: int64 [rows, texts], of a text, or of all texts of an image; equal where texts are.
        weights: float32 [rows], of each row in the loss; None: 1.
    """

    features: Tensor
    twin: Tensor
    numbers: Tensor
    images: Tensor
    image_hashes: Tensor
    text_hashes: Tensor
    weights: Tensor | None = None

    def part(self, start: int, stop: int) -> "Rows":
        """Some of the rows."""
        weights = None if self.weights is None else self.weights[start:stop]
        names = [name for name in self.__dataclass_fields__ if name != "weights"]
        return Rows(*(getattr(self, name)[start:stop] for name in names), weights=weights)


@dataclass
class Columns:
    """What the rows are compared with: the batch of all processes, then the queue.

    Attributes:
        features: float32 [columns, embed_dim], of the momentum twin; without a twin the model's, with gradient.
        present: bool [columns], False where there is nothing: where the queue is still empty, and in the places of
            texts that an image lacks.
        images: int64 [columns], the number of each column's image in the batch of all processes; -1 in the queue.
        image_hashes: int64 [columns].
        text_hashes: int64 [batch, texts], for the batch only.
    """

    features: Tensor
    present: Tensor
    images: Tensor
    image_hashes: Tensor
    text_hashes: Tensor


class Draw(NamedTuple):
    """How the negatives of each row are drawn.

    Attributes:
        seed: of the random numbers.
        count: of a row.
        hardness: 1 draws from the softmax of similarities, 0 draws each column with the same probability; between
            them similarities are multiplied by it.
    """

    seed: int
    count: int = 1
    hardness: float = 1.0


def contrast(
    rows: Rows, columns: Columns, temperature: Tensor, alpha: float, same_image: bool, draw: Draw
) -> tuple[Tensor, Tensor, Tensor]:
    """The ITC loss of one direction, and hard negatives from the batch for each row.

    Args:
        temperature: scalar, with gradient.
        alpha: the weight of the twin's similarities in the targets.
        same_image: whether all columns of a row's image are its positives, also those of its other visits in the batch
            and in the queue, or only those of this visit.
        draw: of the negatives.

    Returns:
        The mean loss over rows; distinct negatives int64 [rows, count], columns of the batch; bool [rows, count], False
        where there is none.
    """
    count = len(rows.numbers)

    def part(start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        loss, drawn, has = _contrast(rows.part(start, stop), columns, temperature, alpha, same_image, draw)
        return loss * ((stop - start) / count), drawn, has

    losses, drawn, found = zip(*in_parts(part, count), strict=True)
    return torch.stack(losses).sum(), torch.cat(drawn), torch.cat(found)


def _contrast(
    rows: Rows, columns: Columns, temperature: Tensor, alpha: float, same_image: bool, draw: Draw
) -> tuple[Tensor, Tensor, Tensor]:
    everyone = len(columns.text_hashes)
    if same_image:
        positives = rows.image_hashes[:, None] == columns.image_hashes
    else:
        positives = rows.images[:, None] == columns.images
    absent = ~columns.present
    similarities = (rows.features @ columns.features.T / temperature).masked_fill(absent, float("-inf"))
    with torch.no_grad():
        twin = (rows.twin @ columns.features.T / temperature).masked_fill(absent, float("-inf"))
        targets = contrastive_targets(twin, positives & columns.present, alpha)
        # Two samples with the same image or the same caption are not negatives of each other.
        forbidden = (rows.image_hashes[:, None] == columns.image_hashes[:everyone]) | absent[:everyone]
        for mine in rows.text_hashes.unbind(1):
            for theirs in columns.text_hashes.unbind(1):
                forbidden |= mine[:, None] == theirs
        noise = uniform_noise(draw.seed, rows.numbers, everyone)
        likely = draw.hardness * similarities[:, :everyone]
        drawn, found = draw_hard_negatives(likely, forbidden, noise, draw.count)
    return contrastive_loss(similarities, targets, rows.weights), drawn, found
