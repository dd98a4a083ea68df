"""Mixup and CutMix of timm (Zhang et al. 2018, Yun et al. 2019), independent of the number of processes."""

import torch
from torch import Tensor

from vlp.config import ClassificationConfig
from vlp.data.policy_augment import seeded


class BatchMixing:
    """Mixes the images of a batch in pairs, 0 with 1, 2 with 3 and so on, all with one weight or one rectangle.

    The weight, the rectangle and the choice between mixup and CutMix are functions of the seed, the step and the number
    of the batch in its step, so they are equal in all processes. Neighbors of the global batch are in one process,
    so its images are paired as they would be by any other number of processes. Samples come in a random order, so
    neighbors are as random as timm's pairs, the first with the last.
    """

    def __init__(self, config: ClassificationConfig, classes: int, smoothing: float, seed: int):
        """`smoothing` is that of the labels: the share of the target that all classes divide equally."""
        from timm.data.mixup import Mixup  # timm takes a second to import

        self.seed, self.step, self.part = seed, 0, 0
        self.mixed_epochs = config.mixed_epochs
        self.on = config.mixup > 0 or config.cutmix > 0
        self.mixup = Mixup(
            config.mixup, config.cutmix, None, config.mixed, config.cutmix_share, "batch", True, smoothing, classes
        )

    def start_step(self, step: int, epoch: float) -> None:
        """Begin an optimizer step; `epoch` counts passes over the data, with fractions."""
        self.step, self.part = step, 0
        self.mixup.mixup_enabled = self.on and not 0 < self.mixed_epochs <= epoch

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mix a batch of a step; call it once for each batch, in order.

        Args:
            images: uint8 [batch, 3, size, size], where the batch is even.
            labels: int64 [batch].

        Returns:
            Images float32 [batch, 3, size, size] in 0 to 255, target probabilities float32 [batch, classes], and int64
            [batch] the class of the larger part of each image; in another order, in which timm's pairs are ours.
        """
        order = torch.arange(len(labels), device=labels.device)
        order = torch.cat([order[0::2], order[1::2].flip(0)])
        seed = (self.seed * 1_000_003 + self.step * 1009 + self.part) % 2**32
        self.part += 1
        mixed = images[order].float()
        with seeded(seed):
            mixed, targets = self.mixup(mixed, labels[order])
        return mixed, targets, targets.argmax(dim=1)
