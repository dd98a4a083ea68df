"""What a task returns: named losses, which are trained on, and named metrics, which are only logged."""

from typing import NamedTuple

import torch
from torch import Tensor

from vlp.config import ObjectiveConfig


class TaskOutput(NamedTuple):
    """Float32 scalars of one forward pass; averaged over processes, they are those of the global batch.

    It is a tuple of dicts because these are the containers that DistributedDataParallel and accelerate's conversion of
    autocast outputs look into.

    Attributes:
        losses: unweighted, with gradient: `itc`, `itm`, `lm`.
        metrics: without gradient, such as `itm_accuracy`.
    """

    losses: dict[str, Tensor]
    metrics: dict[str, Tensor]


def total_loss(losses: dict[str, Tensor], objective: ObjectiveConfig) -> Tensor:
    """The scalar that is trained on: the losses, each multiplied by `objective.NAME_weight`, summed."""
    return torch.stack([getattr(objective, f"{name}_weight") * loss for name, loss in losses.items()]).sum()
