"""Linear layers by oneDNN, whose weights are packed once where they are used many times.

PyTorch reorders a weight for oneDNN at every product. With few rows, as in decoding, that is most of the work; in
float32 it calls MKL instead, which is slow on processors of other vendors (docs/benchmarks.md has both measurements).
A packed weight is a copy. PyTorch does not count every change of a weight (`p.data.copy_()` and fused optimizers leave
its version as it was), so no packed weight outlives the `constant_weights` block in which it was made.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlp.losses.language import NOT_COUNTED
from vlp.models.constant_weights import kept
from vlp.models.language_head import LanguageHead
from vlp.models.text_rows import rounded_up

# Packed weights by what they were made of: (weight, packed). The weight is held so that no other can take its place.
# The weights of `derived` are there, too.
Packed = dict[tuple, tuple[Tensor, Tensor]]


@cache
def packable() -> frozenset[torch.dtype]:
    """The dtypes in which this machine's PyTorch multiplies packed weights."""
    operators = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available() or not hasattr(operators, "_linear_pointwise"):
        return frozenset()
    bf16 = {torch.bfloat16} if operators._is_mkldnn_bf16_supported() else set()
    return frozenset({torch.float32} | bf16)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` by oneDNN in float32; within `constant_weights` and without gradients by packed weights, also in bf16.

    Everything else is `F.linear` itself: other devices and dtypes, compiled blocks, tensor subclasses (quantized or
    distributed weights).

    Args:
        x: [..., inputs].
        weight: [outputs, inputs].
        bias: [outputs].

    Returns:
        [..., outputs], in autocast's dtype where it is on.
    """
    if torch.compiler.is_compiling() or x.device.type != "cpu" or not x.numel() or not _is_plain(weight):
        return F.linear(x, weight, bias)
    autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast else weight.dtype
    if dtype not in packable() or not (autocast or x.dtype == dtype):
        return F.linear(x, weight, bias)
    packed = None if torch.is_grad_enabled() else kept()
    if packed is not None:
        return _product(x.to(dtype), _pack(weight, dtype, packed), None if bias is None else bias.to(dtype))
    if not x.dtype == weight.dtype == dtype == torch.float32:
        return F.linear(x, weight, bias)  # for bf16, PyTorch uses oneDNN by itself
    return _Product.apply(x, weight, bias) if torch.is_grad_enabled() else _product(x, weight, bias)


def derived(weight: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
    """`make(weight)`, made once within `constant_weights` where no gradients are needed.

    Without it, a weight that is made anew for each product would be packed anew each time, and every packed copy kept.

    Args:
        make: a function of a module, which stands for what it makes.
    """
    packed = None if torch.is_grad_enabled() or torch.compiler.is_compiling() else kept()
    if packed is None or not _is_plain(weight):
        return make(weight)
    made_of = (weight.data_ptr(), weight._version, weight.shape, weight.stride(), weight.dtype, make)
    if made_of not in packed:
        packed[made_of] = (weight, make(weight.detach()))
    return packed[made_of][1]


def _is_plain(weight: Tensor) -> bool:
    return type(weight) in (nn.Parameter, Tensor) and weight.device.type == "cpu" and not weight.is_inference()


def _pack(weight: Tensor, dtype: torch.dtype, packed: Packed) -> Tensor:
    made_of = (weight.data_ptr(), weight._version, weight.shape, weight.stride(), weight.dtype, dtype)
    if made_of not in packed:
        weight = weight.detach()
        packed[made_of] = (weight, torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype)))
    return packed[made_of][1]


class _Product(torch.autograd.Function):
    """`F.linear` and its gradients, each by oneDNN."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        context.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = context.saved_tensors
        for_x, for_weight, for_bias = context.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])  # [rows, outputs]
        return (
            _product(rows, weight.T.contiguous(), None).view(x.shape) if for_x else None,
            _product(rows.T.contiguous(), x.reshape(len(rows), -1).T.contiguous(), None) if for_weight else None,
            rows.sum(dim=0) if for_bias else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class CpuLinear(nn.Linear):
    """A linear layer by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        return linear(input, self.weight, self.bias)


class CpuLanguageHead(LanguageHead):
    """A language head by `linear`, whose loss pads its rows to one of few numbers (see `rounded_up`)."""

    def logits(self, states: Tensor, words: Tensor) -> Tensor:
        """As in `LanguageHead`."""
        return linear(states, words, self.bias)

    def loss(
        self, hidden: Tensor, words: Tensor, targets: Tensor, smoothing: float, weights: Tensor | None = None
    ) -> Tensor:
        """As in `LanguageHead`."""
        more = rounded_up(len(hidden)) - len(hidden) if hidden.device.type == "cpu" else 0
        hidden, targets = F.pad(hidden, (0, 0, 0, more)), F.pad(targets, (0, more), value=NOT_COUNTED)
        weights = weights if weights is None else F.pad(weights, (0, more))
        return super().loss(hidden, words, targets, smoothing, weights)
