"""Markdown tables of experiments: means over seeds, and the machine that ran them."""

import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev

import torch


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table without a newline at the end."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, ["---"] * len(heads), *rows])


def mean_and_deviation(values: Iterable[float]) -> str:
    """Mean ± standard deviation in percent, of shares from 0 to 1; NaNs are left out, and a dash stands for nothing."""
    numbers = [100 * value for value in values if value == value]
    if not numbers:
        return "–"
    return f"{mean(numbers):.1f}" + (f" ± {stdev(numbers):.1f}" if len(numbers) > 1 else "")


def machine() -> str:
    """The processor, the GPU if there is one, the number of threads and the version of torch."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{os.cpu_count()} cores of {name}{gpu}, {torch.get_num_threads()} thread a process, torch {torch.__version__}"
    )
