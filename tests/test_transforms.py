"""Image and caption preprocessing."""

import io
import random

import numpy as np
import pytest
from PIL import Image

from vlp.config import AugmentConfig
from vlp.data.decode import EncodedImage
from vlp.data.transforms import OPERATIONS, clean_caption, evaluation_image, training_image


def encoded(picture: Image.Image, kind="PNG", **how) -> EncodedImage:
    data = io.BytesIO()
    picture.save(data, kind, **how)
    return EncodedImage(data.getvalue())


def photo(width=50, height=40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_the_generator_decides_everything():
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
        assert operation(photo(), strength, random.Random(0)).size == (50, 40)


def test_captions_are_cleaned_as_blip_does():
    assert clean_caption('A "Dog" (brown); runs:  fast!\n') == "a dog brown runs fast"
    assert clean_caption("one " * 80).split() == ["one"] * 50
    assert clean_caption("img_0012.jpg, half-true") == "img_0012 jpg, half-true"


def test_blips_magnitude_moves_by_five_pixels_and_keeps_colours():
    image = photo(224, 224)
    shift = OPERATIONS[7](image, 0.5, random.Random(0))
    plain, moved = np.asarray(image), np.asarray(shift)
    assert (moved[:, 5:] == plain[:, :-5]).all() or (moved[:, :-5] == plain[:, 5:]).all()
    assert (np.asarray(OPERATIONS[3](image, 0.5, random.Random(0))) == plain).all()
