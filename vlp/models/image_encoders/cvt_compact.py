"""Compact Vision Transformer, CVT: ViT-Lite with SeqPool instead of the class token (Hassani et al. 2021)."""

from vlp.config_model import ImageEncoderConfig
from vlp.models.image_encoders.compact import CompactTower
from vlp.models.image_encoders.vit_lite import VARIANTS as VIT_LITE
from vlp.models.image_encoders.vit_lite import build_vit_lite

VARIANTS = VIT_LITE  # the paper's CVT-LAYERS/PATCH has the sizes of ViT-Lite-LAYERS/PATCH


def build_cvt_compact(config: ImageEncoderConfig) -> CompactTower:
    """A CVT with new weights.

    Raises:
        UserError: the sizes do not fit each other.
    """
    return build_vit_lite(config, sequence_pool=True)
