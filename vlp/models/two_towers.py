"""What networks have in common: an image encoder, whose image size can change, and a projection of its summary."""

from dataclasses import replace
from typing import Protocol

from torch import Tensor, nn
from torch.nn import functional as F

from vlp.config_model import ModelConfig
from vlp.models.image_encoders.encoder import ImageEncoder, resize_positions


class HasImageEncoder(Protocol):
    """A network with an image encoder."""

    config: ModelConfig
    image_encoder: ImageEncoder


def embed_summaries(projection: nn.Module, image_tokens: Tensor, frames: int = 1) -> Tensor:
    """Image tokens [images, tokens, width] -> float32 unit vectors [images, embed_dim].

    Args:
        projection: of the first token, from the width to `embed_dim`.
        frames: of a video, whose tokens follow each other; the projections of the frames' first tokens are averaged.
    """
    first = image_tokens.unflatten(1, (frames, -1))[:, :, 0]  # [images, frames, width]
    return F.normalize(projection(first).float().mean(dim=1), dim=-1)


def resize_images(network: HasImageEncoder, image_size: int) -> None:
    """Change the size of the images that a network takes, in pixels; position embeddings are interpolated."""
    image = replace(network.config.image_encoder, image_size=image_size)
    device = next(network.image_encoder.parameters()).device
    network.image_encoder = resize_positions(network.image_encoder, image).to(device)
    network.config = replace(network.config, image_encoder=image)
