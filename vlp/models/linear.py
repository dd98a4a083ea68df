"""Linear layers of a model with bf16 weights on a CPU, by the kernel that is fast when nothing is trained."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class InferenceLinear(nn.Linear):
    """`nn.Linear` by oneDNN's inner product with its bias, which torch's compiler uses as well.

    `F.linear` goes through a general matrix product there: twice as slow for the few rows of a decoding step, and a
    quarter slower for a batch of images (docs/benchmarks.md).
    """

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]; as `nn.Linear` where gradients are wanted."""
        if torch.is_grad_enabled() or x.dtype != torch.bfloat16:
            return F.linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def speed_up_inference(model: nn.Module) -> None:
    """Make a model's linear layers `InferenceLinear` where that is possible; its weights stay as they are."""
    weight = next(model.parameters())
    known = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    if not known or weight.device.type != "cpu" or weight.dtype != torch.bfloat16:
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = InferenceLinear
