"""The optimizer and the learning rate schedule."""

import logging
import math

import torch
from torch import nn

from vlp.config import OptimConfig
from vlp.distributed import is_main
from vlp.training.muon import Muon
from vlp.training.parameter_groups import parameter_groups

log = logging.getLogger("vlp")


def build_optimizer(config: OptimConfig, module: nn.Module, products: torch.dtype = torch.float32) -> torch.optim.AdamW:
    """Fused AdamW over the trained parameters of `module`; Muon for hidden matrices where the config names it.

    Args:
        products: dtype of Muon's matrix products, bfloat16 or float32.
    """
    groups, betas = parameter_groups(module, config), (config.betas[0], config.betas[1])
    if config.name == "muon":
        if is_main():
            _warn_of_few_matrices(module, groups)
        return Muon(groups, config.learning_rate, betas, products)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=True)


def _warn_of_few_matrices(module: nn.Module, groups: list[dict]) -> None:
    """Warn if AdamW trains most weights of the image encoder: convolutions, or blocks whose names are unknown."""
    muon = {id(one) for group in groups if "parts" in group for one in group["params"]}
    weights = {
        id(one): one.numel()
        for name, one in module.named_parameters()
        if "image_encoder." in name and one.requires_grad and one.ndim >= 2
    }
    share = sum(size for one, size in weights.items() if one in muon) / max(1, sum(weights.values()))
    if weights and share < 0.5:
        log.warning(
            "Muon trains only %.0f%% of the image encoder's weights, and AdamW the others at Muon's rate; if training "
            "is unstable, set optim.name to adamw and a lower optim.learning_rate.",
            100 * share,
        )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of a step; that of a group with `rate` is relative to it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate", 1.0)


def learning_rate(config: OptimConfig, step: int, steps: int, steps_per_epoch: float) -> float:
    """The learning rate of an optimizer step: linear warm-up, then decay to the floor.

    Args:
        step: counted from 0.
        steps: length of the run, where cosine and linear decay end. They begin after the warm-up, or later where
            `decay_share` is small.
        steps_per_epoch: exponential decay multiplies by `decay_rate` after each epoch (BLIP's schedule).
    """
    if step < config.warmup_steps:
        done = step / config.warmup_steps
        return config.warmup_start + (config.learning_rate - config.warmup_start) * done
    if config.decay == "constant":
        return config.learning_rate
    if config.decay == "exponential":
        return max(config.floor, config.learning_rate * config.decay_rate ** int(step / steps_per_epoch))
    start = max(config.warmup_steps, round(steps * (1 - config.decay_share)))
    done = min(1.0, max(0, step - start) / max(1, steps - start))
    left = 1 - done if config.decay == "linear" else (1 + math.cos(math.pi * done)) / 2
    return config.floor + (config.learning_rate - config.floor) * left
