"""Texts without their padding: captions are half as long as the longest of their batch, and so is most of the work."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

WORTH = 0.9  # share of real tokens above which moving rows costs more than it saves


@dataclass
class Unpadded:
    """Where the tokens of padded texts stand.

    Attributes:
        index: int64 [kept], places in the flattened [texts, tokens]: all tokens, and a little padding (`places_of`).
        texts, tokens: of the padded form.
    """

    index: Tensor
    texts: int
    tokens: int

    def remove(self, x: Tensor) -> Tensor:
        """[texts, tokens, width] -> [kept, width]."""
        return _Remove.apply(x.flatten(0, 1), self.index)

    def put_back(self, x: Tensor) -> Tensor:
        """[kept, width] -> [texts, tokens, width], zero where rows were removed."""
        return _PutBack.apply(x, self.index, self.texts * self.tokens).view(self.texts, self.tokens, -1)


def without_padding(mask: Tensor | None) -> Unpadded | None:
    """How to leave the padding of a mask bool [texts, tokens] out; None where that does not pay.

    It does on a CPU. On a GPU it is not done, as counting the tokens would make the processor wait for the device.
    """
    if mask is None or mask.device.type != "cpu":
        return None
    index = places_of(mask)
    return Unpadded(index, *mask.shape) if len(index) < WORTH * mask.numel() else None


def places_of(mask: Tensor) -> Tensor:
    """Where a mask is true, as int64 places in its flattened form; on a CPU some where it is false follow.

    They round the number of rows up by at most an eighth: oneDNN builds a program for every new shape of a product,
    which costs a small model a tenth of its step (docs/benchmarks.md).
    """
    flat = mask.flatten()
    index = flat.nonzero()[:, 0]
    if mask.device.type != "cpu" or not len(index):
        return index
    step = max(8, 2 ** (len(index).bit_length() - 1) // 8)
    more = -len(index) % step
    return torch.cat([index, (~flat).nonzero()[:more, 0]])


class _Remove(torch.autograd.Function):
    """Rows of a matrix by number. torch's own gradient adds rows up; here none occurs twice."""

    @staticmethod
    def forward(context: Any, x: Tensor, index: Tensor) -> Tensor:
        context.save_for_backward(index)
        context.rows = len(x)
        return x.index_select(0, index)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = context.saved_tensors
        return gradient.new_zeros(context.rows, gradient.shape[1]).index_copy_(0, index, gradient), None


class _PutBack(torch.autograd.Function):
    """The inverse of `_Remove`, and its gradient."""

    @staticmethod
    def forward(context: Any, x: Tensor, index: Tensor, rows: int) -> Tensor:
        context.save_for_backward(index)
        return x.new_zeros(rows, x.shape[1]).index_copy_(0, index, x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (index,) = context.saved_tensors
        return gradient.index_select(0, index), None, None
