"""Pixels to encoded images: small JPEGs for pages and indexes, and image files."""

from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from vlp.errors import UserError
from vlp.files import writing

QUALITY = 88
FILES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


def small_jpeg(picture: Image.Image | np.ndarray, longest: int, quality: int = QUALITY) -> bytes:
    """A JPEG whose longer side has at most `longest` pixels.

    Args:
        picture: an image of any mode, or RGB pixels, uint8 [height, width, 3].
    """
    pixels = picture if isinstance(picture, np.ndarray) else np.asarray(picture.convert("RGB"))
    small = Image.fromarray(np.ascontiguousarray(pixels))
    small.thumbnail((longest, longest), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(small), quality, "RGB", "420")


def check_image_file(path: str) -> None:
    """Raises UserError unless the name of a file to write is that of a PNG or JPEG."""
    if Path(path).suffix.lower() not in FILES:
        raise UserError(f"{path} must end in .png or .jpg.")


def write_image(path: str, picture: Image.Image) -> None:
    """Write a PNG or JPEG file, as its name ends; raises what `check_image_file` and `writing` do."""
    check_image_file(path)
    with writing(path) as temporary:
        picture.save(temporary, FILES[Path(path).suffix.lower()])
