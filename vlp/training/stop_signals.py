"""SIGTERM and SIGINT: training ends after the step in progress, at the same step in every process."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from vlp.errors import WorkError

# vlp.distributed is imported where it is used: it loads torch, and the command line handles signals before that.

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Schedulers and launchers may each send a signal for the same stop: torchrun forwards what the terminal or SLURM has
# sent already, `timeout` signals the process and then its group. Such copies arrive within this many seconds.
COPIES_WITHIN, COPIES_WITHIN_LAUNCHED = 0.3, 2.0
STOP_KEY = "stop requested"
CONTINUE = "rerun the command to continue (`vlp pretrain` and `vlp finetune` with --resume)"
BEFORE_FIRST_STEP = f"Stopped before the first step; {CONTINUE}."


class _StopNow(BaseException):
    """Raised by the signal handler wherever the main thread is, while there is nothing to save."""


@dataclass
class StopRequest:
    """Whether this process was asked to stop.

    Attributes:
        finish_step: whether a signal only sets `requested`, for the loop to read. Otherwise it ends the work at once.
    """

    requested: bool = False
    finish_step: bool = False
    time: float = 0.0

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """The signal handler. A second signal ends the process at once."""
        if self.requested:
            launched = "LOCAL_RANK" in os.environ
            if time.monotonic() - self.time >= (COPIES_WITHIN_LAUNCHED if launched else COPIES_WITHIN):
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self.requested, self.time = True, time.monotonic()
        if not self.finish_step:
            raise _StopNow

    def tell_main(self) -> None:
        """Forward the request to the first process while it works alone, see `reached_any`."""
        from vlp.distributed import shared_store

        if self.requested:
            shared_store().set(STOP_KEY, "")

    def reached_any(self) -> bool:
        """In the first process, while the others wait in `run_on_main`: whether any process was asked to stop."""
        from vlp.distributed import shared_store, world_size

        return self.requested or (world_size() > 1 and shared_store().check([STOP_KEY]))


@contextmanager
def stop_on_signals(sentence: str = BEFORE_FIRST_STEP) -> Iterator[StopRequest]:
    """Handle SIGTERM and SIGINT in the block. In a thread, where Python allows no handlers, nothing changes.

    Args:
        sentence: the error message if a signal ends the block.

    Raises:
        WorkError: a signal arrived while `finish_step` was False. Processes other than the first exit silently.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    handlers = {one: signal.signal(one, stop.on_signal) for one in SIGNALS}
    try:
        yield stop
    except _StopNow:
        raise stopped(sentence) from None
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)


def stopped(sentence: str) -> BaseException:
    """The error that ends every process of a run: only the first one prints the sentence; all exit with code 1."""
    # Not by `is_main`: a signal may have interrupted the import of torch, or the start of the process group.
    return WorkError(sentence) if os.environ.get("RANK", "0") == "0" else SystemExit(1)
