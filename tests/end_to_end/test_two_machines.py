"""Two machines, each with its own torchrun, give the weights and the tables of two processes on one machine."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from tests.processes import run_vlp
from vlp.config_reader import save_config
from vlp.data.shard_index import expand_shards
from vlp.demo.scenes import write_scenes

SCRIPTS = Path(__file__).parents[2] / "scripts"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_machines(folder: Path, *command: str) -> list[subprocess.Popen]:
    """Start `vlp COMMAND` with one launcher per machine; each has its own folder, log and process group."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-id=run"]
    launcher += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--local-addr=127.0.0.1"]
    agents = []
    for number in range(2):
        place = folder / f"machine-{number}"
        place.mkdir(parents=True, exist_ok=True)
        with (place / "log").open("a") as log:
            agents.append(
                subprocess.Popen(
                    [*launcher, "-m", "vlp", *command],
                    cwd=place,
                    env=ENVIRONMENT,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
    return agents


def finish(agents: list[subprocess.Popen], folder: Path) -> list[int]:
    """The exit codes of the launchers."""
    codes = [agent.wait(timeout=200) for agent in agents]
    if any(codes):
        print("".join(path.read_text()[-3000:] for path in folder.glob("machine-*/log")))
    return codes


def end_machine(agent: subprocess.Popen) -> None:
    """Kill the launcher and its processes at once, as when a machine loses power."""
    parent = psutil.Process(agent.pid)
    for process in [parent, *parent.children(recursive=True)]:
        process.kill()
    agent.wait()


def test_pretraining_on_two_machines_gives_the_same_weights(run_config, tmp_path):
    common = "objective.queue_size=20", "model.text_tower.dropout=0.1", "data.workers=1"
    one, two = (run_config(name, *common) for name in ("one", "two"))
    for config in (one, two):
        save_config(config, f"{config.output}.yaml")
    command = [str(SCRIPTS / "pretrain.sh"), f"{one.output}.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, env={**ENVIRONMENT, "PROCESSES": "2"}, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert finish(start_machines(tmp_path, "pretrain", f"{two.output}.yaml"), tmp_path) == [0, 0]
    weights = [Path(config.output, "model", "model.safetensors").read_bytes() for config in (one, two)]
    assert weights[0] == weights[1]
    assert "step 10/10" in "".join(path.read_text() for path in tmp_path.glob("machine-*/log"))


@pytest.fixture(scope="module")
def eight_shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("machines") / "web"
    write_scenes(str(folder), 64, "web", 0.5, 32, 8, seed=5)
    return folder


def score_command(folder: Path, models: list[str]) -> list[str]:
    settings = {"--shards": folder / "*.tar", "--captioner": models[0], "--filter": models[1], "--num-captions": 2}
    settings |= {"--batch-size": 4, "--precision": "fp32", "--set": "decoding={max_length: 10, min_length: 3}"}
    return ["capfilt", "score", *(str(word) for pair in settings.items() for word in pair)]


def columns(folder: Path) -> list[dict]:
    return [pq.read_table(path).to_pydict() for path in tables(folder)]


def tables(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


@pytest.fixture(scope="module")
def expected(eight_shards, models, tmp_path_factory) -> list[dict]:
    """The tables that two processes of one machine write."""
    run_vlp(tmp_path_factory.mktemp("machine") / "printed", *score_command(eight_shards, models), count=2)
    return columns(eight_shards)


@pytest.fixture
def shards(eight_shards, expected, tmp_path) -> Path:
    """A folder of the same shards without tables."""
    return shutil.copytree(eight_shards, tmp_path / "web", ignore=shutil.ignore_patterns("*.parquet"))


def test_scoring_on_two_machines_gives_the_same_tables_after_one_was_lost(shards, expected, models, tmp_path):
    agents = start_machines(tmp_path, *score_command(shards, models))
    deadline = time.monotonic() + 120
    while len(tables(shards)) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    end_machine(agents[1])
    finished = {path: path.stat().st_mtime_ns for path in tables(shards)}
    assert len(finished) < len(expand_shards(f"{shards}/*.tar")), "the machine was lost too late"
    agents[0].send_signal(signal.SIGTERM)  # as `srun --wait` does
    assert agents[0].wait(timeout=60) == 1
    assert finish(start_machines(tmp_path, *score_command(shards, models)), tmp_path) == [0, 0]
    assert columns(shards) == expected
    logs = [path.read_text() for path in tmp_path.glob("machine-*/log")]
    assert sorted("skipped_shards" in log for log in logs) == [False, True], "the first process prints the counts"
    counts = dict(re.findall(r"^(images|skipped_shards) +(\d+)$", "".join(logs), re.MULTILINE))
    assert int(counts["images"]) + 8 * int(counts["skipped_shards"]) == 64
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert sorted(path.name for path in shards.iterdir() if path.name.startswith(".")) == []
