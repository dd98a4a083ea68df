"""Batch normalization where its running statistics need care: in several processes, and where a pass is repeated."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from vlp.distributed import all_sum, world_size


@torch.no_grad()
def average_running_statistics(model: nn.Module) -> None:
    """Set the running means and variances of batch normalization to their means over all processes.

    Each process sees its own share of a batch, and all must keep one statistic. Call it after each optimizer step. It
    costs one small reduction where a model has such layers, else nothing.
    """
    if world_size() == 1:
        return
    statistics: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            statistics += [one for one in (module.running_mean, module.running_var) if one is not None]
    if not statistics:
        return
    means = all_sum(torch.cat([one.float().flatten() for one in statistics])) / world_size()
    for one, mean in zip(statistics, means.split([one.numel() for one in statistics]), strict=True):
        one.copy_(mean.view_as(one))


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Leave running statistics as they are, while batch statistics still normalize in training.

    For a second pass over the same images, as activation checkpointing makes it: counted twice, a batch would move the
    statistics twice.
    """
    norms = [one for one in module.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches


def checkpoint_contexts(module: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    """For `context_fn` of `torch.utils.checkpoint`: the second pass through the module keeps its statistics."""
    return nullcontext(), statistics_kept(module)
