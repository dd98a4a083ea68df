"""Keep freed memory in the process: on a CPU, returning it and asking for it again slows every step down."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of glibc's mallopt
LARGEST = 2**31 - 1  # bytes, the largest C int


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to reuse large blocks instead of mapping new memory; returns whether it accepted.

    A setting of the whole process; docs/benchmarks.md has its effect. With other C libraries nothing happens.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, LARGEST))
