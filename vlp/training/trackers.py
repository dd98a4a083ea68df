"""Trackers: a run's records for TensorBoard, Weights & Biases, trackio or MLflow, written by accelerate's classes."""

import importlib
import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

from vlp.config import RunConfig, TrackerName
from vlp.config_reader import to_dict
from vlp.errors import WorkError
from vlp.extras import extra
from vlp.files import write_json
from vlp.training.settings import leaves

PROJECT = "vlp"  # the project or experiment of runs that name none in the environment
ANSWERS_WITHIN = 60  # seconds, of a server
# What needs the key and the server of a tracker, but records nothing.
PROBES = {
    "wandb": "import wandb; wandb.login(verify=True)",
    "mlflow": "import mlflow; mlflow.search_experiments(max_results=1)",
}
PROBE = """
try:
    {}
except Exception as error:
    print(type(error).__name__ + ": " + str(error))
    raise SystemExit(1)
"""


def check_tracker(name: TrackerName) -> None:
    """Import the tracker's package, and ask its server, if it has one, whether a run may start.

    TensorBoard, the default, is left out where it is not installed.

    Raises:
        UserError: another tracker is not installed.
        WorkError: its server does not answer, or refuses the key.
    """
    if name not in ("none", "tensorboard"):
        with extra(name):
            importlib.import_module(name)
    served = os.environ.get("MLFLOW_TRACKING_URI", "").startswith(("http://", "https://", "databricks"))
    if name == "wandb" or (name == "mlflow" and served):
        _probe(name)


def _probe(name: str) -> None:
    """Ask a tracker's server in a process of its own: the packages start threads, which workers must not inherit."""
    settings = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(ANSWERS_WITHIN // 4),
    }
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE.format(PROBES[name])],
            env={**os.environ, **settings},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=ANSWERS_WITHIN,
        )
    except subprocess.TimeoutExpired:
        raise _did_not_start(name, f"no answer in {ANSWERS_WITHIN} s") from None
    if done.returncode:
        raise _did_not_start(name, (done.stdout.strip() or done.stderr.strip()).splitlines()[-1])


def _did_not_start(name: str, reason: str) -> WorkError:
    return WorkError(f"{name} did not start ({reason}); set tracker=none to train without it.")


def open_tracker(config: RunConfig, folder: Path, from_step: int = 0) -> Any:
    """The run's tracker: an object with `log(values, step=...)` and `finish()`, or None. For the first process alone.

    A resumed run continues its records: TensorBoard's after `from_step` are replaced, the others get those of the
    resumed steps again. FOLDER/tracker.json keeps the run's id in the other trackers.

    Raises:
        UserError: the tracker is not installed.
        WorkError: the tracker does not start, such as without network or key.
    """
    name = config.tracker
    check_tracker(name)
    if name == "none" or (name == "tensorboard" and not _has_tensorboard()):
        return None
    path = folder / "tracker.json"
    known = json.loads(path.read_text()) if from_step and path.exists() else {}
    identity = known.get("id") if known.get("tracker") == name else None
    try:
        tracker = _make(name, folder, from_step, identity)
        tracker.start()
        if name != "tensorboard" and not identity:
            tracker.store_init_configuration(_settings(config))
    except Exception as error:
        raise _did_not_start(name, f"{type(error).__name__}: {error}") from error
    if name != "tensorboard":
        write_json(path, {"tracker": name, "id": _identity(name, tracker)})
    return tracker


def _make(name: str, folder: Path, from_step: int, identity: str | None) -> Any:
    """A tracker of accelerate that has not started."""
    from accelerate import tracking

    run = {"name": folder.name, "resume": "allow"}
    if name == "tensorboard":
        purge = from_step + 1 if from_step else None
        return tracking.TensorBoardTracker("tensorboard", folder, purge_step=purge)
    if name == "wandb":
        project, identity = os.environ.get("WANDB_PROJECT", PROJECT), identity or uuid.uuid4().hex[:12]
        return tracking.WandBTracker(project, dir=str(folder), id=identity, **run)
    if name == "trackio":
        return tracking.TrackioTracker(os.environ.get("TRACKIO_PROJECT", PROJECT), **run)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # vlp sends nothing that the user did not ask for
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        import mlflow

        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # its databases need more than mlflow-skinny
        mlflow.set_tracking_uri((folder / "mlruns").absolute().as_uri())
    return tracking.MLflowTracker(PROJECT, run_id=identity, run_name=folder.name)


def _identity(name: str, tracker: Any) -> str:
    """The id by which a later start finds the run."""
    run = tracker.tracker
    return {"wandb": lambda: run.id, "trackio": lambda: run.name, "mlflow": lambda: run.info.run_id}[name]()


def _settings(config: RunConfig) -> dict[str, Any]:
    """Every setting of the run by its dotted key; lists and nulls as text."""
    settings = leaves(to_dict(config))
    return {key: value if isinstance(value, int | float | str) else str(value) for key, value in settings.items()}


def _has_tensorboard() -> bool:
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True
