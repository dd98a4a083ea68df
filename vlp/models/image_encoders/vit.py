"""The vision transformer that BLIP uses."""

from functools import partial

from timm.layers import QuickGELU
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vlp.config import ImageEncoderConfig
from vlp.errors import UserError
from vlp.models.initialise import initialise


def build_vit(config: ImageEncoderConfig) -> VisionTransformer:
    """A ViT with a class token (Dosovitskiy et al. 2021), as BLIP uses it."""
    if config.image_size % config.patch_size:
        raise UserError(
            f"model.image_encoder.image_size ({config.image_size}) must be a multiple of "
            f"its patch_size ({config.patch_size})."
        )
    if config.width % config.heads:
        raise UserError(f"model.image_encoder.width ({config.width}) must be a multiple of heads ({config.heads}).")
    tower = VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.width,
        depth=config.layers,
        num_heads=config.heads,
        drop_path_rate=config.drop_path,
        num_classes=0,
        global_pool="",
        mlp_ratio=(config.feed_forward or 4 * config.width) / config.width,
        norm_layer=partial(nn.LayerNorm, eps=config.norm_eps),
        pre_norm=config.pre_norm,
        act_layer={"gelu": nn.GELU, "quick_gelu": QuickGELU}[config.activation],
    )
    initialise(tower, config.width)
    return tower
