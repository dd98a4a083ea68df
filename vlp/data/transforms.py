"""Preprocessing of images and captions, for training and for evaluation. Images stay uint8 until the device."""

import math
import random
import re

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch.nn.functional import interpolate

from vlp.config import AugmentConfig
from vlp.data.decode import EncodedImage, shrink_for

ASPECT = (3 / 4, 4 / 3)
GREY = (128, 128, 128)  # what shows where a picture was moved away
UNWANTED = re.compile(r"[.!\"()*#:;~]")  # BLIP drops these from captions
SPACES = re.compile(r"\s{2,}")


def training_image(image: EncodedImage, size: int, augment: AugmentConfig, rng: random.Random) -> np.ndarray:
    """A random crop, flip and changes of a picture, as uint8 [3, size, size]; `rng` decides everything.

    The crop is drawn before anything is decoded, so that a JPEG is decoded no larger than the crop needs.

    Raises:
        BadSampleError: the image is broken.
    """
    left, top, right, bottom = _crop_box(image.width, image.height, augment, rng)
    shrink = shrink_for(right - left, bottom - top, size)
    # Pixels of the smaller picture that lie in the box, those at its edges counted.
    part = slice(top // shrink, -(-bottom // shrink)), slice(left // shrink, -(-right // shrink))
    pixels = _resize(image.pixels(shrink)[part], size)
    if augment.flip and rng.random() < 0.5:
        pixels = pixels.flip(1)
    picture = None
    for _ in range(augment.operations):
        operation = rng.choice(OPERATIONS)
        if rng.random() < augment.probability:
            picture = operation(picture or Image.fromarray(pixels.numpy()), augment.magnitude / 10, rng)
    return _planes(pixels if picture is None else torch.from_numpy(np.array(picture)))


def evaluation_image(image: Image.Image | np.ndarray, size: int) -> np.ndarray:
    """The whole picture at the model's size, as uint8 [3, size, size]; BLIP does not keep the aspect ratio either.

    Args:
        image: a picture, or its RGB pixels, uint8 [height, width, 3].
    """
    if isinstance(image, Image.Image):
        image = np.array(image.convert("RGB"))
    return _planes(_resize(image, size))


def clean_caption(text: str, max_words: int = 50) -> str:
    """A caption in BLIP's form: lower case, no punctuation that says nothing, single spaces, at most 50 words."""
    text = SPACES.sub(" ", UNWANTED.sub(" ", text.lower()).replace("\n", " ")).strip()
    return " ".join(text.split(" ")[:max_words])


def _resize(pixels: np.ndarray, size: int) -> torch.Tensor:
    """[height, width, 3] to [size, size, 3], bicubic and antialiased; uint8 in and out, as Pillow rounds."""
    image = torch.from_numpy(np.ascontiguousarray(pixels))  # a crop in one piece: the fast kernel asks for that
    if image.shape[:2] == (size, size):
        return image
    planes = image.permute(2, 0, 1)[None]
    return interpolate(planes, (size, size), mode="bicubic", antialias=True)[0].permute(1, 2, 0).contiguous()


def _planes(pixels: torch.Tensor) -> np.ndarray:
    return pixels.permute(2, 0, 1).contiguous().numpy()


def _crop_box(width: int, height: int, augment: AugmentConfig, rng: random.Random) -> tuple[int, int, int, int]:
    """A random part of the area with a random aspect ratio (Szegedy et al. 2015); the whole when none fits.

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


def _enhance(kind: type) -> object:
    """A colour operation: factor 0.1 at strength 0, 1 (no change) at 0.5, 1.9 at 1."""

    def operation(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
        return kind(image).enhance(1.8 * strength + 0.1)

    return operation


def _affine(a: float, b: float, c: float, d: float) -> object:
    """Shear (a, b: horizontal and vertical, at most 0.3) or translation (c, d: share of the size)."""

    def operation(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
        amount = rng.choice((-strength, strength))
        matrix = (1, a * amount, c * amount * image.width, b * amount, 1, d * amount * image.height)
        whole = all(float(entry).is_integer() for entry in matrix)  # a shift by whole pixels: nothing to interpolate
        kind = Image.Resampling.NEAREST if whole else Image.Resampling.BILINEAR
        return image.transform(image.size, Image.Transform.AFFINE, matrix, kind, fillcolor=GREY)

    return operation


def _rotate(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    return image.rotate(rng.choice((-30, 30)) * strength, Image.Resampling.BILINEAR, fillcolor=GREY)


# BLIP's list (its pretraining configuration), applied with RandAugment (Cubuk et al. 2020).
OPERATIONS = [
    lambda image, strength, rng: image,
    lambda image, strength, rng: ImageOps.autocontrast(image),
    lambda image, strength, rng: ImageOps.equalize(image),
    _enhance(ImageEnhance.Brightness),
    _enhance(ImageEnhance.Sharpness),
    _affine(0.3, 0, 0, 0),
    _affine(0, 0.3, 0, 0),
    _affine(0, 0, 10 / 224, 0),  # 10 pixels at most, at BLIP's size
    _affine(0, 0, 0, 10 / 224),
    _rotate,
]
