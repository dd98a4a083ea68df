"""Parameter groups and the learning rate."""

import pytest
import torch

from vlp.config import OptimConfig
from vlp.errors import UserError
from vlp.training.optim import build_optimizer, learning_rate
from vlp.training.parameter_groups import parameter_groups


def test_matrices_decay_and_vectors_do_not():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
    module[2].requires_grad_(False)
    decayed, plain = parameter_groups(module, OptimConfig())
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3)]
    assert [tuple(p.shape) for p in plain["params"]] == [(4,), (4,), (4,)]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    assert build_optimizer(OptimConfig(betas=[0.8, 0.9]), module).defaults["betas"] == (0.8, 0.9)


def test_blips_schedule():
    config = OptimConfig(learning_rate=3e-4, warmup_start=1e-6, warmup_steps=100, decay_rate=0.9, floor=1e-6)
    rates = [learning_rate(config, step, 1000, 50.0) for step in range(1000)]
    assert rates[0] == 1e-6
    assert rates[50] == pytest.approx((1e-6 + 3e-4) / 2)
    assert rates[100] == pytest.approx(3e-4 * 0.9**2)
    assert rates[149] == rates[100]
    assert rates[150] == pytest.approx(3e-4 * 0.9**3)
    assert learning_rate(config, 10**6, 1000, 50.0) == 1e-6


def test_cosine_and_constant():
    cosine = OptimConfig(learning_rate=1.0, warmup_steps=10, decay="cosine", floor=0.1)
    assert learning_rate(cosine, 10, 110, 1.0) == 1.0
    assert learning_rate(cosine, 60, 110, 1.0) == pytest.approx(0.55)
    assert learning_rate(cosine, 110, 110, 1.0) == pytest.approx(0.1)
    constant = OptimConfig(learning_rate=1.0, warmup_steps=0, decay="constant")
    assert {learning_rate(constant, step, 10, 1.0) for step in range(10)} == {1.0}


def test_linear_decay_in_the_last_share_of_the_steps():
    linear = OptimConfig(learning_rate=1.0, warmup_steps=10, decay="linear", floor=0.0)
    assert [learning_rate(linear, step, 110, 1.0) for step in (10, 60, 110)] == pytest.approx([1.0, 0.5, 0.0])
    late = OptimConfig(learning_rate=1.0, warmup_steps=10, decay="linear", decay_share=0.2, floor=0.0)
    assert {learning_rate(late, step, 100, 1.0) for step in range(10, 81)} == {1.0}
    assert learning_rate(late, 90, 100, 1.0) == pytest.approx(0.5)
    with pytest.raises(UserError, match="decay_share is for decay cosine and linear; leave it out for constant"):
        OptimConfig(decay="constant", decay_share=0.5)
