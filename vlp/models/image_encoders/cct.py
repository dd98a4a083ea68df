"""Compact Convolutional Transformer, CCT: convolutions make the tokens, SeqPool the summary (Hassani et al. 2021)."""

from typing import Any

from vlp.config_model import ImageEncoderConfig
from vlp.errors import UserError
from vlp.models.image_encoders.compact import CompactTower
from vlp.models.image_encoders.convolutional_tokenizer import ConvolutionalTokenizer, grid_side
from vlp.models.image_encoders.vit import check_sizes

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


def build_cct(config: ImageEncoderConfig) -> CompactTower:
    """A CCT with new weights, for images of any size.

    Raises:
        UserError: there are no convolutions, or the heads do not divide the width.
    """
    if not config.convolutions:
        raise UserError("model.image_encoder.convolutions is 0; cct needs at least one.")
    check_sizes(config, 1)
    tokenizer = ConvolutionalTokenizer(config.kernel, config.convolutions, config.width)
    return CompactTower(config, tokenizer, grid_side(config) ** 2, sequence_pool=True)
