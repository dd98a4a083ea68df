"""The allocator reuses freed blocks: allocating a large tensor again maps no new memory."""

import resource
import sys
from pathlib import Path

import pytest
import torch

from tests.processes import run_ranks
from vlp.models.cpu.allocator import keep_freed_memory


def _count_faults(rank: int, folder: Path) -> None:
    """The page faults of five tensors of 40 MB, in the first process with kept memory."""
    if rank == 0:
        assert keep_freed_memory()
    for number in range(8):
        if number == 3:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(10_000_000)
    (folder / str(rank)).write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before))


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt belongs to glibc")
def test_large_blocks_are_reused(tmp_path):
    run_ranks(_count_faults, tmp_path)
    kept, plain = (int((tmp_path / str(rank)).read_text()) for rank in range(2))
    assert kept < plain / 3, (kept, plain)  # a forked heap may need one block more
