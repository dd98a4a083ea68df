"""Preprocessing of images and captions, for training and for evaluation. Images stay uint8 until the device."""

import math
import random
import re
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torch.nn import functional

from vlp.config import AugmentConfig
from vlp.config_model import ImageEncoderConfig, Interpolation, Resize
from vlp.data.image_decoding import MAX_PIXELS, EncodedImage, shrink_for, to_rgb
from vlp.data.policy_augment import erase, rand_augment

ASPECT = (3 / 4, 4 / 3)
GRAY = 128  # fills the area that a moved image leaves empty
LONGEST_CAPTION = 10_000  # characters; more than 50 words of 100 have, and longer words are unknown to any tokenizer
UNWANTED = re.compile(r"[.!\"()*#:;~]")  # BLIP drops these from captions
SPACES = re.compile(r"\s{2,}")

# Arguments: pixels uint8 [height, width, 3], a strength from 0 to 1, and the random state for directions.
Operation = Callable[[Tensor, float, random.Random], Tensor]


def training_image(image: EncodedImage, size: int, augment: AugmentConfig, rng: random.Random) -> np.ndarray:
    """A random crop, flip and augmentation of an image, as uint8 [3, size, size]; `rng` decides everything.

    The crop is drawn before decoding, so that a JPEG is decoded no larger than the crop needs.

    Raises:
        BadSampleError: the image is broken.
    """
    left, top, right, bottom = _crop_box(image.width, image.height, augment, rng)
    shrink = shrink_for(right - left, bottom - top, size)
    part = slice(round(top / shrink), round(bottom / shrink)), slice(round(left / shrink), round(right / shrink))
    pixels = _resize(image.pixels(shrink)[part], size, size)
    if augment.flip and rng.random() < 0.5:
        pixels = pixels.flip(1)
    for _ in range(augment.operations):
        operation = rng.choice(OPERATIONS)
        if rng.random() < augment.probability:
            pixels = operation(pixels, augment.magnitude / 10, rng)
    if augment.policy:
        pixels = rand_augment(pixels, augment.policy, rng)
    if augment.erase and rng.random() < augment.erase:
        pixels = erase(pixels, rng)
    return _planes(pixels)


class ImageSize(int):
    """The height and width in pixels of a model's images, and how `evaluation_image` makes them of other images.

    Attributes:
        resize: "squash" does not keep the aspect ratio, like BLIP; "shortest" gives the shorter side the size and cuts
            the longer one on both ends, like CLIP.
        interpolation: "bicubic" or "bilinear".
    """

    resize: Resize
    interpolation: Interpolation

    def __new__(cls, size: int, resize: Resize = "squash", interpolation: Interpolation = "bicubic") -> "ImageSize":
        self = super().__new__(cls, size)
        self.resize, self.interpolation = resize, interpolation
        return self

    @classmethod
    def of(cls, config: ImageEncoderConfig) -> "ImageSize":
        """The size of the images that an image encoder takes."""
        return cls(config.image_size, config.resize, config.interpolation)

    def __getnewargs__(self) -> tuple[int, Resize, Interpolation]:
        return int(self), self.resize, self.interpolation


def evaluation_image(image: Image.Image | np.ndarray, size: int) -> np.ndarray:
    """An image at the model's size, as uint8 [3, size, size].

    Args:
        image: a PIL image, or RGB pixels, uint8 [height, width, 3].
        size: an `ImageSize`, or a number of pixels, for which the aspect ratio is not kept.
    """
    if isinstance(image, Image.Image):
        image = np.array(to_rgb(image))
    if not isinstance(size, ImageSize):
        return _planes(_resize(image, size, size))
    if size.resize == "squash":
        return _planes(_resize(image, size, size, size.interpolation))
    left, top, right, bottom = resized_part(image.shape[1], image.shape[0], size)
    image = image[top:bottom, left:right]
    height, width = image.shape[:2]
    high, wide = (int(size * side / min(height, width)) for side in (height, width))
    top, left = round((high - size) / 2), round((wide - size) / 2)
    return _planes(_resize(image, high, wide, size.interpolation)[top : top + size, left : left + size])


