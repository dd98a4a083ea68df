"""Parameter groups: which trained parameters share weight decay, a learning rate and an optimizer."""

import re
from typing import Any

from torch import nn

from vlp.config import OptimConfig

TOWER = re.compile(r"(?:^|.*\.)(?:image_encoder|text_tower)\.")
# The innermost block, as in layers.0.blocks.1 of a pyramid. The layers between the splits of T2T-ViT count as one.
BLOCK = re.compile(r"(?:^|.*\.)(?:(?:blocks|layers)\.\d+|tokens_to_token)\.")
STACKED = {"qkv": 3, "kqv": 3, "kv": 2, "key_value": 2}  # matrices in the rows of one weight


def parameter_groups(module: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """The trained parameters of a task in groups, each with its `weight_decay`.

    Matrices have weight decay; biases, norms and the temperature have none. A group with `parts` is for Muon (see
    there): the weights of linear layers in the blocks of both towers. Embeddings, positions, convolutions and heads
    are left to AdamW. `rate` is the group's learning rate relative to the schedule's, by layer where
    `optim.layer_decay` is below 1.
    """
    linear = _hidden_matrices(module) if config.name == "muon" else {}
    rates = layer_rates(module, config.layer_decay)
    groups: dict[tuple, dict[str, Any]] = {}
    for decays in (True, False):  # the order of a plain run's groups is that of its older checkpoints
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad or (parameter.ndim >= 2) != decays:
                continue
            parts, rate = linear.get(name, 0), rates.get(name, 1.0)
            group = groups.setdefault((decays, parts, rate), {"params": []})
            group["params"].append(parameter)
            group["weight_decay"] = config.weight_decay if decays else 0.0
            if rate != 1.0:
                group["rate"] = rate
            if parts:
                group["parts"] = parts
    return list(groups.values())


def _hidden_matrices(module: nn.Module) -> dict[str, int]:
    """The names of the linear weights in blocks, and how many matrices are stacked in each."""
    found = {}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and BLOCK.match(f"{name}."):
            stacked = [STACKED[part] for part in name.split(".") if part in STACKED]
            found[f"{name}.weight"] = stacked[0] if stacked else 1
    return found


def layer_rates(module: nn.Module, decay: float) -> dict[str, float]:
    """The relative learning rate of each parameter of both towers: decay ** (depth - layer).

    Layer 0 is what comes before the first block, such as embeddings; the last block and what follows have layer
    `depth`. Empty if decay is 1.
    """
    if decay == 1:
        return {}
    layers: dict[str, tuple[str, int]] = {}
    blocks: dict[str, list[str]] = {}  # of each tower, in order
    for name, _ in module.named_parameters():
        tower = TOWER.match(name)
        if not tower:
            continue
        seen, block = blocks.setdefault(tower[0], []), BLOCK.match(name)
        if block and block[0] not in seen:
            seen.append(block[0])
        layers[name] = tower[0], seen.index(block[0]) + 1 if block else len(seen)
    return {name: decay ** (len(blocks[tower]) - layer) for name, (tower, layer) in layers.items()}
