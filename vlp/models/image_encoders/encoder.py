"""The image encoder: images to image tokens, by the architecture that `ImageEncoderConfig.name` names."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlp.config_model import ImageEncoderConfig
from vlp.errors import UserError
from vlp.models.image_encoders.families import build_tower, resolve


class ImageEncoder(nn.Module):
    """A tower that turns images into tokens and normalizes uint8 images on their device.

    Attributes:
        config: with the sizes of a variant instead of its name.
        width: width of an image token.
        image_size: the side in pixels of the square images it takes.
    """

    mean: Tensor  # [3, 1, 1]
    deviation: Tensor  # [3, 1, 1]

    def __init__(self, config: ImageEncoderConfig):
        super().__init__()
        self.config = resolve(config)
        self.image_size = config.image_size
        self.tower: Any = build_tower(self.config)
        self.width: int = self.tower.width
        self.register_buffer("mean", torch.tensor(config.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(config.deviation).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor, keep: float = 1.0) -> Tensor:
        """Image tokens, the summary first: the class token, or the pooled feature of a tower without one.

        Args:
            images: [batch, 3, image_size, image_size]; uint8 in 0..255, or normalized float.
            keep: the share of patches that are encoded, a random subset of each image's (FLIP, Li et al. 2023); only
                towers with `drops_patches` take less than 1.

        Returns:
            [batch, tokens, width].
        """
        if images.dtype == torch.uint8:
            images = self.normalize(images)
        return self.tower(images) if keep == 1 else self.tower(images, keep)  # [batch, tokens, width]

    def check_keep(self, keep: float) -> None:
        """Check that the tower can encode this share of the patches.

        Raises:
            UserError: it cannot.
        """
        if keep < 1 and not getattr(self.tower, "drops_patches", False):
            raise UserError(
                f"objective.patch_dropout: the image encoder {self.config.name} cannot drop patches; set 0 or use vit."
            )

    def normalize(self, pixels: Tensor) -> Tensor:
        """Pixels in 0..255, uint8 or float, [batch, 3, size, size] -> what the tower takes."""
        return (pixels.to(self.mean.dtype) / 255 - self.mean) / self.deviation

    def checkpoint_activations(self) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.tower.set_grad_checkpointing(True)


def resize_positions(encoder: ImageEncoder, config: ImageEncoderConfig) -> ImageEncoder:
    """The same encoder for images of another size, with position embeddings interpolated (bicubic, as in timm).

    Args:
        config: the config of `encoder` with another `image_size`.

    Raises:
        UserError: the encoder does not take that size, or a timm tower not with its weights.
    """
    resized = ImageEncoder(config)
    state = encoder.state_dict()
    for name, leading in resized.tower.positions.items():
        rows = resized.tower.get_parameter(name).shape[1] - leading
        state[f"tower.{name}"] = _interpolate(state[f"tower.{name}"], leading, math.isqrt(rows))
    try:
        resized.load_state_dict(state)
    except RuntimeError:
        raise UserError(f"{config.name} does not take images of {config.image_size} pixels with its weights.") from None
    return resized


def _interpolate(positions: Tensor, leading: int, side: int) -> Tensor:
    """Position embeddings [1, leading + old side squared, width] for another side of the grid, in float32."""
    first, places = positions[:, :leading].float(), positions[:, leading:].float()
    before = math.isqrt(places.shape[1])
    grid = places.unflatten(1, (before, before)).permute(0, 3, 1, 2)  # [1, width, old side, old side]
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", antialias=True)
    return torch.cat([first, grid.flatten(2).transpose(1, 2)], dim=1)
