"""Attention, forward and backward, at the shapes of a pretraining step: the kernel that was chosen and the other."""

import torch

from vlp.bench.caption import Size
from vlp.bench.timing import Measured, Work, compare, device
from vlp.models.attention import fused_attention, plain_attention, use_fused_kernel

TOKENS = 16  # of a caption


def bench_attention(size: Size, precision: str, batch: int, peers: bool) -> list[Measured]:
    """Self-attention of image and text and cross-attention, `batch` rows a call; the peer is the kernel not chosen."""
    patches = (size.image_size // 16) ** 2 + 1
    kernels = [plain_attention, fused_attention]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    chosen, other = reversed(kernels) if use_fused_kernel(device(), dtype) else kernels
    lines = []
    for name, queries, keys in (("image", patches, patches), ("text", TOKENS, TOKENS), ("cross", TOKENS, patches)):
        lengths = (queries, keys, keys)
        inputs = [_random(batch, size, length, dtype) for length in lengths]
        ours, peer = _work(chosen, inputs), _work(other, inputs)
        what = f"attention, {name} ({queries} x {keys}), {chosen.__name__}"
        lines.append(compare(what, "rows/s", batch, precision, ours, (lambda peer=peer: peer) if peers else None, 25))
    return lines


def _random(batch: int, size: Size, length: int, dtype: torch.dtype) -> torch.Tensor:
    shape = (batch, size.heads, length, size.width // size.heads)
    return torch.randn(shape, device=device(), dtype=dtype, requires_grad=True)


def _work(kernel: object, inputs: list[torch.Tensor]) -> Work:
    def work() -> None:
        torch.autograd.grad(kernel(*inputs, None, 0.0).sum(), inputs)

    return work
