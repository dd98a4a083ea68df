"""Processes for tests, forked from a server that has imported torch and vlp: each starts at once."""

import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "vlp.cli.main",
        "vlp.training.loop",
        "vlp.capfilt.rounds",
        "vlp.index",
        "accelerate",
        "pytest",
        "torch._dynamo",  # every optimizer imports it
        "torch.utils.tensorboard",
        "pandas",  # pyarrow imports it
    ]
)


def start(target: Callable, *arguments, count: int = 1) -> list[multiprocessing.Process]:
    """Processes of one group that run `target(*arguments)`, with the environment that a launcher gives them."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        group = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    group["CUDA_VISIBLE_DEVICES"] = ""  # NCCL refuses several processes on one GPU
    places = [{**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {} for rank in range(count)]
    return [_start({**os.environ, **place}, target, arguments) for place in places]


def _start(environment: dict[str, str], target: Callable, arguments: tuple) -> multiprocessing.Process:
    process = PROCESSES.Process(target=_run, args=(os.getcwd(), environment, target, arguments))
    process.start()
    return process


def _run(folder: str, environment: dict[str, str], target: Callable, arguments: tuple) -> None:
    os.chdir(folder)
    os.environ.clear()  # the server's, which may be old
    os.environ.update(environment)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # another server for a loader's workers imports all again
    target(*arguments)


def finish(processes: list[multiprocessing.Process]) -> list[int | None]:
    """Their exit codes."""
    for process in processes:
        process.join(200)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def run_ranks(target: Callable, *arguments, count: int = 2) -> None:
    """Run `target(rank, *arguments)` in `count` processes, which meet by themselves; raises if one fails."""
    codes = finish([_start(dict(os.environ), target, (rank, *arguments)) for rank in range(count)])
    assert codes == [0] * count, f"{target.__name__} ended with the codes {codes}; stderr has the traceback"


@dataclass
class Program:
    """A started program: its processes, and the folder with what they print."""

    processes: list[multiprocessing.Process]
    folder: Path

    def finish(self) -> list[int | None]:
        return finish(self.processes)

    @property
    def out(self) -> str:
        return (self.folder / "stdout").read_text()

    @property
    def err(self) -> str:
        return (self.folder / "stderr").read_text()


def start_vlp(folder: Path, *words: object, count: int = 1) -> Program:
    """Start `vlp WORDS` in a group of `count` processes; the new FOLDER gets what they print."""
    return start_code(folder, "from vlp.cli.main import main; main()", *words, count=count)


def run_vlp(folder: Path, *words: object, count: int = 1) -> Program:
    """`start_vlp`, and wait for its end; raises if a process fails."""
    program = start_vlp(folder, *words, count=count)
    codes = program.finish()
    assert codes == [0] * count, f"{codes}: {program.err[-3000:]}"
    return program


def start_code(folder: Path, code: str, *words: object, count: int = 1) -> Program:
    """Start `python -c CODE WORDS` in a group of `count` processes; the new FOLDER gets what they print."""
    folder.mkdir()
    return Program(start(_execute, folder, code, [str(word) for word in words], count=count), folder)


def run_code(code: str, *words: object, limit: float = 60.0) -> subprocess.CompletedProcess:
    """Run `python -c CODE WORDS`; kills it after `limit` seconds."""
    with tempfile.TemporaryDirectory() as place:
        program = start_code(Path(place) / "printed", code, *words)
        program.processes[0].join(limit)
        program.processes[0].kill()
        (returned,) = program.finish()
        return subprocess.CompletedProcess([code, *words], returned, program.out, program.err)


def _execute(folder: Path, code: str, words: list[str]) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    sys.argv = ["vlp", *words]
    exec(compile(code, "<code>", "exec"), {"__name__": "__main__"})
