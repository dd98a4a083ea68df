"""EXIF orientations, against Pillow's `exif_transpose`, on every path by which a photo reaches a model."""

import io
import random

import numpy as np
import pytest
from PIL import Image, ImageOps

from vlp.config import AugmentConfig
from vlp.data import image_decoding
from vlp.data.exif import orient, read_orientation
from vlp.data.image_decoding import EncodedImage, decode_image, decode_pixels
from vlp.data.images import load_image
from vlp.data.inspect import inspect_shards
from vlp.data.shard_writer import ShardWriter
from vlp.data.transforms import evaluation_image, training_image

ORIENTATIONS = range(1, 9)
KINDS = ("JPEG", "PNG", "WEBP")


def picture(width: int = 96, height: int = 64) -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(orientation: int, kind: str = "JPEG", size: tuple[int, int] = (96, 64), **how) -> bytes:
    data, exif = io.BytesIO(), Image.Exif()
    exif[0x010F] = "a camera's maker"
    exif[0x0112] = orientation
    picture(*size).save(data, kind, exif=exif, **how)
    return data.getvalue()


def transposed(data: bytes) -> np.ndarray:
    return np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_pixels_and_sizes_are_those_of_pillow(orientation, kind):
    data = encoded(orientation, kind)
    image, expected = EncodedImage(data), transposed(data)
    assert read_orientation(data) == orientation
    assert (image.height, image.width) == expected.shape[:2]
    assert (image.pixels() == expected).all()
    assert (decode_pixels(data) == expected).all()
    assert decode_image(data).size == (image.width, image.height)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("shrink", [2, 8])
def test_smaller_scales_are_upright_too(orientation, kind, shrink):
    small = EncodedImage(encoded(orientation, kind)).pixels(shrink)
    expected = np.asarray(Image.fromarray(transposed(encoded(orientation, kind))).reduce(shrink))
    assert small.shape == expected.shape
    assert np.abs(small.astype(int) - expected).mean() < 2


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_crops_are_drawn_on_the_upright_image(orientation, monkeypatch):
    data, augment = encoded(orientation, size=(320, 200)), AugmentConfig(operations=0)
    upright = io.BytesIO()
    Image.fromarray(transposed(data)).save(upright, "PNG")
    for shrinks in (True, False):
        if not shrinks:
            monkeypatch.setattr("vlp.data.transforms.shrink_for", lambda *_: 1)
        for seed in range(5):
            turned = training_image(EncodedImage(data), 32, augment, random.Random(seed))
            plain = training_image(EncodedImage(upright.getvalue()), 32, augment, random.Random(seed))
            assert np.abs(turned.astype(int) - plain).mean() < (3 if shrinks else 1e-9)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_images_of_users_are_upright(orientation, tmp_path):
    data = encoded(orientation)
    (tmp_path / "a.jpg").write_bytes(data)
    expected = evaluation_image(transposed(data), 48)
    opened = Image.open(io.BytesIO(data))
    for image in (tmp_path / "a.jpg", str(tmp_path / "a.jpg"), opened, ImageOps.exif_transpose(opened)):
        assert (load_image(image, 48).numpy() == expected).all()


def test_inspect_counts_upright_sizes(tmp_path):
    with ShardWriter(tmp_path) as writer:
        for orientation in ORIENTATIONS:
            writer.write(str(orientation), encoded(orientation), "jpg", "a photo", {})
    facts = inspect_shards(str(tmp_path / "*.tar"))
    assert facts["image_sizes"] == {"96x64": 4, "64x96": 4}
    assert {image.size for image, _ in facts["pictures"]} == {(96, 64), (64, 96)}


def test_nothing_is_decoded_for_an_orientation(monkeypatch):
    data = encoded(6)
    for name in ("decode_jpeg", "decode_jpeg_header"):
        monkeypatch.setattr(image_decoding.simplejpeg, name, lambda *_, **__: pytest.fail("decoded"))
    assert read_orientation(data) == 6


@pytest.mark.parametrize("kind", KINDS)
def test_broken_headers_are_upright_and_end(kind):
    data = encoded(6, kind)
    rng = random.Random(0)
    for cut in range(0, min(len(data), 400)):
        assert read_orientation(data[:cut]) in (1, 6)
    for _ in range(2000):
        damaged = bytearray(data)
        for _ in range(4):
            damaged[rng.randrange(min(len(data), 300))] = rng.randrange(256)
        assert read_orientation(bytes(damaged)) in ORIENTATIONS
    for wrong in (0, 9, 300):
        assert read_orientation(encoded(wrong, kind)) == 1
    assert read_orientation(b"") == read_orientation(b"\xff\xd8\xff\xe1") == read_orientation(b"GIF89a") == 1


def test_an_upright_image_is_not_copied():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert orient(pixels, 1) is pixels
