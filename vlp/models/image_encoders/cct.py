"""Compact Convolutional Transformer, CCT: convolutions make the tokens, SeqPool the summary (Hassani et al. 2021)."""

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from vlp.config import ImageEncoderConfig
from vlp.models.image_encoders.compact import CompactTower
from vlp.models.image_encoders.vit import check_sizes

INNER_WIDTH = 64  # channels between two convolutions

# Table 8 of the paper, and its models for larger images: layers/kernel x convolutions.
VARIANTS: dict[str, dict[str, Any]] = {
    f"{layers}/{kernel}x{convolutions}": {
        "kernel": kernel,
        "convolutions": convolutions,
        "width": width,
        "layers": layers,
        "heads": heads,
        "feed_forward": ratio * width,
        "norm_eps": 1e-5,
    }
    for layers, width, heads, ratio, tokenizers in (
        (2, 128, 2, 1, ((3, 2),)),
        (4, 128, 2, 1, ((3, 2),)),
        (6, 256, 4, 2, ((3, 1), (3, 2))),
        (7, 256, 4, 2, ((3, 1), (3, 2), (7, 2))),
        (14, 384, 6, 3, ((7, 2),)),
    )
    for kernel, convolutions in tokenizers
}


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


def build_cct(config: ImageEncoderConfig) -> CompactTower:
    """A CCT with new weights, for images of any size.

    Raises:
        UserError: the heads do not divide the width.
    """
    check_sizes(config, 1, "one")
    tokenizer = ConvolutionalTokenizer(config.kernel, config.convolutions, config.width)
    return CompactTower(config, tokenizer, _side(config) ** 2, sequence_pool=True)


def _side(config: ImageEncoderConfig) -> int:
    """Side of the grid of tokens."""
    padding, stride = max(1, config.kernel // 2), max(1, config.kernel // 2 - 1)
    side = config.image_size
    for _ in range(config.convolutions):
        side = (side + 2 * padding - config.kernel) // stride + 1
        side = (side - 1) // 2 + 1  # max pooling of 3 with stride 2 and padding 1
    return side
