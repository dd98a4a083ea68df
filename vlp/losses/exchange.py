"""Features that travel between processes: gathered with their gradients, or passed around a ring."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vlp.distributed import gather, rank, world_size


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, rows: Tensor) -> Tensor:
        context.rows = len(rows)
        return gather(rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> Tensor:
        # Each process sends every other one the gradients of its rows: a reduce-scatter by the operation that gloo and
        # all versions of torch have.
        arrived = torch.empty_like(gradient)
        dist.all_to_all_single(arrived, gradient.contiguous())
        return arrived.unflatten(0, (-1, context.rows)).sum(dim=0)


def gather_with_gradient(rows: Tensor) -> Tensor:
    """Concatenate the [rows, ...] of all processes, equal in shape, in rank order.

    The gradient of a row is summed over the losses of all processes.
    """
    return rows if world_size() == 1 else _GatherWithGradient.apply(rows)


def pass_on(rows: Tensor) -> Tensor:
    """Send rows to the next process and receive those of the one before, of the same shape. No gradient."""
    if world_size() == 1:
        return rows
    received = torch.empty_like(rows)
    following, before = (rank() + 1) % world_size(), (rank() - 1) % world_size()
    sent = dist.P2POp(dist.isend, rows.contiguous(), following)
    for request in dist.batch_isend_irecv([sent, dist.P2POp(dist.irecv, received, before)]):
        request.wait()
    return received
