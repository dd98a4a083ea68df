"""Keep freed memory in the process: on CPU, giving it back and asking again costs a training step dearly."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt
LARGEST = 2**31 - 1  # bytes; what a C int holds


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to reuse large blocks rather than map each anew. Returns whether it was told.

    docs/benchmarks.md has the measurement. On other C libraries nothing happens.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, LARGEST))
