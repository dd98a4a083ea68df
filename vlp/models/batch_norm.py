"""Batch normalization in several processes: each one sees its own share of a batch, and all must keep one statistic."""

import torch
from torch import Tensor, nn

from vlp.distributed import all_sum, world_size


@torch.no_grad()
def average_running_statistics(model: nn.Module) -> None:
    """Set the running means and variances of batch normalization to their means over all processes.

    Call it after each optimizer step. It costs one small reduction where a model has such layers, else nothing.
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
