"""Image and caption preprocessing."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image

from vlp.config import AugmentConfig
from vlp.data import transforms
from vlp.data.image_decoding import MAX_PIXELS, EncodedImage
from vlp.data.transforms import OPERATIONS, ImageSize, clean_caption, evaluation_image, training_image


def encoded(picture: Image.Image, kind="PNG", **how) -> EncodedImage:
    data = io.BytesIO()
    picture.save(data, kind, **how)
    return EncodedImage(data.getvalue())


def photo(width=50, height=40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture))


def test_the_random_state_decides_everything():
    one, two, three = (training_image(encoded(photo()), 24, AugmentConfig(), random.Random(seed)) for seed in (1, 1, 2))
    assert one.shape == (3, 24, 24)
    assert one.dtype == np.uint8
    assert (one == two).all()
    assert (one != three).any()


def test_without_augmentation_training_and_evaluation_agree():
    plain = AugmentConfig(crop_min=1.0, flip=False, operations=0)
    assert (training_image(encoded(photo()), 24, plain, random.Random(0)) == evaluation_image(photo(), 24)).all()


def test_flipping_is_a_mirror():
    flip = AugmentConfig(crop_min=1.0, flip=True, operations=0)
    results = [training_image(encoded(photo(24, 24)), 24, flip, random.Random(seed)) for seed in range(20)]
    straight = evaluation_image(photo(24, 24), 24)
    mirrored = [(one == straight[:, :, ::-1]).all() for one in results]
    assert 3 < sum(mirrored) < 17
    assert all(m or (one == straight).all() for m, one in zip(mirrored, results, strict=True))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_keeps_the_size_and_runs_at_all_strengths(operation):
    for strength in (0.0, 0.5, 1.0):
        result = operation(pixels(photo()), strength, random.Random(0))
        assert result.shape == (40, 50, 3) and result.dtype == torch.uint8


MOVES = ["shear x", "shear y", "shift x", "shift y", "rotate"]


def by_pillow(name: str, picture: Image.Image, strength: float, sign: int) -> Image.Image:
    """What BLIP's geometric operations are, by Pillow."""
    if name == "rotate":
        return picture.rotate(30 * sign * strength, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128))
    share, x, y = sign * strength, picture.width * 10 / 224, picture.height * 10 / 224
    matrix = {
        "shear x": (1, 0.3 * share, 0, 0, 1, 0),
        "shear y": (1, 0, 0, 0.3 * share, 1, 0),
        "shift x": (1, 0, -x * share, 0, 1, 0),
        "shift y": (1, 0, 0, 0, 1, -y * share),
    }[name]
    how = {"resample": Image.Resampling.BILINEAR, "fillcolor": (128, 128, 128)}
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, **how)


@pytest.mark.parametrize("strength", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("size", [(120, 90), (224, 224)])
@pytest.mark.parametrize(("number", "name"), list(enumerate(MOVES, start=5)))
def test_geometric_operations_equal_pillows(number, name, size, strength):
    picture = photo(12, 9).resize(size, Image.Resampling.BICUBIC)
    seen = set()
    for seed in range(12):
        moved = OPERATIONS[number](pixels(picture), strength, random.Random(seed)).numpy().astype(int)
        ways = [np.abs(moved - np.asarray(by_pillow(name, picture, strength, sign))) for sign in (-1, 1)]
        seen.add(way := int(ways[1].mean() < ways[0].mean()))
        assert ways[way].mean() < 1.5 and (ways[way] > 2).mean() < 0.03  # the border to the gray area differs a little
    assert seen == {0, 1}


@pytest.mark.parametrize("size", [(64, 64), (50, 90), (300, 200)])
def test_resizing_equals_pillows(size):
    picture = photo(*size)
    theirs = np.asarray(picture.resize((64, 64), Image.Resampling.BICUBIC)).transpose(2, 0, 1).astype(int)
    assert np.abs(evaluation_image(picture, 64) - theirs).mean() < 0.5


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(32, 32), (90, 51), (51, 90), (640, 480), (3000, 100), (7, 2000), (20, 9)])
def test_the_middle_of_the_resized_image_is_kept(size, interpolation):
    picture, (width, height) = photo(*size), size
    high, wide = (int(32 * side / min(size)) for side in (height, width))
    whole = torch.nn.functional.interpolate(
        pixels(picture).permute(2, 0, 1)[None], (high, wide), mode=interpolation, antialias=True
    )[0]
    top, left = round((high - 32) / 2), round((wide - 32) / 2)
    expected = whole[:, top : top + 32, left : left + 32].numpy()
    assert (evaluation_image(picture, ImageSize(32, "shortest", interpolation)) == expected).all()


@pytest.mark.parametrize("size", [(6_000, 1), (1, 6_000), (65_500, 30), (20_000, 300)])
def test_a_very_long_image_is_not_resized_whole(size, monkeypatch):
    resized, real = [], transforms._resize
    monkeypatch.setattr(transforms, "_resize", lambda *given: resized.append(given[1] * given[2]) or real(*given))
    model_size = ImageSize(224, "shortest")
    monkeypatch.setattr(transforms, "MAX_PIXELS", limit := MAX_PIXELS // 8)  # the same in less time
    row = np.linspace(0, 255, max(size)).astype(np.uint8)
    line = np.broadcast_to(row[None, :, None], (min(size), max(size), 3))
    made = evaluation_image(line if size[0] > size[1] else line.transpose(1, 0, 2), model_size)
    assert resized[0] <= limit and np.abs(made.astype(int) - 127).max() <= 2


def test_a_long_image_cut_before_resizing_equals_one_cut_afterwards(monkeypatch):
    picture, size = photo(3000, 10), ImageSize(64, "shortest")
    after = evaluation_image(picture, size)
    monkeypatch.setattr(transforms, "MAX_PIXELS", 64 * 64 * 40)
    assert transforms.resized_part(3000, 10, 64) == (1300, 0, 1700, 10)
    assert (evaluation_image(picture, size) == after).all()


def test_captions_are_cleaned_as_in_blip():
    assert clean_caption('A "Dog" (brown); runs:  fast!\n') == "a dog brown runs fast"
    assert clean_caption("one " * 80).split() == ["one"] * 50
    assert clean_caption("img_0012.jpg, half-true") == "img_0012 jpg, half-true"


def test_blips_magnitude_moves_by_five_pixels_and_keeps_colors():
    image = pixels(photo(224, 224))
    plain, moved = image.numpy(), OPERATIONS[7](image, 0.5, random.Random(0)).numpy()
    right, left = (moved[:, 5:] == plain[:, :-5]).all(), (moved[:, :-5] == plain[:, 5:]).all()
    assert right != left
    assert (moved[:, :5] == 128).all() if right else (moved[:, -5:] == 128).all()
    for number in (3, 4):
        assert (OPERATIONS[number](image, 0.5, random.Random(0)) == image).all()
        assert (OPERATIONS[number](image, 0.6, random.Random(0)) != image).any()
