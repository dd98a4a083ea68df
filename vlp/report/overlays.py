"""Lays maps of attention over images."""

import numpy as np
from PIL import Image

# Anchors of a color ramp from dark to bright, RGB, evenly spaced in value. Lightness grows evenly with the value, so
# that the ramp reads the same in gray and for color-blind people.
RAMP = np.array([(13, 10, 48), (82, 20, 105), (160, 37, 98), (224, 80, 60), (250, 155, 40), (252, 240, 160)], float)
WEIGHT = 0.6  # of the ramp's color over the image


def overlay(picture: Image.Image, values: np.ndarray, low: float, high: float) -> Image.Image:
    """A picture in gray under the colors of a map.

    Args:
        values: float [rows, columns] over the whole picture, interpolated linearly between the centers of its cells.
        low, high: the values at the ends of the ramp; if they are equal, everything is at its dark end.
    """
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    field = Image.fromarray(scaled.astype(np.float32)).resize(picture.size, Image.Resampling.BILINEAR)
    gray = np.asarray(picture.convert("L").convert("RGB"), float)  # [height, width, 3]
    mixed = (1 - WEIGHT) * gray + WEIGHT * ramp(np.asarray(field))
    return Image.fromarray(mixed.round().astype(np.uint8))


def ramp(values: np.ndarray) -> np.ndarray:
    """Values [...] in 0..1 (others are clipped) -> colors float [..., 3] in 0..255."""
    places = np.linspace(0, 1, len(RAMP))
    return np.stack([np.interp(values, places, RAMP[:, channel]) for channel in range(3)], axis=-1)


def fit(picture: Image.Image, side: int) -> Image.Image:
    """The picture with its longer side at `side` pixels; small ones are enlarged, so that maps are smooth."""
    scale = side / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
