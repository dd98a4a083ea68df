"""Small shapes of every family of image encoders, for pictures of 64 pixels and with nearly equal FLOPs."""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from vlp.bench.timing import UNCOUNTED_FLOPS
from vlp.config_model import ImageEncoderConfig, StageConfig
from vlp.models.image_encoders.families import build_tower, resolve

# Within 5% of the FLOPs of `vit, convolutions`, the demo's encoder; tests/bench/test_encoders.py counts them.
SHAPES: dict[str, dict[str, Any]] = {
    "vit": {"patch_size": 8, "width": 120, "layers": 4, "heads": 2},
    "vit, convolutions": {"convolutions": 2, "kernel": 7, "width": 128, "layers": 4, "heads": 2},
    "hybrid": {"patch_size": 8, "width": 104, "layers": 4, "heads": 2},
    "vit_lite": {"patch_size": 8, "width": 120, "layers": 4, "heads": 2},
    "cvt_compact": {"patch_size": 8, "width": 120, "layers": 4, "heads": 2},
    "cct": {"convolutions": 2, "kernel": 7, "width": 128, "layers": 4, "heads": 2},
    "t2t": {"width": 128, "layers": 8, "heads": 2, "performer": True},
    "pvt": {
        "patch_size": 4,
        "width": 160,
        "stages": [
            StageConfig(width=64, layers=1, heads=1, reduction=4),
            StageConfig(width=96, layers=2, heads=2, reduction=2),
            StageConfig(width=160, layers=4, heads=4, reduction=1),
        ],
    },
    "pvt_v2": {
        "patch_size": 4,
        "width": 160,
        "stages": [
            StageConfig(width=64, layers=1, heads=1, reduction=4),
            StageConfig(width=96, layers=2, heads=2, reduction=2),
            StageConfig(width=160, layers=3, heads=4, reduction=1),
        ],
    },
    "cvt": {
        "patch_size": 4,
        "width": 160,
        "norm_eps": 1e-5,
        "stages": [
            StageConfig(width=48, layers=1, heads=1, reduction=2),
            StageConfig(width=96, layers=2, heads=2, reduction=2),
            StageConfig(width=160, layers=5, heads=4, reduction=2),
        ],
    },
}
IMAGE_SIZE = 64


def small_encoder(shape: str) -> ImageEncoderConfig:
    """The config of one of the SHAPES."""
    return ImageEncoderConfig(name=shape.partition(",")[0], image_size=IMAGE_SIZE, **SHAPES[shape])


def count(config: ImageEncoderConfig) -> tuple[int, int]:
    """The parameters of an encoder, and the FLOPs of one image's forward pass, two for each multiplication."""
    tower = build_tower(resolve(config)).eval()
    images = torch.zeros(1, 3, config.image_size, config.image_size)
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=UNCOUNTED_FLOPS) as counter:
        tower(images)
    return sum(weight.numel() for weight in tower.parameters()), counter.get_total_flops()
