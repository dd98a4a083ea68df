"""Dropout that is cheap on a CPU. PyTorch's draws one number at a time, which takes a tenth of a small model's step."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

STEPS = 2**16  # probabilities are rounded to multiples of 1 / STEPS


def dropout(x: Tensor, probability: float) -> Tensor:
    """Zero a share of the numbers and scale up the rest accordingly (Srivastava et al. 2014).

    Like PyTorch's own dropout, it follows PyTorch's random state. On other devices and in compiled blocks it is
    PyTorch's own.

    Args:
        x: any shape.
        probability: of zeroing a number, 0 to 1; on a CPU rounded to a 65,536th.
    """
    if x.device.type != "cpu" or probability == 1 or torch.compiler.is_compiling():
        return F.dropout(x, probability)
    return _Dropout.apply(x, round(probability * STEPS)) if probability > 0 else x


class CpuDropout(nn.Dropout):
    """`nn.Dropout` by `dropout`."""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape -> the same shape."""
        if self.inplace or not self.training:
            return super().forward(input)
        return dropout(input, self.p)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, threshold: int) -> Tensor:
        seed = int(torch.randint(2**62, ()))
        # Each 64-bit number gives four 16-bit ones; SFC64 makes one in a nanosecond.
        words = np.random.Generator(np.random.SFC64(seed)).integers(0, 2**64, -(-x.numel() // 4), dtype=np.uint64)
        numbers = torch.from_numpy(words).view(torch.int16)[: x.numel()].view(x.shape)  # -32,768 to 32,767
        # In the dtype of x, because products of mixed dtypes are six times as slow.
        kept = (numbers >= threshold - STEPS // 2).to(x.dtype).mul_(STEPS / (STEPS - threshold))
        context.save_for_backward(kept)
        return x * kept

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (kept,) = context.saved_tensors
        return gradient * kept, None
