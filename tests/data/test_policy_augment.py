"""RandAugment of timm and random erasing depend on the random state of the sample alone."""

import random

import numpy as np
import pytest
import torch

from vlp.config import AugmentConfig
from vlp.config_reader import from_dict
from vlp.data.policy_augment import erase, rand_augment
from vlp.errors import UserError

PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (24, 32, 3)).astype(np.uint8))


@pytest.mark.parametrize(
    "change", [lambda rng: rand_augment(PIXELS, "rand-m9-mstd0.5-inc1", rng), lambda rng: erase(PIXELS, rng)]
)
def test_a_change_is_a_function_of_the_random_state(change):
    before = random.getstate(), np.random.get_state()[1].copy()
    found = [change(random.Random(seed)) for seed in range(6)]
    random.random(), np.random.random()
    assert all(torch.equal(one, change(random.Random(seed))) for seed, one in enumerate(found))
    assert all(one.shape == PIXELS.shape and one.dtype == torch.uint8 for one in found)
    assert len({one.numpy().tobytes() for one in found}) > 3
    random.setstate(before[0])
    change(random.Random(1))
    assert random.getstate() == before[0]


def test_a_rectangle_is_erased():
    for seed in range(20):
        changed = (erase(PIXELS, random.Random(seed)) != PIXELS).any(dim=2)
        rows, columns = changed.any(dim=1).nonzero().flatten(), changed.any(dim=0).nonzero().flatten()
        box = changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert 0.01 * 768 < box.numel() < 0.4 * 768
        assert box.float().mean() > 0.9  # noise may equal a pixel


@pytest.mark.parametrize("policy", ["augmix-m3", "rand", "rand-x9", "m9"])
def test_other_policies_are_refused(policy):
    with pytest.raises(UserError, match="is no RandAugment of timm"):
        rand_augment(PIXELS, policy, random.Random(0))


def test_one_randaugment_at_a_time():
    with pytest.raises(UserError, match="set operations to 0"):
        from_dict(AugmentConfig, {"policy": "rand-m9"})
