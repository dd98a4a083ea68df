"""ViT-Lite: a small ViT with small patches, for small images (Hassani et al. 2021, section 3.2)."""

from typing import Any

from vlp.config_model import ImageEncoderConfig
from vlp.models.image_encoders.compact import CompactTower
from vlp.models.image_encoders.vit import PatchEmbedding, check_sizes

# Table 8 of the paper: layers/patch size.
VARIANTS: dict[str, dict[str, Any]] = {
    f"{layers}/{patch}": {
        "patch_size": patch,
        "width": 256,
        "layers": layers,
        "heads": 4,
        "feed_forward": 512,
        "norm_eps": 1e-5,
    }
    for layers in (6, 7)
    for patch in (4, 8, 16)
}


def build_vit_lite(config: ImageEncoderConfig, sequence_pool: bool = False) -> CompactTower:
    """A ViT-Lite with new weights.

    Args:
        sequence_pool: SeqPool instead of the class token.

    Raises:
        UserError: the sizes do not fit each other.
    """
    check_sizes(config, config.patch_size)
    rows = (config.image_size // config.patch_size) ** 2
    return CompactTower(config, PatchEmbedding(config.patch_size, config.width), rows, sequence_pool)
