"""RandAugment of timm and random erasing, drawn from a random state of the sample."""

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlp.errors import UserError

# Random erasing (Zhong et al. 2020, section 3.1): share of the area, and the range of the aspect ratio.
AREA = (0.02, 1 / 3)
ASPECT = (0.3, 1 / 0.3)
NOISE = (123.0, 69.0)  # mean and deviation of the pixels that replace others; about those of photos


def rand_augment(pixels: Tensor, policy: str, rng: random.Random) -> Tensor:
    """Apply timm's RandAugment to an image.

    Args:
        pixels: uint8 [height, width, 3].
        policy: as timm writes it, such as rand-m9-mstd0.5-inc1.

    Returns:
        The same shape and dtype.
    """
    augment = read_policy(policy)
    with seeded(rng.getrandbits(32)):
        return torch.from_numpy(np.array(augment(Image.fromarray(pixels.numpy()))))


@lru_cache(maxsize=8)
def read_policy(policy: str) -> Callable[[Image.Image], Image.Image]:
    """The transform that a policy describes.

    Raises:
        UserError: timm does not know such a policy.
    """
    from timm.data.auto_augment import rand_augment_transform

    try:
        if not policy.startswith("rand-"):
            raise ValueError
        return rand_augment_transform(policy)
    except (AssertionError, ValueError, KeyError, TypeError):
        raise UserError(
            f"data.augment.policy is {policy!r}, which is no RandAugment of timm; write one like rand-m9-mstd0.5-inc1."
        ) from None


def erase(pixels: Tensor, rng: random.Random) -> Tensor:
    """Replace a random rectangle of an image, uint8 [height, width, 3], by noise."""
    height, width = pixels.shape[:2]
    for _ in range(10):
        area = height * width * rng.uniform(*AREA)
        aspect = math.exp(rng.uniform(*map(math.log, ASPECT)))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < h < height and 0 < w < width:
            top, left = rng.randint(0, height - h), rng.randint(0, width - w)
            noise = np.random.default_rng(rng.getrandbits(64)).normal(*NOISE, (h, w, 3))
            erased = pixels.clone()
            erased[top : top + h, left : left + w] = torch.from_numpy(noise.clip(0, 255).astype(np.uint8))
            return erased
    return pixels


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the random numbers of Python and NumPy, which timm draws from, and restore their states afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
