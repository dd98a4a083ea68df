"""What every task is and returns: named losses, which are trained on, and named metrics, which are only logged."""

from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vlp.config import ObjectiveConfig

# The losses of all tasks: a loss NAME is weighted by `objective.NAME_weight`.
LOSSES = tuple(one.name.removesuffix("_weight") for one in fields(ObjectiveConfig) if one.name.endswith("_weight"))


class TaskOutput(NamedTuple):
    """Float32 scalars of one forward pass; averaged over processes, they are those of the global batch.

    It is a tuple of dicts because these are the containers that DistributedDataParallel and accelerate's conversion of
    autocast outputs look into.

    Attributes:
        losses: unweighted, with gradient; each is one of `LOSSES`.
        metrics: without gradient, such as `itm_accuracy`.
    """

    losses: dict[str, Tensor]
    metrics: dict[str, Tensor]


class Task(nn.Module):
    """The module that a run trains: a model with what its losses need.

    Attributes:
        model: one of the networks of `vlp.models.network`, the one that the task trains.
    """

    model: Any

    def start_step(self, step: int, epoch: float, progress: float = 0.0) -> None:
        """Called once before each optimizer step.

        Args:
            epoch: passes over the data, with fractions.
            progress: the share of the run's steps that are done, below 1.
        """

    def forward(self, batch: Any) -> TaskOutput:
        """The losses and metrics of a batch."""
        raise NotImplementedError


def total_loss(losses: dict[str, Tensor], objective: ObjectiveConfig) -> Tensor:
    """The scalar that is trained on: the losses, each multiplied by `objective.NAME_weight`, summed."""
    return torch.stack([getattr(objective, f"{name}_weight") * loss for name, loss in losses.items()]).sum()
