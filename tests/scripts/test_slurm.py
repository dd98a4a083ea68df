"""The sbatch files run on two nodes that stand-ins for SLURM's commands start as processes of this machine."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer.main
from torch.distributed.run import get_args_parser

from vlp.cli.main import app
from vlp.config_reader import save_config
from vlp.log import read_log
from vlp.training.checkpoint import checkpoints

ROOT = Path(__file__).parents[2]
SLURM = ROOT / "scripts" / "slurm"
FILES = sorted(SLURM.glob("*.sbatch"))
IDS = [path.stem for path in FILES]
SBATCH_OPTIONS = {  # of sbatch(1)
    *("array", "cpus-per-task", "gpus-per-node", "job-name", "nodes", "ntasks-per-node", "open-mode", "output"),
    *("requeue", "signal", "time"),
}
# Each command writes its arguments to $CALLS. srun starts the nodes in their own sessions, and scancel signals them.
STAND_INS = {
    "scontrol": '[ "$1" = requeue ] || printf "127.0.0.1\\nsecond\\n"',
    "scancel": 'for pid in $(cat "$CALLS/pids"); do kill -TERM -- "-$pid"; done',
    "srun": """while [ "${1#--}" != "$1" ]; do shift; done
[ -z "$ONLY_RECORD" ] || exit 0
for node in $(seq "$SLURM_JOB_NUM_NODES"); do setsid "$@" & pids="$pids $!"; done
echo "$pids" >"$CALLS/pids"
code=0
for pid in $pids; do wait "$pid" || code=$?; done
exit $code""",
}


@pytest.fixture
def submit(tmp_path):
    """A function that runs an sbatch file as SLURM does, on `nodes` nodes; `calls(NAME)` are a command's arguments."""
    place = tmp_path / "slurm"
    (place / "bin").mkdir(parents=True)
    for name, script in STAND_INS.items():
        path = place / "bin" / name
        record = f'printf "%s\\t" "$@" >>"$CALLS/{name}"; echo >>"$CALLS/{name}"\n'
        path.write_text(f"#!/usr/bin/env bash\n{record}{script}\n")
        path.chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = f"{place / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "CALLS": str(place), "PYTHONPATH": str(ROOT), "ONLY_RECORD": ""}
    job = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_SUBMIT_DIR": str(ROOT)}
    environment |= {**job, "RENDEZVOUS_PORT": str(port), "OMP_NUM_THREADS": "1"}

    def start(file: str, *arguments: str, nodes: int = 2, **variables: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", str(SLURM / file), *arguments],
            env={**environment, "SLURM_JOB_NUM_NODES": str(nodes), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
        )

    def calls(name: str) -> list[list[str]]:
        path = place / name
        return [line.rstrip("\t").split("\t") for line in path.read_text().splitlines()] if path.exists() else []

    start.calls = calls
    return start


def examples(path: Path) -> list[str]:
    """The arguments of the sbatch command in a file's first comment."""
    comment = re.sub(r"\\\n#\s*", "", path.read_text())
    command = re.search(rf"^#\s+sbatch .*{re.escape(path.name)} (.*)$", comment, re.MULTILINE).group(1)
    return subprocess.run(["bash", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True).stdout.split(
        "\n"
    )


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_commands_and_options_exist(path, submit):
    options = re.findall(r"^#SBATCH --([\w-]+)", path.read_text(), re.MULTILINE)
    assert options and set(options) <= SBATCH_OPTIONS
    array = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "16", "SLURM_ARRAY_JOB_ID": "4700"}
    run = submit(path.name, *examples(path), ONLY_RECORD="yes", SLURM_GPUS_ON_NODE="8", **array)
    assert run.communicate(timeout=30)[0] == "" and run.returncode == 0
    ((_, torchrun, *rest),) = submit.calls("srun")
    assert torchrun == "torchrun"
    parsed = get_args_parser().parse_args(rest)
    assert (parsed.nnodes, parsed.nproc_per_node, parsed.module, parsed.training_script) == ("2", "8", True, "vlp")
    command = typer.main.get_command(app)
    words = parsed.training_script_args
    while hasattr(command, "commands"):
        name, *words = words
        command = command.commands[name]
    context = command.make_context("vlp", list(words))  # raises for an unknown option
    if path.stem == "score-array":
        assert context.params["part"] == "3/16"
    if path.stem == "pretrain":
        assert context.params["resume"] is True and (ROOT / context.params["config"]).exists()


@pytest.mark.parametrize("path", [*FILES, SLURM / "on_every_node.sh", ROOT / "scripts" / "pretrain.sh"])
def test_scripts_parse(path):
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True).stderr == ""


def test_pretraining_stops_before_the_time_limit_and_the_requeued_job_continues(run_config, submit, tmp_path):
    config = run_config("run", "checkpoint_every=0", "steps=40", "data.workers=1")
    save_config(config, tmp_path / "run.yaml")
    log = Path(config.output) / "log.jsonl"
    job = submit("pretrain.sbatch", str(tmp_path / "run.yaml"))
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text()) and time.monotonic() < deadline and job.poll() is None:
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    output, _ = job.communicate(timeout=300)
    assert job.returncode == 0, output
    assert "vlp: Stopped at step" in output and "goes back into the queue" in output
    assert submit.calls("scancel") == [["--signal=TERM", "4711"]]
    assert submit.calls("scontrol")[1:] == [["requeue", "4711"]]
    (checkpoint,) = checkpoints(Path(config.output))
    stopped_at = int(checkpoint.name.removeprefix("step-"))
    assert 1 <= stopped_at < 40
    assert json.loads((checkpoint / "progress.json").read_text())["processes"] == 2
    job = submit("pretrain.sbatch", str(tmp_path / "run.yaml"), nodes=1)  # the queue has fewer nodes now
    output, _ = job.communicate(timeout=300)
    assert job.returncode == 0, output
    assert f"step {stopped_at + 1}/40" in output or "step 40/40" in output
    assert [record["step"] for record in read_log(log)] == list(range(1, 41))
    assert (Path(config.output) / "model" / "model.safetensors").exists()
    assert len(submit.calls("scontrol")) == 3, "a finished job is not requeued"


def test_a_job_of_an_array_scores_its_part(submit, web_scenes, models, tmp_path):
    for name in ("00000.tar", "00001.tar", "00002.tar"):
        (tmp_path / name).write_bytes((web_scenes / name).read_bytes())
    array = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_JOB_ID": "4700"}
    job = submit("score-array.sbatch", "--shards", f"{tmp_path}/*.tar", "--filter", models[1], nodes=1, **array)
    output, _ = job.communicate(timeout=300)
    assert job.returncode == 0, output
    assert [path.name for path in tmp_path.glob("*.parquet")] == ["00001.capfilt.parquet"]
