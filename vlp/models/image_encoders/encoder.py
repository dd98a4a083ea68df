"""The image encoder: images to image tokens, by the architecture that `ImageEncoderConfig.name` names."""

from collections.abc import Callable
from typing import Any

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from vlp.config import ImageEncoderConfig
from vlp.errors import UserError
from vlp.models.image_encoders.timm_tower import build_timm
from vlp.models.image_encoders.vit import build_vit

# CLIP's mean and standard deviation of each color channel, in units of full brightness (Radford et al. 2021).
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


BUILDERS: dict[str, Callable[[ImageEncoderConfig], nn.Module]] = {
    "vit": build_vit,
    "timm": build_timm,
}


class ImageEncoder(nn.Module):
    """A tower that turns images into tokens and normalizes uint8 images on their device.

    Attributes:
        width: width of an image token.
        image_size: the side in pixels of the square images it takes.
    """

    mean: Tensor  # [3, 1, 1]
    deviation: Tensor  # [3, 1, 1]

    def __init__(self, config: ImageEncoderConfig):
        super().__init__()
        kind = config.name.split(":")[0]
        if kind not in BUILDERS:
            raise UserError(f"Unknown image encoder {config.name!r}; choose vit or timm:NAME.")
        self.width = config.width
        self.image_size = config.image_size
        self.tower: Any = BUILDERS[kind](config)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Image tokens, the class token first.

        Args:
            images: [batch, 3, image_size, image_size]; uint8 in 0..255, or normalized float.

        Returns:
            [batch, tokens, width].
        """
        if images.dtype == torch.uint8:
            images = (images.to(self.mean.dtype) / 255 - self.mean) / self.deviation
        return self.tower.forward_features(images)  # [batch, tokens, width]

    def checkpoint_activations(self) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.tower.set_grad_checkpointing(True)


def resize_positions(encoder: ImageEncoder, config: ImageEncoderConfig) -> ImageEncoder:
    """The same encoder for images of another size, with position embeddings interpolated (bicubic, as in timm).

    Args:
        config: the config of `encoder` with another `image_size`.

    Raises:
        UserError: the weights of a timm tower do not fit that size.
    """
    resized = ImageEncoder(config)
    state = encoder.state_dict()
    if config.name == "vit":
        grid = config.image_size // config.patch_size
        state["tower.pos_embed"] = resample_abs_pos_embed(state["tower.pos_embed"].float(), [grid, grid])
    try:
        resized.load_state_dict(state)
    except RuntimeError:
        raise UserError(f"{config.name} does not take images of {config.image_size} pixels with its weights.") from None
    return resized
