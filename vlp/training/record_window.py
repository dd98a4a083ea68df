"""Means of losses and metrics over the steps since the last log record."""

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vlp.distributed import all_sum, world_size


@dataclass
class RecordWindow:
    """Sums since the last record. Those of tensors stay on their device, so that no step waits for it."""

    started: float = field(default_factory=time.monotonic)
    waited: float = 0.0  # seconds spent waiting for data
    pairs: int = 0
    forwards: int = 0
    steps: int = 0
    forward_sums: dict[str, Tensor] = field(default_factory=dict)  # of each forward pass
    step_sums: dict[str, Tensor] = field(default_factory=dict)  # of each optimizer step

    def add_forward(self, values: dict[str, Tensor], pairs: int) -> None:
        """Add the scalars of a forward pass over `pairs` image-text pairs."""
        self.forwards += 1
        self.pairs += pairs
        _add(self.forward_sums, values)

    def add_step(self, values: dict[str, Tensor]) -> None:
        """Add the scalars of an optimizer step."""
        self.steps += 1
        _add(self.step_sums, values)

    def seconds(self) -> float:
        """How long this window has lasted, without validation."""
        return time.monotonic() - self.started

    def record(self) -> dict[str, float]:
        """The means over processes and steps, rates, and memory. All processes call it."""
        sums = [value / self.forwards for value in self.forward_sums.values()]
        sums += [value / self.steps for value in self.step_sums.values()]
        means = (all_sum(torch.stack(sums)) / world_size()).tolist()
        record: dict[str, float] = dict(zip([*self.forward_sums, *self.step_sums], means, strict=True))
        seconds = self.seconds()
        record["pairs_per_second"] = self.pairs * world_size() / seconds
        record["data_wait_share"] = self.waited / seconds
        record["memory_gib"] = _peak_memory_gib()
        return record

    def not_finite(self, names: list[str]) -> list[str]:
        """Which of these values were not finite in any process. All processes call it."""
        sums = torch.stack([self.forward_sums[name] for name in names])
        return [name for name, bad in zip(names, all_sum((~sums.isfinite()).float()).tolist(), strict=True) if bad]

    def state(self) -> dict:
        """The sums of this process, for a checkpoint."""
        return {
            "seconds": self.seconds(),
            "waited": self.waited,
            "pairs": self.pairs,
            "forwards": self.forwards,
            "steps": self.steps,
            "forward_sums": {name: value.cpu() for name, value in self.forward_sums.items()},
            "step_sums": {name: value.cpu() for name, value in self.step_sums.items()},
        }

    def load_state(self, state: dict, device: torch.device) -> None:
        """Continue the window of a checkpoint."""
        self.started = time.monotonic() - state["seconds"]
        self.waited, self.pairs = state["waited"], state["pairs"]
        self.forwards, self.steps = state["forwards"], state["steps"]
        self.forward_sums = {name: value.to(device) for name, value in state["forward_sums"].items()}
        self.step_sums = {name: value.to(device) for name, value in state["step_sums"].items()}


def _add(sums: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        value = value.detach().float()
        sums[name] = sums[name] + value if name in sums else value


def _peak_memory_gib() -> float:
    """Peak memory of this process: of the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
