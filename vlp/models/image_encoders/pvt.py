"""Pyramid Vision Transformer, PVT: four stages, keys and values from a smaller grid (Wang et al. 2021, 2102.12122)."""

from typing import Any

from torch import nn

from vlp.config_model import ImageEncoderConfig, StageConfig
from vlp.errors import UserError
from vlp.models.activations import ACTIVATIONS
from vlp.models.image_encoders.layers import FeedForward
from vlp.models.image_encoders.pyramid import (
    PatchEmbedding,
    Pyramid,
    PyramidBlock,
    ReducedAttention,
    Stage,
    rates_by_stage,
    stage_sides,
)

# Table 1 of the paper.
VARIANTS: dict[str, dict[str, Any]] = {
    name: {
        "patch_size": 4,
        "width": 512,
        "stages": [
            StageConfig(width=64, layers=layers[0], heads=1, feed_forward=512, reduction=8),
            StageConfig(width=128, layers=layers[1], heads=2, feed_forward=1024, reduction=4),
            StageConfig(width=320, layers=layers[2], heads=5, feed_forward=1280, reduction=2),
            StageConfig(width=512, layers=layers[3], heads=8, feed_forward=2048, reduction=1),
        ],
    }
    for name, layers in (
        ("tiny", (2, 2, 2, 2)),
        ("small", (3, 4, 6, 3)),
        ("medium", (3, 4, 18, 3)),
        ("large", (3, 8, 27, 3)),
    )
}


def build_pvt(config: ImageEncoderConfig) -> Pyramid:
    """A PVT with new weights: patches that do not overlap, learned positions, a class token in the last stage.

    Raises:
        UserError: the sizes do not fit each other.
    """
    sides, rates = stage_sides(config, exact=True), rates_by_stage(config)
    if config.stages[-1].reduction != 1:  # the class token has no place in a grid that could be reduced
        raise UserError("model.image_encoder.stages: the last stage of pvt needs reduction: 1.")
    stages, inputs = [], 3
    for number, (sizes, side) in enumerate(zip(config.stages, sides, strict=True)):
        last = number == len(sides) - 1
        stride = 2 if number else config.patch_size
        blocks = [
            PyramidBlock(
                sizes.width,
                ReducedAttention(sizes.width, sizes.heads, sizes.reduction, False, config.norm_eps),
                FeedForward(sizes.width, sizes.feed_forward or 4 * sizes.width, ACTIVATIONS[config.activation]),
                rate,
                config.norm_eps,
            )
            for rate in rates[number]
        ]
        embed = PatchEmbedding(inputs, sizes.width, stride, stride, 0, config.norm_eps)
        norm = nn.LayerNorm(sizes.width, eps=config.norm_eps) if last else nn.Identity()
        stage = Stage(embed, blocks, side, norm)
        if last:
            stage.add_class_token()
        stage.add_positions()
        stages.append(stage)
        inputs = sizes.width
    return Pyramid(stages, config)
