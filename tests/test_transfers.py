"""Copies that the host does not wait for hold what was there when they started."""

import torch

from vlp.transfers import on_its_way, to_device

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def test_later_changes_of_a_tensor_do_not_reach_its_copy():
    whole = torch.arange(12, device=DEVICE).view(3, 4)
    expected, copies = whole.cpu().clone(), (on_its_way(whole), on_its_way(whole[:, 1:3]))
    whole.zero_()
    every, part = (copy() for copy in copies)
    assert every.device.type == part.device.type == "cpu"
    assert torch.equal(every, expected) and torch.equal(part, expected[:, 1:3])


def test_a_copy_on_the_device_outlives_its_tensor():
    copies = [to_device(torch.full((100_000,), number), torch.device(DEVICE)) for number in range(20)]
    assert [int(one.unique()) for one in copies] == list(range(20))
    part = torch.arange(12).view(3, 4)[:, 1:3]
    assert torch.equal(to_device(part, torch.device(DEVICE)).cpu(), part)
