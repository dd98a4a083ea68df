"""Averaged weights: an exponential moving average of the trained weights, which validation and the saved model use."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class AveragedWeights:
    """The moving average of a model's trained weights and of the running statistics of its batch normalization.

    It differs from the momentum twin of ITC, which supplies targets to the loss, follows with `objective.momentum` and
    covers the towers alone: the average takes no part in training, so training is the same with and without it.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = model
        self.decay = decay
        self.average = {name: one.detach().clone() for name, one in self._averaged().items()}

    def _averaged(self) -> dict[str, Tensor]:
        """What is averaged, by name: trained parameters, and the means and variances of batch normalization."""
        found: dict[str, Tensor] = {name: one for name, one in self.model.named_parameters() if one.requires_grad}
        for name, module in self.model.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                found |= {f"{name}.{key}": one for key, one in module.named_buffers() if one.is_floating_point()}
        return found

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move toward the weights after a step, counted from 1. Early steps move faster, to forget the start."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.average.values()), list(self._averaged().values()), 1 - decay)

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Exchange the model's weights with the average in the block, in place."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, one in self._averaged().items():
            kept = one.clone()
            one.copy_(self.average[name])
            self.average[name].copy_(kept)

    @torch.no_grad()
    def load(self, average: dict[str, Tensor]) -> None:
        """Continue with the average of a checkpoint.

        Raises:
            ValueError: it is of another model.
        """
        if average.keys() != self.average.keys():
            raise ValueError("its averaged weights are those of another model")
        for name, one in self.average.items():
            one.copy_(average[name])
