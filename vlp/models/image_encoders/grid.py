"""Where the tokens of an image encoder lie in the image."""

import math

from torch import Tensor

from vlp.errors import UserError
from vlp.models.image_encoders.encoder import ImageEncoder
from vlp.models.image_encoders.timm_tower import TimmTower


def token_grid(encoder: ImageEncoder, tokens: Tensor) -> Tensor:
    """The part of token values that has a place in the image, on its grid.

    Args:
        tokens: [..., tokens], values of the encoder's tokens in their order; the summary is first.

    Returns:
        [..., rows, columns], without the summary.

    Raises:
        UserError: the tokens form no square grid.
    """
    places = tokens[..., leading_tokens(encoder) :]
    side = math.isqrt(places.shape[-1])
    if encoder.config.last_stages > 1 or side * side != places.shape[-1]:
        raise UserError(
            f"The {places.shape[-1]} tokens of {encoder.config.name} form no square grid, so there is no map of them."
        )
    return places.unflatten(-1, (side, side))


def leading_tokens(encoder: ImageEncoder) -> int:
    """How many tokens come before those with a place in the image."""
    tower = encoder.tower
    return 1 + (getattr(tower.trunk, "num_prefix_tokens", 0) if isinstance(tower, TimmTower) else 0)
