"""`vlp bench attention`: both attention kernels at the shapes of a pretraining step."""

from collections.abc import Callable

import torch

from vlp.bench.caption import Size
from vlp.bench.timing import Measured, Work, compare, device
from vlp.config import Precision
from vlp.models.cpu.attention import fused_attention, plain_attention, use_fused_kernel

TOKENS = 16  # tokens of a caption


def bench_attention(size: Size, precision: Precision, batch: int, peers: bool) -> list[Measured]:
    """Measure self-attention of images and texts, and cross-attention, with `batch` rows per call.

    Ours is the kernel that vlp chooses for the shape; the peer is the other one.
    """
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
            passes = "forward and backward" if gradients else "forward"
            what = f"{chosen.__name__}, {name} ({queries} x {keys}), {passes}"
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
