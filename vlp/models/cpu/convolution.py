"""Standardized convolutions on a CPU: the memory layout that is faster, and products of matrices."""

import torch
from torch import Tensor
from torch.nn import functional as F

from vlp.models.cpu.linear import derived, linear
from vlp.models.image_encoders.hybrid import StandardizedConv2d, standardize
from vlp.models.precision import product_dtype


class CpuStandardizedConv2d(StandardizedConv2d):
    """A standardized convolution with channels last, which oneDNN prefers; a product where filters have one place.

    Norms and activations after it keep the layout. In training with bf16 it is the usual one, channels first: group
    norm's backward pass in bf16 is many times slower with channels last (PyTorch 2.14).
    """

    def forward(self, input: Tensor) -> Tensor:
        """As in `StandardizedConv2d`."""
        weight = derived(self.weight, standardize)
        channels_last = not (torch.is_grad_enabled() and product_dtype(input) == torch.bfloat16)
        if channels_last and self.kernel_size == (1, 1):
            stride = self.stride[0]
            rows = input.permute(0, 2, 3, 1)[:, ::stride, ::stride]  # [batch, height / stride, width / stride, inputs]
            return linear(rows.contiguous(), weight.flatten(1)).permute(0, 3, 1, 2)
        if self.margin:
            input = F.pad(input, self.margin)
        if channels_last:
            input = input.contiguous(memory_format=torch.channels_last)
        return F.conv2d(input, weight, None, self.stride, self.padding)
