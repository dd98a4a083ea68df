"""CLIP's text tower: padding changes nothing, later tokens are not seen, and the CPU's shortcuts give equal states."""

from copy import deepcopy

import pytest
import torch

from vlp.config_model import TextTowerConfig
from vlp.models.clip_text import ClipTextTower
from vlp.models.cpu.optimise import optimise_for_cpu


def make_tower(causal: bool) -> ClipTextTower:
    torch.manual_seed(1)
    settings = {"positions": 24, "dropout": 0.0, "name": "clip", "causal": causal, "pooling": "end"}
    return ClipTextTower(TextTowerConfig(50, width=32, layers=2, heads=2, feed_forward=64, **settings))


def make_texts() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(2)
    mask = torch.arange(24) < torch.tensor([3, 24, 9, 5, 6, 4])[:, None]
    return torch.randint(3, 50, (6, 24)).masked_fill(~mask, 0), mask


@pytest.mark.parametrize("causal", [True, False])
def test_states_do_not_depend_on_padding(causal):
    tower, (ids, mask) = make_tower(causal), make_texts()
    together = tower.encode(ids, mask)
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        alone = tower.encode(ids[row : row + 1, :length], mask[row : row + 1, :length])[0]
        torch.testing.assert_close(together[row, :length], alone, atol=1e-5, rtol=1e-5)


def test_a_causal_tower_does_not_see_later_tokens():
    tower, (ids, mask) = make_tower(True), make_texts()
    changed = ids.clone()
    changed[1, 10:] = 7
    assert torch.equal(tower.encode(ids, mask)[1, :10], tower.encode(changed, mask)[1, :10])


@pytest.mark.parametrize("causal", [True, False])
def test_states_and_gradients_without_padding_are_equal(causal):
    plain, (ids, mask) = make_tower(causal), make_texts()
    fast = optimise_for_cpu(deepcopy(plain))
    assert type(fast) is not ClipTextTower
    weights = torch.randn(*mask.shape, 32) * mask[..., None]
    for tower in (plain, fast):
        (tower.encode(ids, mask) * weights).sum().backward()
    with torch.no_grad():
        torch.testing.assert_close(fast.encode(ids, mask)[mask], plain.encode(ids, mask)[mask], atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4)
