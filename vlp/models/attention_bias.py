"""What is added to the scores of attention, so that padding and later tokens get no weight."""

import torch
from torch import Tensor


def padding_bias(mask: Tensor) -> Tensor:
    """bool [texts, keys] -> float [texts, 1, 1, keys]: 0 at tokens, -inf at padding."""
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, float("-inf"))[:, None, None, :]


def causal_bias(start: int, tokens: int, device: torch.device) -> Tensor:
    """float [1, 1, tokens, start + tokens]: -inf where a key comes after its query."""
    bias = torch.full((tokens, start + tokens), float("-inf"), device=device)
    return bias.triu(start + 1)[None, None]
