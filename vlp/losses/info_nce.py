"""InfoNCE, the symmetric softmax loss of CLIP (Radford et al. 2021, section 2.3), over the batch of all processes."""

import torch
from torch import Tensor

from vlp.distributed import rank
from vlp.losses.exchange import gather_with_gradient
from vlp.losses.parts import in_parts


def info_nce(images: Tensor, texts: Tensor, temperature: Tensor) -> Tensor:
    """The mean of the cross-entropies of images among all texts, and of texts among all images.

    Each process compares its own rows with the columns of all processes, and gradients flow into both. So the mean of
    the losses over processes, and its gradient, are those of one process with the whole batch. Where an image has
    several texts, each is its positive with an equal share of the target.

    Args:
        images: float32 unit vectors [images, embed_dim] of this process, as many in each process.
        texts: float32 unit vectors [images * count, embed_dim]; the texts of an image are adjacent.
        temperature: scalar that divides the cosines, with gradient.
    """
    count = len(texts) // len(images)
    own = torch.arange(len(images), device=images.device) + rank() * len(images)
    their_texts = own[:, None] * count + torch.arange(count, device=images.device)  # [images, count]
    all_images, all_texts = gather_with_gradient(images), gather_with_gradient(texts)
    by_image = softmax_loss(images, all_texts, their_texts, temperature)
    by_text = softmax_loss(texts, all_images, own.repeat_interleave(count)[:, None], temperature)
    return (by_image + by_text) / 2


def softmax_loss(rows: Tensor, columns: Tensor, positives: Tensor, temperature: Tensor) -> Tensor:
    """The mean over rows of the cross-entropy against a uniform target over each row's positive columns.

    Similarities are computed for some rows at a time, so that they never take rows x columns of memory.

    Args:
        rows, columns: float32 [rows, embed_dim] and [columns, embed_dim].
        positives: int64 [rows, count], columns.
        temperature: scalar.
    """

    def part(start: int, stop: int) -> Tensor:
        similarities = rows[start:stop] @ columns.T / temperature  # [some rows, columns]
        true = similarities.gather(1, positives[start:stop]).mean(dim=1)
        return (similarities.logsumexp(dim=1) - true).sum()

    return torch.stack(in_parts(part, len(rows))).sum() / len(rows)
