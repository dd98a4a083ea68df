"""Runs a peer in a separate process, in turns with ours; LAVIS also has a separate Python environment."""

import json
import os
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from vlp.errors import UserError, WorkError

KEEP_FREED_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}


class PeerProcess:
    """A peer in a worker process. Each call runs the peer's work once, from start to end.

    Attributes:
        peak_memory_gib: peak memory of the process so far.
    """

    def __init__(self, peer: str, settings: dict[str, Any], python: str | None = None, keep_freed_memory: bool = True):
        """Start the process and wait until the peer is built.

        Args:
            peer: a peer that scripts/bench/peer_worker.py knows.
            settings: the peer's settings, as JSON types.
            python: the interpreter to use; None for LAVIS's environment.
            keep_freed_memory: tell its allocator to keep freed memory, as ours does (`vlp/models/cpu/allocator.py`).

        Raises:
            UserError: the peers are not installed.
            WorkError: the peer could not be built.
        """
        folder = peers_folder()
        self.name = peer
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        environment = {**os.environ, **(KEEP_FREED_MEMORY if keep_freed_memory else {}), "HF_HUB_OFFLINE": "1"}
        environment.pop("PYTHONPATH", None)  # it would put our packages before the peer's
        command = [python or str(folder / "bin" / "python"), str(folder / "peer_worker.py")]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=self.errors, text=True, env=environment
        )
        self.peak_memory_gib = 0.0
        self._ask(json.dumps({"peer": peer, "threads": torch.get_num_threads(), **settings}))

    def __call__(self) -> None:
        self._ask("go")

    def __enter__(self) -> "PeerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self.process.communicate()  # closes the worker's stdin, which ends it
        self.errors.close()

    def _ask(self, line: str) -> None:
        """Send a line and read the answer."""
        assert self.process.stdin and self.process.stdout
        with suppress(BrokenPipeError):  # the process ended; its missing answer is handled below
            print(line, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            self.errors.seek(0)
            last = (self.errors.read().strip().splitlines() or ["nothing"])[-1]
            self.close()
            raise WorkError(f"The peer {self.name} stopped; the last line of its output was: {last}")
        self.peak_memory_gib = json.loads(answer)["peak_memory_gib"]


def peers_folder() -> Path:
    """The folder with the worker and LAVIS's environment, which scripts/bench/install_peers.sh creates.

    Raises:
        UserError: it does not exist or is not complete.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("VLP_PEERS") or cache / "vlp" / "peers")
    if not (folder / ".installed").exists() or not (folder / "peer_worker.py").exists():
        raise UserError(
            f"The peers are not installed in {folder}; run scripts/bench/install_peers.sh of a vlp checkout."
        )
    return folder
