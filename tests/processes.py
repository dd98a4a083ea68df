"""Groups of processes for tests of CapFilt."""

import multiprocessing
import os
import socket

import torch

PROCESSES = multiprocessing.get_context("forkserver")  # processes that need not import torch again
PROCESSES.set_forkserver_preload(["vlp.capfilt.run"])


def start(target, *arguments, count: int = 1) -> list[multiprocessing.Process]:
    """Processes of one group that run `target(*arguments)`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = [PROCESSES.Process(target=_run, args=(rank, count, port, target, arguments)) for rank in range(count)]
    for process in started:
        process.start()
    return started


def _run(rank: int, count: int, port: int, target, arguments: tuple) -> None:
    torch.set_num_threads(1)
    if count > 1:
        place = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": count, "RANK": rank, "LOCAL_RANK": rank}
        os.environ.update({name: str(value) for name, value in place.items()})
    target(*arguments)


def finish(processes: list[multiprocessing.Process]) -> list[int | None]:
    """Their exit codes."""
    for process in processes:
        process.join(200)
    return [process.exitcode for process in processes]
