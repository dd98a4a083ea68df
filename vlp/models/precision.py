"""The number format of matrix products on a device."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from vlp.config import Precision


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The autocast dtype of a precision on a device; None for plain float32.

    "auto" is bfloat16 where the hardware multiplies it (GPUs that support it, CPUs with AVX512-BF16 or AMX), else
    float32.
    """
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else _cpu_has_bfloat16()
        precision = "bf16" if fast else "fp32"
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}[precision]


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype of a matrix product with `x`: autocast's where it is on, else that of `x`."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A block whose products keep the dtype of their inputs; also for devices without autocast, such as meta."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


@cache
def _cpu_has_bfloat16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
