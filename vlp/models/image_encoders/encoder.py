"""The image encoder: images to image tokens, by the architecture that `ImageEncoderConfig.name` names."""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlp.config_model import ImageEncoderConfig
from vlp.errors import UserError
from vlp.models.image_encoders.families import build_tower, resolve
from vlp.models.image_encoders.layers import fit_positions
from vlp.models.image_encoders.timm_tower import PREFIX
from vlp.models.image_encoders.vit import Noise


class ImageView(NamedTuple):
    """What is encoded of images; the arguments of `ImageEncoder.forward`.

    Attributes:
        keep: the share of patches.
        size: in pixels; 0: as the images are.
        noise: decides which patches are kept; None: torch's random numbers.
    """

    keep: float = 1.0
    size: int = 0
    noise: Noise | None = None


WHOLE = ImageView()


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

    def forward(self, images: Tensor, keep: float = 1.0, size: int = 0, noise: Noise | None = None) -> Tensor:
        """Image tokens, the summary first: the class token, or the pooled feature of a tower without one.

        Args:
            images: [batch, 3, image_size, image_size]; uint8 in 0..255, or normalized float.
            keep: the share of patches that are encoded, a random subset of each image's (FLIP, Li et al. 2023); only
                towers with `drops_patches` take less than 1.
            size: in pixels, below `image_size`: images are scaled down to it by the mean over areas, and position
                embeddings are interpolated to the tokens that are left; 0: neither. See `check_size`.
            noise: decides which patches are encoded, see `Noise`; None: torch's random numbers.

        Returns:
            [batch, tokens, width].
        """
        if images.dtype == torch.uint8:
            images = self.normalize(images)
        if size:
            images = F.interpolate(images, size=(size, size), mode="area")
        return self.tower(images) if keep == 1 else self.tower(images, keep, noise)  # [batch, tokens, width]

    def check_keep(self, keep: float) -> None:
        """Check that the tower can encode this share of the patches.

        Raises:
            UserError: it cannot.
        """
        if keep < 1 and not getattr(self.tower, "drops_patches", False):
            raise UserError(
                f"objective.patch_dropout: the image encoder {self.config.name} cannot drop patches; set 0 or use vit."
            )

    def check_size(self, size: int) -> None:
        """Check that the tower encodes images of a lower resolution with its weights.

        Raises:
            UserError: it does not.
        """
        config = self.config
        if size >= self.image_size:
            raise UserError(
                f"objective.first_image_size ({size}) must be below the model's image size ({self.image_size})."
            )
        if config.name.startswith(PREFIX):
            raise UserError(
                f"objective.first_image_size: the image encoder {config.name} takes one image size; set 0 or use "
                "another family."
            )
        try:
            with torch.device("meta"):
                build_tower(replace(config, image_size=size))
        except UserError as error:
            raise UserError(
                str(error).replace("model.image_encoder.image_size", "objective.first_image_size")
            ) from None

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
        rows = resized.tower.get_parameter(name).shape[1]
        state[f"tower.{name}"] = fit_positions(state[f"tower.{name}"], leading, rows)
    try:
        resized.load_state_dict(state)
    except RuntimeError:
        raise UserError(f"{config.name} does not take images of {config.image_size} pixels with its weights.") from None
    return resized
