"""Peers in a process of their own, which takes turns with ours; LAVIS in an environment of its own as well."""

import json
import os
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from vlp.errors import UserError, WorkError

WORKER = Path(__file__).with_name("peer_worker.py")
KEEP_FREED_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}


class PeerProcess:
    """A peer of peer_worker.py. Calling it does the peer's work once, start to end.

    Attributes:
        peak_memory_gib: the most memory the process has held.
    """

    def __init__(self, python: str, peer: str, settings: dict[str, Any], keep_freed_memory: bool = True):
        """Start the process and wait until the peer is built.

        Args:
            python: the interpreter, `lavis_python()` or `sys.executable`.
            peer: one of peer_worker's WORKS.
            settings: what that one reads.
            keep_freed_memory: have its allocator work as ours does (see allocator.py): the peer at its best.

        Raises:
            WorkError: the peer could not be built.
        """
        self.name = peer
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        environment = {**os.environ, **(KEEP_FREED_MEMORY if keep_freed_memory else {}), "HF_HUB_OFFLINE": "1"}
        environment.pop("PYTHONPATH", None)  # its packages are its own
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [python, str(WORKER)], stdin=pipe, stdout=pipe, stderr=self.errors, text=True, env=environment
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
        self.process.communicate()  # closes its input, which is its sign
        self.errors.close()

    def _ask(self, line: str) -> None:
        with suppress(BrokenPipeError):  # it ended, and the answer says so
            print(line, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            said = (self.errors.read().strip().splitlines() or ["nothing"])[-1]
            self.close()
            raise WorkError(f"The peer {self.name} stopped; the last it said was: {said}")
        self.peak_memory_gib = json.loads(line)["peak_memory_gib"]


def lavis_python() -> str:
    """The interpreter of the environment that scripts/bench_peers.sh makes.

    Raises:
        UserError: it has not been made.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("VLP_PEERS") or cache / "vlp" / "peers")
    if not (folder / ".installed").exists():
        raise UserError(f"LAVIS is not in {folder}: run scripts/bench_peers.sh once, which installs it there.")
    return str(folder / "bin" / "python")
