"""Linear layers on a CPU by oneDNN; for inference, weights are laid out once in the order in which it reads them.

PyTorch lays a weight out anew at every product. With eight rows, as in decoding, that is most of the work; in float32
it calls MKL besides, which is slow on processors of other makers (docs/benchmarks.md has both measured).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def packable() -> set[torch.dtype]:
    """The number formats in which this machine's PyTorch multiplies packed weights."""
    operators = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available() or not hasattr(operators, "_linear_pointwise"):
        return set()
    return {torch.float32, torch.bfloat16} if operators._is_mkldnn_bf16_supported() else {torch.float32}


class PackedProduct:
    """`F.linear` with one weight, which is packed at its first use, and again when it has changed."""

    def __init__(self) -> None:
        self.dtypes = packable()
        self.packed: Tensor | None = None
        self.made_from: tuple = ()

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [..., inputs], weight [outputs, inputs], bias [outputs] -> [..., outputs].

        Off the CPU, in compiled blocks, and with gradients in anything but float32, it is `F.linear` itself; under
        autocast it is in that precision.
        """
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype
        if x.device.type != "cpu" or dtype not in self.dtypes or not x.numel() or torch.compiler.is_compiling():
            return F.linear(x, weight, bias)
        if torch.is_grad_enabled():
            alike = x.dtype == dtype == torch.float32
            return _TrainedProduct.apply(x, weight, bias) if alike else F.linear(x, weight, bias)
        state = (weight.data_ptr(), 0 if weight.is_inference() else weight._version, dtype)
        if state != self.made_from:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype))
            self.made_from = state
        bias = None if bias is None else bias.to(dtype)
        return _product(x.to(dtype), self.packed, bias)

    def __getstate__(self) -> dict:
        """Copies pack for themselves."""
        return {"dtypes": self.dtypes, "packed": None, "made_from": ()}


class _TrainedProduct(torch.autograd.Function):
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


class PackedLinear(nn.Module):
    """A linear layer around the parameters of another, under the same names."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.product = PackedProduct()

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        return self.product(x, self.weight, self.bias)


def pack_linears(module: nn.Module) -> None:
    """Replace every linear layer below `module` by one of these; parameters and their names stay."""
    for name, child in module.named_children():
        if type(child) is nn.Linear:  # a subclass may have ways of its own
            setattr(module, name, PackedLinear(child))
        else:
            pack_linears(child)
    if hasattr(module, "product") and module.product is F.linear:  # a product with somebody else's weight
        module.product = PackedProduct()
