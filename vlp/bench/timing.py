"""How benchmarks measure: in turns, medians, against the machine's own rate of matrix products."""

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

REPEATS = 5
SIDE = 2048  # of the matrices whose product is the machine's own rate


@dataclass
class Measured:
    """One line of a benchmark.

    Attributes:
        ours, peer: `unit` (such as pairs/s), medians; peer is None where none was measured.
        ratio: ours over peer.
        peak_memory_gib: of the process after ours ran and before the peer was built; of the GPU where there is one.
        share_of_matmul_rate: the part of the machine's matrix-product rate, at this precision, that our counted
            FLOPs reach.
        peer_peak_memory_gib: of the peer, where it has a process of its own.
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


def _uncounted_flops() -> dict[Any, Callable[..., int]]:
    """Formulas for CPU operations that `FlopCounterMode` does not count; some torch builds lack some of them."""
    aten, mkldnn = torch.ops.aten, torch.ops.mkldnn
    formulas = (
        (mkldnn, "_linear_pointwise", _packed_linear_flops),
        (aten, "_scaled_dot_product_flash_attention_for_cpu", _attention_flops),
        (aten, "_scaled_dot_product_flash_attention_for_cpu_backward", _attention_backward_flops),
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
    """Run ours and the peer in turns, each once before to warm up.

    Args:
        count: how many of `unit` one call makes.
        make_peer: builds the peer, after our memory was read; None: ours alone.
    """
    ours()
    with FlopCounterMode(display=False, custom_mapping=UNCOUNTED_FLOPS) as counter:
        ours()
    memory = peak_memory_gib()
    peer = make_peer() if make_peer else None
    if peer:
        peer()
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(repeats):
        seconds["ours"].append(_seconds(ours))
        if peer:
            seconds["peer"].append(_seconds(peer))
    mine = statistics.median(seconds["ours"])
    theirs = statistics.median(seconds["peer"]) if peer else None
    rate = matmul_rate(torch.bfloat16 if precision == "bf16" else torch.float32)
    return Measured(
        what,
        count / mine,
        count / theirs if theirs else None,
        unit,
        theirs / mine if theirs else None,
        precision,
        memory,
        counter.get_total_flops() / mine / rate,
    )


def matmul_rate(dtype: torch.dtype, seconds: float = 1.0) -> float:
    """FLOP/s of square matrix products, float, on the device that benchmarks use."""
    a = torch.randn(SIDE, SIDE, device=device()).to(dtype)
    a @ a
    _wait()
    started, products = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        for _ in range(4):
            a @ a
        _wait()
        products += 4
    return 2 * SIDE**3 * products / (time.perf_counter() - started)


def device() -> torch.device:
    """The first GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def peak_memory_gib() -> float:
    """Most memory held so far: of the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _seconds(work: Work) -> float:
    started = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - started


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
