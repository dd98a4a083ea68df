"""Attention at the shapes of a pretraining step: the kernel that was chosen and the other."""

from collections.abc import Callable

import torch

from vlp.bench.caption import Size
from vlp.bench.timing import Measured, Work, compare, device
from vlp.models.cpu.attention import fused_attention, plain_attention, use_fused_kernel

TOKENS = 16  # of a caption


def bench_attention(size: Size, precision: str, batch: int, peers: bool) -> list[Measured]:
    """Self-attention of image and text and cross-attention, `batch` rows a call; the peer is the kernel not chosen."""
    patches = (size.image_size // 16) ** 2 + 1
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    shapes = [
        ("image", patches, patches),
        ("text", TOKENS, TOKENS),
        ("cross", TOKENS, patches),
        ("cross, 64 texts", 64 * TOKENS, patches),
    ]
    lines = []
    for gradients in (True, False):
        kernels = [plain_attention, fused_attention]
        for name, queries, keys in shapes:
            with torch.set_grad_enabled(gradients):
                chosen, other = reversed(kernels) if use_fused_kernel(device(), dtype, queries, keys) else kernels
            inputs = [_random(batch, size, length, dtype) for length in (queries, keys, keys)]
            ours, peer = _work(chosen, inputs, gradients), _work(other, inputs, gradients)
            way = "and backward" if gradients else "alone"
            what = f"{chosen.__name__}, {name} ({queries} x {keys}), forward {way}"
            make = (lambda peer=peer: peer) if peers else None
            lines.append(compare(what, "rows/s", batch, precision, ours, make, repeats=25))
    return lines


def _random(batch: int, size: Size, length: int, dtype: torch.dtype) -> torch.Tensor:
    shape = (batch, size.heads, length, size.width // size.heads)
    return torch.randn(shape, device=device(), dtype=dtype, requires_grad=True)


def _work(kernel: Callable[..., torch.Tensor], inputs: list[torch.Tensor], gradients: bool) -> Work:
    def work() -> None:
        if gradients:
            torch.autograd.grad(kernel(*inputs, None, 0.0).sum(), inputs)
        else:
            with torch.no_grad():
                kernel(*inputs, None, 0.0)

    return work
