"""How benchmarks measure: ours and the peer in turns, by medians, relative to the speed of matrix products."""

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import vlp.models.flat_attention  # noqa: F401  (defines torch.ops.vlp)

REPEATS = 5
SIDE, GPU_SIDE = 2048, 8192  # of the matrices whose products give the machine's rate
RATE_SECONDS = 1.0  # of these products


@dataclass
class Measured:
    """One line of a benchmark.

    Attributes:
        ours, peer: median speeds in `unit`, such as pairs/s; peer is None if it was not measured.
        ratio: ours / peer.
        peak_memory_gib: peak memory of the process (on GPUs, of the device) before the peer was built.
        share_of_matmul_rate: FLOP/s of ours as a fraction of what matrix products reach at this precision.
        peer_peak_memory_gib: peak memory of a peer that runs in a separate process.
        parameters: of the network that is measured, where its size is the point; else None.
        flops: of ours for one item.
    """

    what: str
    ours: float
    peer: float | None
    unit: str
    ratio: float | None
    precision: str
    peak_memory_gib: float
    share_of_matmul_rate: float
    peer_peak_memory_gib: float | None = None
    parameters: int | None = None
    flops: float = 0.0


Work = Callable[[], object]


def _packed_linear_flops(x: torch.Size, weight: torch.Size, *_: object, out_shape: torch.Size, **__: object) -> int:
    """2 * rows * inputs * outputs. The shape of a packed weight does not give the number of outputs."""
    return 2 * x.numel() * out_shape[-1]


def _attention_flops(query: torch.Size, key: torch.Size, *_: object, **__: object) -> int:
    """Two products of query and key length; shapes are [batch, heads, length, head_dim]."""
    return 2 * 2 * query.numel() * key[2]


def _attention_backward_flops(grad: torch.Size, query: torch.Size, key: torch.Size, *_: object, **__: object) -> int:
    """Five products: the scores again, and the gradients of weights, values, queries and keys."""
    return 5 * 2 * query.numel() * key[2]


def _flat_self_flops(qkv: torch.Size, starts: torch.Size, *_: object, **__: object) -> int:
    """Two products, as if all texts were equally long; the shape is [rows, 3 width]. Lengths are not known here."""
    rows, width = qkv[0], qkv[1] // 3
    return 2 * 2 * rows * width * rows // starts[0]


def _flat_cross_flops(query: torch.Size, both: torch.Size, *_: object, **__: object) -> int:
    """Two products of each row and its image's tokens; `both` is [2, images, heads, tokens, head_dim]."""
    return 2 * 2 * query.numel() * both[3]


def _flat_backward_flops(forward: Callable[..., int]) -> Callable[..., int]:
    """Five products for two; three arguments come before those of the forward pass."""

    def flops(gradient: torch.Size, gathered: torch.Size, sums: torch.Size, *given: object, **__: object) -> int:
        return forward(*given) * 5 // 2

    return flops


def _uncounted_flops() -> dict[Any, Callable[..., int]]:
    """Formulas for operations that `FlopCounterMode` does not count; some torch builds lack some of them."""
    aten, mkldnn, ours = torch.ops.aten, torch.ops.mkldnn, torch.ops.vlp
    formulas = (
        (mkldnn, "_linear_pointwise", _packed_linear_flops),
        (aten, "_scaled_dot_product_flash_attention_for_cpu", _attention_flops),
        (aten, "_scaled_dot_product_flash_attention_for_cpu_backward", _attention_backward_flops),
        (ours, "flat_self_attention", _flat_self_flops),
        (ours, "flat_self_attention_backward", _flat_backward_flops(_flat_self_flops)),
        (ours, "flat_cross_attention", _flat_cross_flops),
        (ours, "flat_cross_attention_backward", _flat_backward_flops(_flat_cross_flops)),
    )
    return {getattr(place, name): formula for place, name, formula in formulas if hasattr(place, name)}


UNCOUNTED_FLOPS = _uncounted_flops()


def compare(
    what: str,
    unit: str,
    count: int,
    precision: str,
    ours: Work,
    make_peer: Callable[[], Work] | None,
    repeats: int = REPEATS,
) -> Measured:
    """Time ours and the peer in turns, after a warm-up run of each.

    Args:
        count: number of items, in the terms of `unit`, that one call processes.
        make_peer: builds the peer; called after our peak memory was read. None to measure ours only.
    """
    ours()
    # Compiled blocks that meet the counter would be run uncompiled from then on.
    uncompiled = torch.compiler.set_stance("force_eager")
    with uncompiled, FlopCounterMode(display=False, custom_mapping=UNCOUNTED_FLOPS) as counter:
        ours()
    memory = peak_memory_gib()
    peer = make_peer() if make_peer else None
    if peer:
        peer()
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(repeats):
        seconds["ours"].append(seconds_of(ours))
        if peer:
            seconds["peer"].append(seconds_of(peer))
    our_seconds = statistics.median(seconds["ours"])
    peer_seconds = statistics.median(seconds["peer"]) if peer else None
    rate = matmul_rate(torch.bfloat16 if precision == "bf16" else torch.float32)
    return Measured(
        what,
        count / our_seconds,
        count / peer_seconds if peer_seconds else None,
        unit,
        peer_seconds / our_seconds if peer_seconds else None,
        precision,
        memory,
        counter.get_total_flops() / our_seconds / rate,
        flops=counter.get_total_flops() / count,
    )


def matmul_rate(dtype: torch.dtype) -> float:
    """FLOP/s of square matrix products on the device that benchmarks use."""
    side = GPU_SIDE if device().type == "cuda" else SIDE
    a = torch.randn(side, side, device=device()).to(dtype)
    torch.mm(a, a)
    wait()
    started, products = time.perf_counter(), 0
    while time.perf_counter() - started < RATE_SECONDS:
        for _ in range(4):
            torch.mm(a, a)
        wait()
        products += 4
    return 2 * side**3 * products / (time.perf_counter() - started)


def device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def peak_memory_gib() -> float:
    """Peak memory so far: of the GPU if there is one, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def seconds_of(work: Work) -> float:
    """The time until work is done, on the GPU, too."""
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started


def wait() -> None:
    """Until the GPU, if there is one, has done all its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
