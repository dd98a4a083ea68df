"""Tokens from convolutions with pooling instead of patches (Hassani et al. 2021, equation 5)."""

import itertools

import torch
from torch import Tensor, nn

from vlp.config_model import ImageEncoderConfig

INNER_WIDTH = 64  # channels between two convolutions


class ConvolutionalTokenizer(nn.Module):
    """Tokens from convolutions, each with ReLU and max pooling (equation 5)."""

    def __init__(self, kernel: int, convolutions: int, width: int):
        super().__init__()
        channels = [3, *[INNER_WIDTH] * (convolutions - 1), width]
        stride = max(1, kernel // 2 - 1)
        self.conv_layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(before, after, kernel, stride, max(1, kernel // 2), bias=False),
                    nn.ReLU(),
                    nn.MaxPool2d(3, 2, 1),
                )
                for before, after in itertools.pairwise(channels)
            )
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        """[batch, 3, size, size] -> [batch, places, width]."""
        # Convolutions are faster with channels last, and the tokens need that order anyway.
        x = self.conv_layers(images.contiguous(memory_format=torch.channels_last))
        return x.flatten(2).transpose(1, 2)


def grid_side(config: ImageEncoderConfig) -> int:
    """Side of the grid of tokens."""
    padding, stride = max(1, config.kernel // 2), max(1, config.kernel // 2 - 1)
    side = config.image_size
    for _ in range(config.convolutions):
        side = (side + 2 * padding - config.kernel) // stride + 1
        side = (side - 1) // 2 + 1  # max pooling of 3 with stride 2 and padding 1
    return side
