"""Convolutional vision Transformer, CvT: convolutions make tokens, queries, keys and values (2103.15808).

Wu et al. 2021. It has no position embeddings. The published code scales attention by the width of all heads together;
here a head's own width scales it, as in the paper, and the converter puts the difference into the query's weights.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlp.config_model import ImageEncoderConfig, StageConfig
from vlp.models.activations import ACTIVATIONS
from vlp.models.image_encoders.layers import DotProduct, FeedForward
from vlp.models.image_encoders.pyramid import (
    PatchEmbedding,
    Pyramid,
    PyramidBlock,
    Stage,
    rates_by_stage,
    stage_sides,
    to_grid,
    to_tokens,
)
from vlp.models.precision import product_dtype

# Table 2 of the paper; `reduction` is the stride of the convolutions that make keys and values.
VARIANTS: dict[str, dict[str, Any]] = {
    name: {
        "patch_size": 4,
        "width": widths[-1],
        "norm_eps": 1e-5,
        "stages": [
            StageConfig(width=width, layers=count, heads=number, feed_forward=4 * width, reduction=2)
            for width, count, number in zip(widths, layers, heads, strict=True)
        ],
    }
    for name, widths, layers, heads in (
        ("13", (64, 192, 384), (1, 2, 10), (1, 3, 6)),
        ("21", (64, 192, 384), (1, 4, 16), (1, 3, 6)),
        ("w24", (192, 768, 1024), (2, 2, 20), (3, 12, 16)),
    )
}


class DepthwiseConvolution(nn.Module):
    """A depthwise 3x3 convolution and batch normalization, before the linear map to queries, keys or values (3.2)."""

    def __init__(self, width: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride, padding=1, groups=width, bias=False)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, grid: Tensor) -> Tensor:
        """[batch, width, side, side] -> [batch, places, width]; the side shrinks by the stride, rounded up."""
        if self.bn.training:
            return to_tokens(self.bn(self._convolve(grid)))
        # With fixed statistics, normalization is a factor of the kernel and a bias.
        mean, variance, dtype = self.bn.running_mean, self.bn.running_var, self.conv.weight.dtype
        assert mean is not None and variance is not None
        scale = self.bn.weight.float() * torch.rsqrt(variance.float() + self.bn.eps)
        kernel = (self.conv.weight.float() * scale.view(-1, 1, 1, 1)).to(dtype)
        bias = (self.bn.bias.float() - mean.float() * scale).to(dtype)
        return to_tokens(F.conv2d(grid, kernel, bias, self.conv.stride, self.conv.padding, groups=self.conv.groups))

    def _convolve(self, grid: Tensor) -> Tensor:
        """The convolution, in float32 where the backward pass in bf16 would take 20 to 40 times as long.

        That is so on CPUs with a stride (PyTorch 2.14).
        """
        slow = grid.device.type == "cpu" and self.conv.stride != (1, 1) and product_dtype(grid) == torch.bfloat16
        if not slow:
            return self.conv(grid)
        with torch.autocast("cpu", enabled=False):
            kernel = self.conv.weight.float()
            return F.conv2d(grid.float(), kernel, None, self.conv.stride, self.conv.padding, groups=self.conv.groups)


class ConvolutionalAttention(nn.Module):
    """Attention whose queries, keys and values come from convolutions of the grid of tokens (section 3.2)."""

    def __init__(self, width: int, heads: int, stride: int, class_token: bool):
        """Args:
        stride: of the convolutions that make keys and values.
        class_token: whether one stands before the grid; no convolution changes it.
        """
        super().__init__()
        self.heads, self.class_token = heads, class_token
        self.conv_proj_q = DepthwiseConvolution(width, 1)
        self.conv_proj_k = DepthwiseConvolution(width, stride)
        self.conv_proj_v = DepthwiseConvolution(width, stride)
        self.proj_q = nn.Linear(width, width)
        self.proj_k = nn.Linear(width, width)
        self.proj_v = nn.Linear(width, width)
        self.product = DotProduct()
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, width] -> the same shape."""
        first, places = x[:, : int(self.class_token)], x[:, int(self.class_token) :]
        grid = to_grid(places)
        steps = (
            (self.conv_proj_q, self.proj_q),
            (self.conv_proj_k, self.proj_k),
            (self.conv_proj_v, self.proj_v),
        )
        parts = []
        for convolution, linear in steps:
            tokens = convolution(grid)
            if self.class_token:
                tokens = torch.cat([first.to(tokens.dtype), tokens], dim=1)
            # [batch, heads, tokens, head_dim]
            parts.append(linear(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2))
        return self.proj(self.product(*parts).transpose(1, 2).flatten(2))


def build_cvt(config: ImageEncoderConfig) -> Pyramid:
    """A CvT with new weights; the last stage has a class token.

    Raises:
        UserError: the sizes do not fit each other.
    """
    sides, rates = stage_sides(config, exact=False), rates_by_stage(config)
    stages, inputs = [], 3
    for number, (sizes, side) in enumerate(zip(config.stages, sides, strict=True)):
        last = number == len(sides) - 1
        stride = 2 if number else config.patch_size
        embed = PatchEmbedding(inputs, sizes.width, 2 * stride - 1, stride, stride // 2, config.norm_eps)
        blocks = [
            PyramidBlock(
                sizes.width,
                ConvolutionalAttention(sizes.width, sizes.heads, sizes.reduction, class_token=last),
                FeedForward(sizes.width, sizes.feed_forward or 4 * sizes.width, ACTIVATIONS[config.activation]),
                rate,
                config.norm_eps,
            )
            for rate in rates[number]
        ]
        norm = nn.LayerNorm(sizes.width, eps=config.norm_eps) if last else nn.Identity()
        stages.append(Stage(embed, blocks, side, norm))
        if last:
            stages[-1].add_class_token()
        inputs = sizes.width
    return Pyramid(stages, config)
