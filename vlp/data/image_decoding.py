"""Encoded images to pixels: JPEG by libjpeg-turbo at the scale that is needed, everything else by Pillow."""

import io
import warnings

import numpy as np
import simplejpeg
from PIL import Image

from vlp.data.bad_samples import BadSampleError

MAX_PIXELS = 100_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # others may call programs, as EPS does
SHRINKS = (8, 4, 2)  # the scales at which libjpeg-turbo gains from decoding smaller
FAST = ("Gray", "YCbCr", "RGB")  # colour spaces of JPEG that it makes RGB of


class EncodedImage:
    """An image whose size is known and whose pixels are not decoded yet.

    Attributes:
        width, height: in pixels, of the whole.
    """

    def __init__(self, data: bytes):
        """Read the header.

        Raises:
            BadSampleError: it is no image, its header is broken, or it has more than `MAX_PIXELS` pixels.
        """
        if not data:
            raise BadSampleError("zero bytes")
        self.data = data
        self.picture: Image.Image | None = None  # opened by Pillow
        try:
            self.height, self.width, colours, _ = simplejpeg.decode_jpeg_header(data)
            self.fast = colours in FAST
        except ValueError:
            self.picture, self.fast = _open(data), False
            self.width, self.height = self.picture.size
        if self.width * self.height > MAX_PIXELS:
            raise BadSampleError("image too large")

    def pixels(self, shrink: int = 1) -> np.ndarray:
        """RGB pixels at 1/1, 1/2, 1/4 or 1/8 of the size, rounded up: uint8 [height, width, 3].

        Raises:
            BadSampleError: the image is broken.
        """
        if self.fast:
            small = {"min_height": -(-self.height // shrink), "min_width": -(-self.width // shrink)}
            try:
                return simplejpeg.decode_jpeg(self.data, **(small if shrink > 1 else {}))
            except ValueError:
                pass  # odd or broken: Pillow's judgement counts
        picture = _convert(self.picture or _open(self.data))
        return np.array(picture.reduce(shrink) if shrink > 1 else picture)


def shrink_for(width: float, height: float, size: int) -> int:
    """How many times smaller (1, 2, 4, 8) a part of an image may be decoded so that its sides keep `size` pixels."""
    return next((shrink for shrink in SHRINKS if min(width, height) >= shrink * size), 1)


def decode_pixels(data: bytes, shortest: int | None = None) -> np.ndarray:
    """Encoded bytes to RGB pixels, uint8 [height, width, 3].

    Args:
        shortest: it may be decoded smaller as long as its shorter side keeps this many pixels.

    Raises:
        BadSampleError: it is no image, it is broken, or it has more than `MAX_PIXELS` pixels.
    """
    image = EncodedImage(data)
    return image.pixels(1 if shortest is None else shrink_for(image.width, image.height, shortest))


def decode_image(data: bytes, shortest: int | None = None) -> Image.Image:
    """Encoded bytes to an RGB picture; arguments and errors as in `decode_pixels`."""
    return Image.fromarray(decode_pixels(data, shortest))


def _open(data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's warning of large images: the limit above is ours
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise BadSampleError("image too large") from None
    except (OSError, SyntaxError, ValueError, EOFError):  # what Pillow raises for broken files
        raise BadSampleError("image undecodable") from None


def _convert(picture: Image.Image) -> Image.Image:
    try:
        if picture.mode == "P" and "transparency" in picture.info:
            picture = picture.convert("RGBA")
        if picture.mode.startswith("I"):  # 16 bits a pixel
            picture = Image.fromarray((np.asarray(picture) // 257).astype(np.uint8))
        return picture.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError):
        raise BadSampleError("image undecodable") from None
