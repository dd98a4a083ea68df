"""Encoded images to upright pixels: JPEG by libjpeg-turbo at the scale that is needed, everything else by Pillow."""

import io
import warnings

import numpy as np
import simplejpeg
from PIL import Image

from vlp.data.bad_samples import BadSampleError
from vlp.data.exif import orient, read_orientation

MAX_PIXELS = 100_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # some others, such as EPS, would run external programs
SHRINKS = (8, 4, 2)  # the scales at which libjpeg-turbo decodes faster
FAST = ("Gray", "YCbCr", "RGB")  # the JPEG color spaces that it converts to RGB
BROKEN = (OSError, SyntaxError, ValueError, EOFError)  # what Pillow raises for broken files


class EncodedImage:
    """An image whose size is known and whose pixels are not decoded yet.

    Attributes:
        width, height: in pixels, of the upright image: EXIF orientations that turn it by 90 degrees swap the two.
    """

    def __init__(self, data: bytes):
        """Read the header.

        Raises:
            BadSampleError: it is not an image, its header is broken, or it has more than `MAX_PIXELS` pixels.
        """
        if not data:
            raise BadSampleError("zero bytes")
        self.data = data
        self.picture: Image.Image | None = None  # opened by Pillow
        try:
            height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
            width, height = int(width), int(height)
            self.fast = colors in FAST
        except ValueError:
            self.picture, self.fast = _open(data), False
            width, height = self.picture.size
        if width * height > MAX_PIXELS:
            raise BadSampleError("image too large")
        self.stored_size = width, height
        self.orientation = read_orientation(data)
        self.width, self.height = (height, width) if self.orientation >= 5 else (width, height)

    def pixels(self, shrink: int = 1) -> np.ndarray:
        """Upright RGB pixels at 1/1, 1/2, 1/4 or 1/8 of the size, rounded up: uint8 [height, width, 3].

        Raises:
            BadSampleError: the image is broken.
        """
        return orient(self._stored_pixels(shrink), self.orientation)

    def _stored_pixels(self, shrink: int) -> np.ndarray:
        if self.fast:
            width, height = self.stored_size
            height, width = (-(-height // shrink), -(-width // shrink)) if shrink > 1 else (0, 0)  # 0: full size
            try:
                return simplejpeg.decode_jpeg(self.data, min_height=height, min_width=width)
            except ValueError:
                pass  # odd or broken: Pillow decides
        picture = to_rgb(self.picture or _open(self.data))
        return np.array(picture.reduce(shrink) if shrink > 1 else picture)


def shrink_for(width: float, height: float, size: int) -> int:
    """The largest shrink factor (1, 2, 4 or 8) at which both sides of a part of an image keep `size` pixels."""
    return next((shrink for shrink in SHRINKS if min(width, height) >= shrink * size), 1)


def decode_pixels(data: bytes, shortest: int | None = None) -> np.ndarray:
    """Encoded bytes to upright RGB pixels, uint8 [height, width, 3].

    Args:
        shortest: the image may be decoded smaller, as long as its shorter side keeps this many pixels.

    Raises:
        BadSampleError: it is not an image, it is broken, or it has more than `MAX_PIXELS` pixels.
    """
    image = EncodedImage(data)
    return image.pixels(1 if shortest is None else shrink_for(image.width, image.height, shortest))


def decode_image(data: bytes, shortest: int | None = None) -> Image.Image:
    """Encoded bytes to an upright RGB image; arguments and errors as in `decode_pixels`."""
    return Image.fromarray(decode_pixels(data, shortest))


def to_rgb(picture: Image.Image) -> Image.Image:
    """An image of Pillow in RGB; one of 16 bits is scaled, where Pillow would cut off all above 255.

    Raises:
        BadSampleError: it is read from a file that is broken.
    """
    try:
        if picture.mode == "P" and "transparency" in picture.info:
            picture = picture.convert("RGBA")
        if picture.mode.startswith("I"):  # 16 bits a pixel
            picture = Image.fromarray((np.asarray(picture) // 257).clip(0, 255).astype(np.uint8))
        return picture.convert("RGB")
    except BROKEN:
        raise BadSampleError("image undecodable") from None


def _open(data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images: `MAX_PIXELS` is the limit
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise BadSampleError("image too large") from None
    except BROKEN:
        raise BadSampleError("image undecodable") from None
