"""Worker processes that read ahead, and page-locked memory for what they read."""

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from multiprocessing.connection import wait
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Dataset

from vlp.errors import UserError

STOP_SECONDS = 60  # longer than most steps


def start_workers(
    dataset: Dataset, workers: int, prefetch: int, pin: bool, items: Iterator[Any] | None = None
) -> Iterator[Any]:
    """The items of a dataset, in order, from processes that last as long as the iterator.

    Args:
        workers: number of processes, at least 1.
        prefetch: items that each of them reads ahead.
        pin: whether a thread of this process copies items to page-locked memory, by their `pin_memory()`.
        items: what the dataset's `__getitem__` is called with; None for an iterable dataset.
    """
    with warnings.catch_warnings():
        # More workers than cores are slower at worst, and the log tells how long a step waits for data.
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        return iter(
            DataLoader(
                dataset,
                sampler=items,  # type: ignore[arg-type]
                batch_size=None,
                num_workers=workers,
                collate_fn=_unchanged,  # type: ignore[arg-type]
                pin_memory=pin,
                prefetch_factor=prefetch,
                worker_init_fn=_start_worker,
                generator=torch.Generator(),  # without one the workers' seed is drawn from the global random state
            )
        )


def pins_memory(setting: Literal["auto", "on", "off"]) -> bool:
    """Whether `data.pin_memory` asks for page-locked batches on this machine.

    Raises:
        UserError: it is "on" and there is no GPU.
    """
    cuda = torch.cuda.is_available()
    if setting == "on" and not cuda:
        raise UserError("data.pin_memory is on, but there is no GPU to copy to; set it to auto.")
    return cuda and setting != "off"


def _start_worker(_worker: int) -> None:
    _outlive_stop_signals()
    threading.Thread(target=_end_with_the_main_process, daemon=True).start()


def _end_with_the_main_process() -> None:
    """End a worker whose main process was killed.

    torch's own watch looks at the process that forked the worker, which is another one where a server forks them: so
    Python starts processes by default since 3.14.
    """
    main = multiprocessing.parent_process()
    if main is not None:
        wait([main.sentinel])
        os._exit(1)


def _outlive_stop_signals() -> None:
    """Let a worker serve the step in progress when SIGTERM or SIGINT reaches the whole process group.

    The worker ends when the main process closes the iterator or dies. SIGTERM can also be the main process's last way
    to end it, so the worker then lives for `STOP_SECONDS` at most.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(STOP_SECONDS))


def _unchanged(chunk: Any) -> Any:
    return chunk  # the dataset's items are whole batches
