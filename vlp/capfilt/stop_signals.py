"""SIGTERM and SIGINT: end the work at once with one sentence, after the cleanup that a plain kill would skip."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from vlp.distributed import is_main
from vlp.errors import WorkError

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SAME_REQUEST = 1.0  # seconds: the launcher and the scheduler may each send a signal for the same stop


class _StopRequest(BaseException):
    """Raised by the signal handler wherever the main thread is."""


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Stop the block when SIGTERM or SIGINT arrives. Does nothing in a thread, where Python allows no handlers.

    Raises:
        WorkError: the first process was stopped. The others exit with code 1 and print nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    last = -SAME_REQUEST

    def stop(number: int, _: object) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before >= SAME_REQUEST:
            raise _StopRequest(signal.Signals(number).name)

    handlers = {one: signal.signal(one, stop) for one in SIGNALS}
    try:
        yield
    except _StopRequest as request:
        if not is_main():
            raise SystemExit(1) from None
        raise WorkError(f"Stopped by {request}; finished tables are kept: rerun the command to continue.") from None
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)
