"""A block in which no weight changes, so that what is derived from weights is made once for all calls inside."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_kept: ContextVar[dict[tuple, Any] | None] = ContextVar("kept", default=None)


@contextmanager
def constant_weights() -> Iterator[None]:
    """Keep packed weights and CUDA graphs until the block ends; no weight may change inside.

    The methods of `vlp.Model` open one for each call, so weights may change between calls. Open one around many calls
    to make these things only once. Blocks nest, the outermost one counts. It applies to the current thread, and to no
    others.
    """
    if _kept.get() is not None:
        yield
        return
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def kept() -> dict[tuple, Any] | None:
    """What the block has kept so far, by what it was made of; None outside of a block."""
    return _kept.get()
