"""Linear layers for inference on a CPU: weights laid out once in the order in which oneDNN reads them.

PyTorch lays a weight out anew at every product. With eight rows, as in decoding, that is most of the work; in float32
it calls MKL besides, which is slow on processors of other makers (docs/benchmarks.md has both measured).
"""

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

        Where gradients are asked for, or off the CPU, it is `F.linear` itself; under autocast it is in that precision.
        """
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype
        if torch.is_grad_enabled() or x.device.type != "cpu" or dtype not in self.dtypes or not x.numel():
            return F.linear(x, weight, bias)
        state = (weight.data_ptr(), 0 if weight.is_inference() else weight._version, dtype)
        if state != self.made_from:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype))
            self.made_from = state
        bias = None if bias is None else bias.to(dtype)
        return torch.ops.mkldnn._linear_pointwise(x.to(dtype), self.packed, bias, "none", [], "")

    def __getstate__(self) -> dict:
        """Copies pack for themselves."""
        return {"dtypes": self.dtypes, "packed": None, "made_from": ()}


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
    """Replace every linear layer below `module` by a packed one; parameters and their names stay."""
    for name, child in module.named_children():
        if type(child) is nn.Linear:  # a subclass may have ways of its own
            setattr(module, name, PackedLinear(child))
        else:
            pack_linears(child)
    if hasattr(module, "product") and module.product is F.linear:  # a product with somebody else's weight
        module.product = PackedProduct()
