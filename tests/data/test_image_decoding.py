"""Image decoding: the fast path equals Pillow at every scale, and for odd files."""

import io
import random

import numpy as np
import pytest
from PIL import Image

from vlp.config import AugmentConfig
from vlp.data import image_decoding
from vlp.data.bad_samples import BadSampleError
from vlp.data.image_decoding import EncodedImage, decode_image, decode_pixels, shrink_for
from vlp.data.images import load_image
from vlp.data.transforms import evaluation_image, training_image
from vlp.errors import UserError


def photo(width: int, height: int) -> Image.Image:
    """Smooth colors, like a photo."""
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(picture: Image.Image, kind: str = "JPEG", **how) -> bytes:
    data = io.BytesIO()
    picture.save(data, kind, **how)
    return data.getvalue()


def difference(one, two) -> float:
    """The mean absolute difference, of 255."""
    return float(np.abs(np.asarray(one, dtype=np.float32) - np.asarray(two, dtype=np.float32)).mean())


def never(*_, **__):
    raise AssertionError("this function must not be called")


@pytest.mark.parametrize("how", [{}, {"progressive": True}, {"subsampling": 0}, {"keep_rgb": True}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_pixels_equal_those_of_pillow(how, mode, monkeypatch):
    data = encoded(photo(101, 67).convert(mode), quality=90, **how)
    monkeypatch.setattr(image_decoding.Image, "open", never)
    pixels = decode_pixels(data)
    monkeypatch.undo()
    assert pixels.dtype == np.uint8
    assert (pixels == np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
def test_every_scale_is_the_mean_of_the_whole_image(kind, shrink):
    image = EncodedImage(encoded(photo(333, 250), kind))
    small = image.pixels(shrink)
    assert small.shape == (-(-250 // shrink), -(-333 // shrink), 3)
    assert difference(small, Image.fromarray(image.pixels()).reduce(shrink)) < 1


def test_the_scale_keeps_enough_pixels():
    for width, height, size in ((640, 480, 224), (448, 448, 224), (447, 900, 224), (4000, 3000, 224), (100, 100, 224)):
        shrink = shrink_for(width, height, size)
        assert shrink == 1 or min(width, height) / shrink >= size
        assert shrink == 8 or min(width, height) / (2 * shrink) < size
    assert decode_image(encoded(photo(640, 480)), shortest=100).size == (160, 120)


@pytest.mark.parametrize("seed", range(8))
def test_a_crop_decoded_small_looks_like_one_decoded_whole(seed, monkeypatch):
    data = encoded(photo(1000, 750), quality=95)
    plain = AugmentConfig(operations=0)
    small = training_image(EncodedImage(data), 96, plain, random.Random(seed))
    assert (small == training_image(EncodedImage(data), 96, plain, random.Random(seed))).all()
    monkeypatch.setattr("vlp.data.transforms.shrink_for", lambda *_: 1)
    whole = training_image(EncodedImage(data), 96, plain, random.Random(seed))
    assert 0 < difference(small, whole) < 2  # decoded smaller, with the same box and flip
    other = training_image(EncodedImage(data), 96, plain, random.Random(seed + 100))
    assert difference(whole, other) > 10


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGBA"), ("PNG", "P"), ("WEBP", "RGB"), ("JPEG", "CMYK")])
def test_other_formats_are_decoded_by_pillow(kind, mode):
    picture = photo(40, 30).convert(mode)
    data = encoded(picture, kind)
    assert (decode_pixels(data) == np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))).all()


@pytest.mark.parametrize("mode", ["I;16", "P", "RGBA", "LA", "1"])
def test_an_image_of_pillow_is_what_its_file_is(mode, tmp_path):
    picture = photo(40, 40).convert("L" if mode == "I;16" else mode)
    given = [picture]
    if mode == "I;16":
        wide = np.asarray(picture).astype(np.uint16) * 257
        picture, other = Image.fromarray(wide), Image.frombytes("I;16B", (40, 40), wide.astype(">u2").tobytes())
        given = [picture, other, Image.fromarray(wide.astype(np.int32))]
    picture.save(tmp_path / "a.png", **({"transparency": 3} if mode == "P" else {}))
    expected = load_image(tmp_path / "a.png", 24)
    assert 20 < expected.float().mean() < 235
    for image in [Image.open(tmp_path / "a.png"), *given]:
        assert (load_image(image, 24) == expected).all() and (evaluation_image(image, 24) == expected.numpy()).all()


def test_a_broken_image_of_pillow_is_refused():
    data = encoded(photo(48, 48), "PNG")
    with pytest.raises(UserError, match="The image cannot be used as an image: image undecodable"):
        load_image(Image.open(io.BytesIO(data[:300])), 24)


def test_a_jpeg_with_bytes_between_its_parts_is_still_read():
    data = encoded(photo(64, 64))
    odd = data[:-2] + b"\x00" * 64 + data[-2:]
    assert difference(decode_pixels(odd), decode_pixels(data)) < 1


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.9])
def test_a_truncated_jpeg_is_bad_at_any_scale(share):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8))
    data = encoded(noise)[: int(share * len(encoded(noise)))]
    for shortest in (None, 20):
        with pytest.raises(BadSampleError) as error:
            decode_pixels(data, shortest)
        assert error.value.reason == ("image undecodable" if data else "zero bytes")


def test_a_header_with_too_many_pixels_is_refused_before_decoding(monkeypatch):
    data = bytearray(encoded(photo(64, 64)))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"  # height and width
    monkeypatch.setattr(image_decoding.simplejpeg, "decode_jpeg", never)
    with pytest.raises(BadSampleError, match="image too large"):
        decode_pixels(bytes(data))
