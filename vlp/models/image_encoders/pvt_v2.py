"""PVT v2: overlapping patches, convolutional feed-forward, linear spatial reduction (Wang et al. 2021, 2106.13797)."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from vlp.config_model import ImageEncoderConfig, StageConfig
from vlp.models.activations import ACTIVATIONS
from vlp.models.image_encoders.pyramid import (
    PatchEmbedding,
    Pyramid,
    PyramidBlock,
    ReducedAttention,
    Stage,
    rates_by_stage,
    stage_sides,
    to_grid,
    to_tokens,
)

WIDE, NARROW = (64, 128, 320, 512), (32, 64, 160, 256)
# Table 1 of the paper. b2_li has linear spatial reduction.
VARIANTS: dict[str, dict[str, Any]] = {
    name: {
        "patch_size": 4,
        "width": widths[-1],
        "linear_reduction": name.endswith("li"),
        "stages": [
            StageConfig(width=width, layers=count, heads=heads, feed_forward=ratio * width, reduction=reduction)
            for width, count, heads, ratio, reduction in zip(
                widths, layers, (1, 2, 5, 8), ratios, (8, 4, 2, 1), strict=True
            )
        ],
    }
    for name, widths, layers, ratios in (
        ("b0", NARROW, (2, 2, 2, 2), (8, 8, 4, 4)),
        ("b1", WIDE, (2, 2, 2, 2), (8, 8, 4, 4)),
        ("b2", WIDE, (3, 4, 6, 3), (8, 8, 4, 4)),
        ("b2_li", WIDE, (3, 4, 6, 3), (8, 8, 4, 4)),
        ("b3", WIDE, (3, 4, 18, 3), (8, 8, 4, 4)),
        ("b4", WIDE, (3, 8, 27, 3), (8, 8, 4, 4)),
        ("b5", WIDE, (3, 6, 40, 3), (4, 4, 4, 4)),
    )
}


class ConvolutionalFeedForward(nn.Module):
    """Feed-forward with a depthwise 3x3 convolution before the activation (section 3.3), which also tells positions."""

    def __init__(self, width: int, hidden: int, activation: Callable[[], nn.Module], rectify: bool):
        """`rectify` puts a ReLU before the convolution, as the published models with linear reduction have."""
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.relu = nn.ReLU() if rectify else nn.Identity()
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.act = activation()
        self.fc2 = nn.Linear(hidden, width)
        # The gain of a convolution with 9 inputs for each output (He et al. 2015), as in the published code.
        nn.init.normal_(self.dwconv.weight, std=(2 / 9) ** 0.5)
        if self.dwconv.bias is not None:
            nn.init.zeros_(self.dwconv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, places, width] -> the same shape."""
        grid = to_grid(self.relu(self.fc1(x)))
        return self.fc2(self.act(to_tokens(self.dwconv(grid))))


def build_pvt_v2(config: ImageEncoderConfig) -> Pyramid:
    """A PVT v2 with new weights; it has no class token and no position embeddings.

    Raises:
        UserError: the sizes do not fit each other.
    """
    pools, eps = config.linear_reduction, config.norm_eps
    sides, rates = stage_sides(config, exact=not pools), rates_by_stage(config)
    stages, inputs = [], 3
    for number, (sizes, side) in enumerate(zip(config.stages, sides, strict=True)):
        # Section 3.2: stride S, kernel 2 S - 1, padding S - 1.
        stride = 2 if number else config.patch_size
        embed = PatchEmbedding(inputs, sizes.width, 2 * stride - 1, stride, stride - 1, eps)
        hidden, activation = sizes.feed_forward or 4 * sizes.width, ACTIVATIONS[config.activation]
        blocks = [
            PyramidBlock(
                sizes.width,
                ReducedAttention(sizes.width, sizes.heads, sizes.reduction, pools, eps),
                ConvolutionalFeedForward(sizes.width, hidden, activation, rectify=pools),
                rate,
                eps,
            )
            for rate in rates[number]
        ]
        stages.append(Stage(embed, blocks, side, nn.LayerNorm(sizes.width, eps=eps)))
        inputs = sizes.width
    return Pyramid(stages, config)
