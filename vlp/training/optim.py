"""Parameter groups, AdamW and the learning rate schedule."""

import math

import torch
from torch import nn

from vlp.config import OptimConfig


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Trained parameters in two groups: matrices with weight decay; biases, norms and the temperature without."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def build_optimizer(config: OptimConfig, module: nn.Module) -> torch.optim.AdamW:
    """Fused AdamW over the trained parameters of `module`."""
    groups = parameter_groups(module, config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.betas[0], config.betas[1]), fused=True)


def learning_rate(config: OptimConfig, step: int, steps: int, steps_per_epoch: float) -> float:
    """The learning rate of an optimizer step: linear warm-up, then decay to the floor.

    Args:
        step: counted from 0.
        steps: length of the run, where cosine decay ends.
        steps_per_epoch: exponential decay multiplies by `decay_rate` after each epoch (BLIP's schedule).
    """
    if step < config.warmup_steps:
        done = step / config.warmup_steps
        return config.warmup_start + (config.learning_rate - config.warmup_start) * done
    if config.decay == "constant":
        return config.learning_rate
    if config.decay == "exponential":
        return max(config.floor, config.learning_rate * config.decay_rate ** int(step / steps_per_epoch))
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    cosine = (1 + math.cos(math.pi * min(1.0, done))) / 2
    return config.floor + (config.learning_rate - config.floor) * cosine
