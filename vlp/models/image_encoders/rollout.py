"""Attention rollout: how much each place of an image flows into the summary, over all layers of an image encoder."""

import torch
from torch import Tensor

from vlp.errors import UserError
from vlp.models.image_encoders.encoder import ImageEncoder
from vlp.models.image_encoders.grid import token_grid
from vlp.models.image_encoders.layers import recording


def attention_rollout(encoder: ImageEncoder, images: Tensor) -> Tensor:
    """Attention rollout (Abnar and Zuidema 2020), as in the figures of the ViT paper (appendix D.8).

    The mean over heads, plus the identity for the residual, with rows normalized to 1, is multiplied over the layers.
    The result is the row of the class token; without one, the mean of the rows of all places, which is pooled. In T2T,
    the layers between its splits are left out.

    Args:
        images: [images, 3, size, size], as in `ImageEncoder`, which is in evaluation mode.

    Returns:
        float32 [images, rows, columns]. Its sum is at most 1; the rest are the shares of class token and registers.

    Raises:
        UserError: the attention of the encoder is reduced to fewer tokens or cannot be recorded.
    """
    name = encoder.config.name
    if encoder.config.stages:
        raise UserError(f"Attention rollout needs full attention over one grid in all layers, which {name} has not.")
    # A compiled block would not see that its attention is recorded.
    with torch.no_grad(), recording(encoder.tower) as products, torch.compiler.set_stance("force_eager"):
        tokens = encoder(images).shape[1]
        maps = [one.recorded.mean(dim=1) for one in products if one.recorded is not None]  # [images, tokens, tokens]
    if not maps:
        raise UserError(f"Attention rollout is for the image encoders of vlp itself, not for {name}.")
    flow = torch.eye(maps[-1].shape[-1], device=images.device).expand_as(maps[-1])
    for weights in maps:
        if weights.shape == flow.shape:  # not those between the splits of T2T
            flow = (weights + flow.new_ones(weights.shape[-1]).diag()) / 2 @ flow  # rows of both sum to 1
    places = tokens - 1
    has_class_token = flow.shape[-1] > places + encoder.config.registers
    row = flow[:, 0] if has_class_token else flow[:, -places:].mean(dim=1)
    return token_grid(encoder, torch.cat([row[:, :1], row[:, -places:]], dim=1))
