"""The activation functions of towers, by their names in configs."""

from collections.abc import Callable

from torch import Tensor, nn


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), the approximation of GELU in CLIP (Hendrycks and Gimpel 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same shape."""
        return x * (1.702 * x).sigmoid()


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "quick_gelu": QuickGELU,
}
