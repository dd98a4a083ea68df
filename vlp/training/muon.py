"""Muon for hidden matrices and AdamW for everything else, in one optimizer."""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
STEPS, COEFFICIENTS = 5, (3.4445, -4.7750, 2.0315)  # of Newton-Schulz, by Keller Jordan
RMS = 0.2  # of an update, as AdamW's, so that both take one learning rate (Liu et al. 2025, section 2.2)
MOST_AT_ONCE = 2**26  # elements that are orthogonalized at once; bounds the memory


class Muon(torch.optim.AdamW):
    """Updates groups with `parts` by Muon (Jordan 2024; Liu et al. 2025), and the other groups by AdamW.

    A group's `parts` is the number of matrices that are stacked in the rows of each of its parameters: 3 for fused
    queries, keys and values. Each is orthogonalized on its own. Matrices of equal shape are multiplied in one batch,
    because `torch.optim.Muon`, which multiplies them one by one, takes a large share of a small model's step. In fp16
    a step waits once for the device.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], products: torch.dtype):
        """Make the optimizer.

        Args:
            lr, betas: as of AdamW; Muon uses the same learning rate.
            products: dtype of the matrix products of the orthogonalization, bfloat16 or float32.
        """
        super().__init__(groups, lr=lr, betas=betas, fused=True)
        self.products = products
        self._step_supports_amp_scaling = False  # the scaler, not the optimizer, skips steps whose gradients overflow

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a state; that of AdamW's groups is converted as its own method does."""
        super().__setstate__({**state, "param_groups": [one for one in state["param_groups"] if "parts" not in one]})
        self.param_groups = state["param_groups"]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; `closure` as in every optimizer."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if "parts" not in group]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if "parts" in group:
                self._step_matrices(group)
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        matrices: list[Tensor] = [one for one in group["params"] if one.grad is not None]
        if not matrices:
            return
        gradients = [one.grad for one in matrices if one.grad is not None]
        for one in matrices:
            if "momentum" not in self.state[one]:
                self.state[one]["momentum"] = torch.zeros_like(one)
        moving = [self.state[one]["momentum"] for one in matrices]
        torch._foreach_lerp_(moving, gradients, 1 - MOMENTUM)
        updates = torch._foreach_lerp(gradients, moving, MOMENTUM)  # Nesterov
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        parts = [part for one in updates for part in one.chunk(group["parts"])]
        targets = [part for one in matrices for part in one.chunk(group["parts"])]
        for target, update in zip(targets, orthogonal(parts, self.products), strict=True):
            target.add_(update, alpha=-group["lr"] * RMS * math.sqrt(max(target.shape)))


def orthogonal(matrices: list[Tensor], products: torch.dtype) -> list[Tensor]:
    """The nearest matrices whose singular values are all about 1, by five steps of Newton-Schulz.

    Args:
        matrices: [rows, columns] each.
        products: dtype of the matrix products.
    """
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)  # by shape, the longer side last
    for number, matrix in enumerate(matrices):
        groups[min(matrix.shape), max(matrix.shape)].append(number)
    found = list(matrices)
    for (rows, columns), numbers in groups.items():
        at_once = max(1, MOST_AT_ONCE // (rows * columns))
        for start in range(0, len(numbers), at_once):
            chosen = numbers[start : start + at_once]
            stack = torch.stack([_wide(matrices[number]) for number in chosen])  # [matrices, rows, columns]
            for number, made in zip(chosen, newton_schulz(stack, products).to(stack.dtype).unbind(), strict=True):
                found[number] = made if matrices[number].shape == made.shape else made.T
    return found


def newton_schulz(stack: Tensor, products: torch.dtype) -> Tensor:
    """Newton-Schulz iteration on [matrices, rows, columns] with rows <= columns; the result has dtype `products`."""
    a, b, c = COEFFICIENTS
    stack = stack / stack.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    stack = stack.to(products)
    for _ in range(STEPS):
        gram = stack @ stack.mT  # [matrices, rows, rows]
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        stack = torch.baddbmm(stack, gram, stack, beta=a)
    return stack


def _wide(matrix: Tensor) -> Tensor:
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
