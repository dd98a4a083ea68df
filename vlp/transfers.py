"""Copies between the host and a GPU for which the host does not wait."""

from collections.abc import Callable

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device.

    It goes through page-locked memory, and without gaps: else the host would wait until a GPU has done all work before.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    locked = tensor.contiguous().pin_memory()  # PyTorch keeps this memory until the copy is done
    return locked.to(device, non_blocking=True)


def on_its_way(tensor: Tensor) -> Callable[[], Tensor]:
    """Start to copy a tensor to the host; the function returned waits for the copy, but not for what a GPU does later.

    Later changes of the tensor do not reach the copy.
    """
    if tensor.device.type != "cuda":
        kept = tensor.clone()
        return lambda: kept
    here = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    here.copy_(tensor, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(tensor.device))

    def wait() -> Tensor:
        arrived.synchronize()
        return here

    return wait
