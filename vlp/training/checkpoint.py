"""A run's checkpoints: everything a resume needs, in one folder that appears whole."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vlp.distributed import barrier, gather_objects, is_main, rank, world_size
from vlp.errors import UserError
from vlp.files import writing_folder


@dataclass
class ResumeState:
    """Where a run stands, beside its weights."""

    step: int  # optimiser steps done
    loader: dict  # of this process
    scaler: dict | None = None  # fp16 loss scaling


def save_checkpoint(
    output: Path, task: nn.Module, optimizer: torch.optim.Optimizer, progress: ResumeState, keep: int
) -> None:
    """Write OUTPUT/checkpoints/step-N by rename, then remove all but the newest `keep`. All processes call it."""
    folder = output / "checkpoints" / f"step-{progress.step:08d}"
    mine = {"loader": progress.loader, "random": _random_state()}
    everyone = gather_objects(mine)
    if is_main() and not folder.exists():
        for left in folder.parent.glob(".step-*.tmp-*"):  # of a run that was killed while writing another step
            shutil.rmtree(left)
        with writing_folder(folder) as temporary:
            save_file(
                {name: value.contiguous() for name, value in task.state_dict().items()}, temporary / "task.safetensors"
            )
            torch.save(optimizer.state_dict(), temporary / "optimizer.pt")
            torch.save([one["random"] for one in everyone], temporary / "random.pt")
            facts = {"step": progress.step, "scaler": progress.scaler, "loaders": [one["loader"] for one in everyone]}
            (temporary / "progress.json").write_text(json.dumps(facts))
        for old in checkpoints(output)[:-keep]:
            shutil.rmtree(old)
    barrier()


def checkpoints(output: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted((output / "checkpoints").glob("step-*"))


def load_checkpoint(folder: Path, task: nn.Module, optimizer: torch.optim.Optimizer) -> ResumeState:
    """Restore weights, optimiser and random numbers; returns where the run stood.

    Raises:
        UserError: the checkpoint is of another model.
    """
    try:
        task.load_state_dict(load_file(folder / "task.safetensors"), strict=True)
        optimizer.load_state_dict(torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{folder} does not fit this config: {str(error).splitlines()[-1].strip()}") from None
    facts = json.loads((folder / "progress.json").read_text())
    random = torch.load(folder / "random.pt", map_location="cpu", weights_only=True)
    same_world = len(facts["loaders"]) == world_size()
    if same_world:
        torch.set_rng_state(random[rank()]["cpu"])
        if torch.cuda.is_available() and random[rank()]["cuda"] is not None:
            torch.cuda.set_rng_state(random[rank()]["cuda"])
    return ResumeState(facts["step"], facts["loaders"][rank() if same_world else 0], facts["scaler"])


def _random_state() -> dict:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}
