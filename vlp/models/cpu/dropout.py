"""Dropout that costs a CPU little: PyTorch's draws one number at a time there, a fifth of a small model's step."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

STEPS = 2**16  # probabilities are kept to a part in so many


def dropout(x: Tensor, probability: float, training: bool = True) -> Tensor:
    """Zero a share of the numbers and scale the rest up by as much (Srivastava et al. 2014).

    What falls follows from PyTorch's random state, as it does with its own dropout, which is used off the CPU and in
    compiled blocks.

    Args:
        x: any shape.
        probability: of falling, 0 to 1; on a CPU rounded to a 65,536th.
    """
    if not training or probability == 0:
        return x
    if x.device.type != "cpu" or probability == 1 or torch.compiler.is_compiling():
        return F.dropout(x, probability)
    return _Dropout.apply(x, round(probability * STEPS))


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, threshold: int) -> Tensor:
        seed = int(torch.randint(2**62, ()))
        # Four 16-bit numbers of each 64-bit one; SFC64 makes these in a nanosecond.
        words = np.random.Generator(np.random.SFC64(seed)).integers(0, 2**64, -(-x.numel() // 4), dtype=np.uint64)
        numbers = torch.from_numpy(words).view(torch.int16)[: x.numel()].view(x.shape)  # -32,768 to 32,767
        # As numbers of the same format, since products of mixed formats are six times as slow.
        kept = (numbers >= threshold - STEPS // 2).to(x.dtype).mul_(STEPS / (STEPS - threshold))
        context.save_for_backward(kept)
        return x * kept

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (kept,) = context.saved_tensors
        return gradient * kept, None
