"""The allocator reuses freed blocks: allocating a large tensor again maps no new memory."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from vlp.models.cpu.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(25):
    torch.ones(20_000_000)
before = faults()
for _ in range(20):
    torch.ones(20_000_000)
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt belongs to glibc")
def test_large_blocks_are_reused():
    faults = {}
    for way in ("keep", "plain"):
        done = subprocess.run([sys.executable, "-c", SCRIPT, way], capture_output=True, text=True, check=True)
        faults[way] = int(done.stdout)
    assert faults["keep"] < faults["plain"] / 10, faults
