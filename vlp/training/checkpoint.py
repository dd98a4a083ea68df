"""A run's checkpoints: everything that a resume needs, in one folder that appears whole."""

import json
import pickle
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vlp.distributed import gather_objects, rank, run_on_main, world_size
from vlp.errors import UserError
from vlp.files import writing_folder

AVERAGE = "average.safetensors"  # file of the averaged weights


@dataclass
class ResumeState:
    """The position of a run, next to its weights. `window` is that of this process."""

    step: int  # optimizer steps done
    loaders: list[dict]  # when saved: of this process; when restored: of all processes
    window: dict = field(default_factory=dict)
    scaler: dict | None = None  # fp16 loss scaling
    seconds: float = 0.0  # of training so far, without validation
    average: dict[str, Tensor] = field(default_factory=dict)  # averaged weights; empty without any


def save_checkpoint(
    output: Path, task: nn.Module, optimizer: torch.optim.Optimizer, state: ResumeState, keep: int
) -> None:
    """Write OUTPUT/checkpoints/step-N by rename, then remove all but the newest `keep` (0: none). Collective.

    Raises:
        WorkError: the checkpoint cannot be written; the older ones are kept.
    """
    processes = gather_objects({"loader": state.loaders[0], "window": state.window, "random": _random_state()})
    run_on_main(lambda: _write(output, task, optimizer, state, processes, keep))


def checkpoints(output: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted((output / "checkpoints").glob("step-*"))


def load_checkpoint(folder: Path, task: nn.Module, optimizer: torch.optim.Optimizer) -> ResumeState:
    """Restore weights, optimizer and, with the same number of processes, the random state; returns the position.

    Raises:
        UserError: the checkpoint is of another model, or damaged.
    """
    try:
        weights = load_file(folder / "task.safetensors")
        optimizer_state = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
        processes = torch.load(folder / "processes.pt", map_location="cpu", weights_only=True)
        facts = json.loads((folder / "progress.json").read_text())
        average = load_file(folder / AVERAGE) if (folder / AVERAGE).exists() else {}
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(
            f"{folder} cannot be read ({reason}); remove it to resume from the checkpoint before it."
        ) from None
    try:
        task.load_state_dict(weights, strict=True)
        optimizer.load_state_dict(optimizer_state)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{folder} does not fit this config: {str(error).splitlines()[-1].strip()}") from None
    state = ResumeState(facts["step"], [process["loader"] for process in processes], scaler=facts["scaler"])
    state.seconds, state.average = facts.get("seconds", 0.0), average
    if len(processes) == world_size():
        own = processes[rank()]
        _restore_random_state(own["random"])
        state.window = own["window"]
    return state


def _write(
    output: Path,
    task: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: ResumeState,
    processes: list[dict],
    keep: int,
) -> None:
    folder = output / "checkpoints" / f"step-{state.step:08d}"
    if folder.exists():
        return
    for left in folder.parent.glob(".step-*.tmp-*"):  # of a run that was killed while writing another step
        shutil.rmtree(left)
    with writing_folder(folder) as temporary:
        weights = {name: value.contiguous() for name, value in task.state_dict().items()}
        save_file(weights, temporary / "task.safetensors")
        if state.average:
            save_file(state.average, temporary / AVERAGE)
        torch.save(optimizer.state_dict(), temporary / "optimizer.pt")
        torch.save(processes, temporary / "processes.pt")
        facts = {
            "step": state.step,
            "processes": len(processes),
            "scaler": state.scaler,
            "seconds": state.seconds,
        }
        (temporary / "progress.json").write_text(json.dumps(facts))
    for old in checkpoints(output)[:-keep]:
        shutil.rmtree(old)


def _random_state() -> dict:
    """The state of every random number generator of this process, in types that load without unpickling code."""
    kind, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
    }


def _restore_random_state(state: dict) -> None:
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
