"""Trackers: each gets the records of a run, also of a resumed one, and none opens a connection to elsewhere."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace

import pytest

from vlp.config import RunConfig
from vlp.errors import UserError, WorkError
from vlp.training.loop import train
from vlp.training.trackers import check_tracker, open_tracker

# Two starts of one run; every connection but those to this machine fails and is printed.
RUN = """
import socket, sys
from pathlib import Path

connect = socket.socket.connect
def local_only(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "localhost", "::1"):
        print("CONNECTS TO", address, flush=True)
        raise OSError("no network")
    return connect(self, address)
socket.socket.connect = local_only

from accelerate import PartialState
from vlp.config import RunConfig
from vlp.log import RunLog
from vlp.training.trackers import open_tracker

PartialState(cpu=True)
folder, name = Path(sys.argv[1]), sys.argv[2]
config = RunConfig(tracker=name, seed=7)
for start, records in ((0, {1: 0.5, 2: 1.0, 3: 1.5}), (2, {3: 9.0})):
    log = RunLog(folder, start, open_tracker(config, folder, start))
    for step, itc in records.items():
        log.write({"step": step, "itc": itc})
    log.close()
if name == "trackio":
    import sqlite3
    (database,) = (folder / "trackio").glob("vlp*.db")
    rows = sqlite3.connect(database).execute("select * from metrics").fetchall()
    print(len(rows), sum("itc" in str(row) and "run" in row for row in rows))
elif name == "mlflow":
    import mlflow
    (run,) = mlflow.search_runs(experiment_names=["vlp"], output_format="list")
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "itc")
    print(run.data.params["seed"], [(one.step, one.value) for one in history])
"""


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio", "mlflow"])
def test_a_tracker_gets_the_records_and_stays_local(tmp_path, name):
    pytest.importorskip(name)
    folder = tmp_path / "run"
    folder.mkdir()
    own = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(folder / "trackio"), "HOME": str(tmp_path)}
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "MLFLOW", "TRACKIO"))
    }
    command = [sys.executable, "-c", RUN, str(folder), name]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment | own)
    assert done.returncode == 0, done.stderr
    assert "CONNECTS TO" not in done.stdout
    printed = done.stdout.splitlines()
    if name == "tensorboard":
        assert _tensorboard_values(folder) == {1: 0.5, 2: 1.0, 3: 9.0}
    elif name == "wandb":
        offline = list((folder / "wandb").glob("offline-run-*"))
        identity = json.loads((folder / "tracker.json").read_text())["id"]
        # Weights & Biases numbers the folder of a second start in the same second.
        assert len(offline) == 2 and all(f"-{identity}" in one.name for one in offline)
    elif name == "trackio":
        assert "4 4" in printed
    else:
        assert "7 [(1, 0.5), (2, 1.0), (3, 1.5), (3, 9.0)]" in printed
    steps = [json.loads(line)["itc"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert steps == [0.5, 1.0, 9.0]


def _tensorboard_values(folder) -> dict[int, float]:
    """The values of `itc` by step, as TensorBoard shows them: a later start replaces what follows its step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {one.step: one.value for one in events.Scalars("itc")}


@pytest.mark.parametrize(("name", "reason"), [("wandb", "No API key configured"), ("mlflow", "127.0.0.1")])
def test_a_server_that_refuses_is_found_before_the_run_folder_is_made(tmp_path, monkeypatch, run_config, name, reason):
    pytest.importorskip(name)
    for variable in [one for one in os.environ if one.startswith(("WANDB", "MLFLOW"))]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(tmp_path))  # no key
    with socket.socket() as taken:  # a port on which nothing answers
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(WorkError, match=rf"^{name} did not start \(.*{reason}.*\); set tracker=none to train"):
            train(replace(run_config("run"), tracker=name, output=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_no_tracker_and_a_missing_one(tmp_path, monkeypatch):
    assert open_tracker(RunConfig(tracker="none"), tmp_path) is None
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"wandb is not installed; .* pip install 'vlp\[wandb\]'"):
        check_tracker("wandb")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert open_tracker(RunConfig(), tmp_path) is None  # the default is left out where it is not installed