def resized_part(width: int, height: int, size: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the part of an image that is resized so that its shorter side has `size` pixels.

    It is the whole image, or what remains of a very long one after a cut on both ends: the resized image has at most
    `MAX_PIXELS` pixels, where a line of pixels would have billions of which one square is kept.
    """
    longest = max(MAX_PIXELS // size**2, 1) * min(width, height)
    left, top = (max(0, -(-(side - longest) // 2)) for side in (width, height))  # equal on both ends
    return left, top, width - left, height - top


def seen_part(image: Image.Image, resize: Resize) -> Image.Image:
    """The part of an image that `evaluation_image` keeps: all of it, or with "shortest" the square in its middle."""
    side = min(image.size)
    if resize == "squash" or image.width == image.height:
        return image
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)
    return image.crop((left, top, left + side, top + side))


def clean_caption(text: str, max_words: int = 50) -> str:
    """A caption in BLIP's form: lower case, without the punctuation it drops, single spaces, at most 50 words."""
    text = text.strip()[:LONGEST_CAPTION]
    text = SPACES.sub(" ", UNWANTED.sub(" ", text.lower()).replace("\n", " ")).strip()
    return " ".join(text.split(" ")[:max_words])


def prompted_caption(prompt: str, caption: str) -> str:
    """A cleaned caption after its prompt, as a captioner is trained on it and decodes it."""
    return clean_caption(f"{prompt} {caption}")


def _resize(pixels: np.ndarray, height: int, width: int, mode: Interpolation = "bicubic") -> Tensor:
    """uint8 [any, any, 3] to [height, width, 3], antialiased; uint8 in and out, as Pillow rounds."""
    image = torch.from_numpy(np.ascontiguousarray(pixels))  # the fast kernel needs contiguous pixels
    if image.shape[:2] == (height, width):
        return image
    planes = image[None].permute(0, 3, 1, 2)
    return functional.interpolate(planes, (height, width), mode=mode, antialias=True)[0].permute(1, 2, 0).contiguous()


def _planes(pixels: Tensor) -> np.ndarray:
    return pixels.permute(2, 0, 1).contiguous().numpy()


def _crop_box(width: int, height: int, augment: AugmentConfig, rng: random.Random) -> tuple[int, int, int, int]:
    """A random part of the area with a random aspect ratio (Szegedy et al. 2015); the whole image if none fits.

    Returns left, top, right and bottom in pixels.
    """
    if augment.crop_min >= 1:
        return 0, 0, width, height
    for _ in range(10):
        area = width * height * rng.uniform(augment.crop_min, augment.crop_max)
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.randint(0, width - w), rng.randint(0, height - h)
            return left, top, left + w, top + h
    return 0, 0, width, height


def _by_pillow(change: Callable[[Image.Image], Image.Image]) -> Operation:
    """An operation that ignores the strength."""

    def operation(pixels: Tensor, strength: float, rng: random.Random) -> Tensor:
        return torch.from_numpy(np.array(change(Image.fromarray(pixels.numpy()))))

    return operation


def _enhance(kind: type) -> Operation:
    """A color operation: factor 0.1 at strength 0, 1 (no change) at 0.5, 1.9 at 1."""

    def operation(pixels: Tensor, strength: float, rng: random.Random) -> Tensor:
        if strength == 0.5:
            return pixels
        return _by_pillow(lambda picture: kind(picture).enhance(1.8 * strength + 0.1))(pixels, strength, rng)

    return operation


def _shear(horizontal: float, vertical: float) -> Operation:
    """A shear: at strength 1, rows or columns move by this share of their distance from the top or left edge."""

    def operation(pixels: Tensor, strength: float, rng: random.Random) -> Tensor:
        amount = rng.choice((-strength, strength))
        return _affine(pixels, (1, horizontal * amount, 0, vertical * amount, 1, 0))

    return operation


def _shift(horizontal: float, vertical: float) -> Operation:
    """A translation: at strength 1, by this share of the size."""

    def operation(pixels: Tensor, strength: float, rng: random.Random) -> Tensor:
        amount = rng.choice((-strength, strength))
        down, right = vertical * amount * pixels.shape[0], horizontal * amount * pixels.shape[1]
        if down == round(down) and right == round(right):  # whole pixels: nothing to interpolate
            left, top = round(right), round(down)
            return functional.pad(pixels, (0, 0, left, -left, top, -top), value=GRAY)
        return _affine(pixels, (1, 0, -right, 0, 1, -down))

    return operation


def _rotate(pixels: Tensor, strength: float, rng: random.Random) -> Tensor:
    """A rotation around the center: 30 degrees at strength 1."""
    angle = math.radians(rng.choice((-30, 30)) * strength)
    cos, sin = math.cos(angle), math.sin(angle)
    y, x = pixels.shape[0] / 2, pixels.shape[1] / 2
    return _affine(pixels, (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y))


def _affine(pixels: Tensor, matrix: tuple[float, ...]) -> Tensor:
    """Take each pixel (x, y) from (a x + b y + c, d x + e y + f), bilinear; gray outside of the image."""
    planes = pixels.permute(2, 0, 1)[None].float() - GRAY  # grid_sample fills the outside with zeros
    moved = functional.grid_sample(planes, _grid(matrix, *pixels.shape[:2]), align_corners=False)
    return (moved[0].permute(1, 2, 0) + (GRAY + 0.5)).to(torch.uint8)


@lru_cache(maxsize=16)  # a run uses six
def _grid(matrix: tuple[float, ...], height: int, width: int) -> Tensor:
    """The sampling grid of `grid_sample`, whose axes go from -1 to 1."""
    a, b, c, d, e, f = matrix
    b, d = b * height / width, d * width / height
    theta = torch.tensor([[a, b, a + b - 1 + 2 * c / width], [d, e, d + e - 1 + 2 * f / height]])
    return functional.affine_grid(theta[None], [1, 3, height, width], align_corners=False)


# BLIP's list (its pretraining configuration), applied with RandAugment (Cubuk et al. 2020).
OPERATIONS: list[Operation] = [
    lambda pixels, strength, rng: pixels,
    _by_pillow(ImageOps.autocontrast),
    _by_pillow(ImageOps.equalize),
    _enhance(ImageEnhance.Brightness),
    _enhance(ImageEnhance.Sharpness),
    _shear(0.3, 0),
    _shear(0, 0.3),
    _shift(10 / 224, 0),  # at most 10 pixels at BLIP's size
    _shift(0, 10 / 224),
    _rotate,
]
