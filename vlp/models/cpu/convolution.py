"""Standardized convolutions on a CPU: channels last, and products of matrices where the filters have one place."""

import torch
from torch import Tensor
from torch.nn import functional as F

from vlp.models.cpu.linear import derived, linear
from vlp.models.image_encoders.hybrid import StandardizedConv2d, standardize


class CpuStandardizedConv2d(StandardizedConv2d):
    """A standardized convolution in the layout that oneDNN prefers. Norms and activations after it keep the layout."""

    def forward(self, input: Tensor) -> Tensor:
        """As in `StandardizedConv2d`."""
        weight = derived(self.weight, standardize)
        if self.kernel_size == (1, 1):
            stride = self.stride[0]
            rows = input.permute(0, 2, 3, 1)[:, ::stride, ::stride]  # [batch, height / stride, width / stride, inputs]
            return linear(rows.contiguous(), weight.flatten(1)).permute(0, 3, 1, 2)
        if self.margin:
            input = F.pad(input, self.margin)
        return F.conv2d(input.contiguous(memory_format=torch.channels_last), weight, None, self.stride, self.padding)
