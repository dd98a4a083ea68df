"""Which number format the heavy products run in, on the device at hand."""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from vlp.config import Precision


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The autocast dtype of a precision on a device; None for plain float32.

    "auto" means bfloat16 where the device multiplies it fast (GPUs, CPUs with AVX512-BF16 or AMX), else float32.
    """
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_has_bfloat16()
        precision = "bf16" if fast else "fp32"
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}[precision]


def product_dtype(x: Tensor) -> torch.dtype:
    """What a matrix product with `x` is computed in: autocast's dtype where it is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


@cache
def _cpu_has_bfloat16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
