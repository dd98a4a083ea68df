"""SigLIP's sigmoid loss: each pair of image and text is a yes-or-no question (Zhai et al. 2023, arXiv 2303.15343)."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vlp.distributed import world_size
from vlp.losses.exchange import pass_on
from vlp.losses.parts import row_parts

START_TEMPERATURE, START_BIAS = 0.1, -10.0  # section 3.2: t' = log 10, b = -10


class _SigmoidLoss(torch.autograd.Function):
    """The loss and its gradients in one pass.

    The texts travel around the ring of processes with their gradients (section 3.3), so a process holds those of two
    processes at most, and the backward pass sends nothing.
    """

    @staticmethod
    def forward(context: Any, images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        count, pairs = len(texts) // len(images), len(texts)
        loss, d_scale, d_bias = (torch.zeros((), device=images.device) for _ in range(3))
        d_images = torch.zeros_like(images)
        travelling = torch.cat([texts, torch.zeros_like(texts)], dim=1)  # [texts, vector and its gradient]
        for turn in range(world_size()):
            here, d_here = travelling.chunk(2, dim=1)  # views
            for start, stop in row_parts(len(images)):
                cosines = images[start:stop] @ here.T  # [some images, texts]
                logits = cosines * scale + bias
                gradient = logits.sigmoid()  # of the loss of a negative pair with respect to its logit
                loss += F.softplus(logits).sum()
                if turn == 0:
                    # A positive pair has -log sigmoid(x) = softplus(x) - x instead of softplus(x).
                    rows = torch.arange(stop - start, device=images.device).repeat_interleave(count)
                    columns = torch.arange(start * count, stop * count, device=images.device)
                    loss -= logits[rows, columns].sum()
                    gradient[rows, columns] -= 1
                d_images[start:stop] += gradient @ here * scale
                d_here += gradient.T @ images[start:stop] * scale
                d_scale += (gradient * cosines).sum()
                d_bias += gradient.sum()
            travelling = pass_on(travelling)
        d_texts = travelling.chunk(2, dim=1)[1]  # home again after as many turns as there are processes
        context.save_for_backward(*(one / pairs for one in (d_images, d_texts, d_scale, d_bias)))
        return loss / pairs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return tuple(gradient * one for one in context.saved_tensors)


def sigmoid_loss(images: Tensor, texts: Tensor, temperature: Tensor, bias: Tensor) -> Tensor:
    """Equation 1: the sum over all images and texts of -log sigmoid(z (cosine / temperature + bias)), per text.

    z is 1 where the text is one of the image's, and -1 elsewhere. The mean of the losses over processes, and its
    gradient, are those of one process with the whole batch. Memory grows with the rows of a part and the texts of one
    process.

    Args:
        images: float32 unit vectors [images, embed_dim] of this process, as many in each process.
        texts: float32 unit vectors [images * count, embed_dim]; the texts of an image are adjacent.
        temperature, bias: scalars, with gradient.
    """
    return _SigmoidLoss.apply(images, texts, 1 / temperature, bias)
