"""Records which process does something, so that another process can tell whether it still runs."""

import os
import socket
from typing import Any

import psutil


def this_process() -> dict[str, Any]:
    """What identifies this process: its host, its number and when it started."""
    return {"host": socket.gethostname(), "process": os.getpid(), "started": psutil.Process().create_time()}


def is_running(recorded: dict[str, Any]) -> bool:
    """Whether a process that `this_process` recorded runs on this machine; False for one of another machine.

    Raises:
        KeyError: a field is missing.
    """
    if recorded["host"] != socket.gethostname():
        return False
    try:
        process = psutil.Process(recorded["process"])
        # A later process may have got the same number; in a restarted container it often has.
        return process.create_time() == recorded["started"] and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
