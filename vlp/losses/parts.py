"""A computation over many rows, done for some rows at a time, so that memory does not grow with their number."""

from collections.abc import Callable, Iterator
from typing import TypeVar

from torch.utils.checkpoint import checkpoint

ROWS_AT_ONCE = 256  # against 57,600 columns, a matrix of 256 rows takes 60 MB

Result = TypeVar("Result")


def in_parts(compute: Callable[[int, int], Result], rows: int) -> list[Result]:
    """`compute(start, stop)` for parts of the rows.

    With several parts, what a part keeps for its gradient is dropped and computed again in the backward pass.

    Args:
        compute: deterministic, without random numbers.
    """
    parts = list(row_parts(rows))
    if len(parts) == 1:
        return [compute(*parts[0])]
    return [checkpoint(compute, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]


def row_parts(rows: int) -> Iterator[tuple[int, int]]:
    """The first row of each part, and the row after its last."""
    for start in range(0, max(rows, 1), ROWS_AT_ONCE):
        yield start, min(start + ROWS_AT_ONCE, rows)
