"""Losses and gradients that are not finite stop a run; the gradient norm is logged; intervals may be 0."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vlp.errors import WorkError
from vlp.log import read_log
from vlp.training.checkpoint import checkpoints
from vlp.training.health import FiniteCheck
from vlp.training.loop import train


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(run_config):
    config = run_config("run", "optim.learning_rate=1e30", "checkpoint_every=1", "log_every=0", "keep_checkpoints=1")
    with pytest.raises(WorkError, match="itc") as caught:
        train(config)
    (kept,) = checkpoints(Path(config.output))
    step = int(kept.name.removeprefix("step-"))
    sentence = str(caught.value)
    assert f"at step {step + 1}" in sentence and str(kept) in sentence and "learning rate of 1e+30" in sentence
    assert not (Path(config.output) / "model").exists()


def test_a_gradient_that_is_not_finite_stops_the_run_too(run_config, monkeypatch):
    monkeypatch.setattr("torch.nn.utils.get_total_norm", lambda gradients: torch.tensor(float("nan")))
    config = run_config("run")
    with pytest.raises(WorkError, match=r"^The gradient is not finite at step 1, .* no checkpoint before it"):
        train(config)


def test_the_host_learns_of_a_bad_value_without_waiting_for_the_device():
    check = FiniteCheck(torch.device("cpu"))
    device = SimpleNamespace(done=True)
    check.copied = SimpleNamespace(query=lambda: device.done, record=lambda: None)  # as on a GPU
    check.add(torch.tensor(1.0))
    assert check.is_finite(wait=False)
    device.done = False
    check.add(torch.tensor(float("inf")))
    assert check.is_finite(wait=False)  # the copy has not arrived
    assert not check.is_finite(wait=True)
    device.done = True
    check.is_finite(wait=False)
    assert not check.is_finite(wait=False)


def test_the_norm_of_the_gradient_is_logged(run_config):
    plain, clipped = run_config("plain", "steps=2"), run_config("clipped", "steps=2", "optim.clip_norm=0.01")
    train(plain)
    train(clipped)
    norms = [read_log(f"{config.output}/log.jsonl")[0]["gradient_norm"] for config in (plain, clipped)]
    assert norms[0] == norms[1] > 0.01  # the norm before clipping


def test_intervals_of_zero_mean_only_at_the_end(run_config):
    config = run_config("run", "steps=4", "log_every=0", "checkpoint_every=0")
    train(config)
    assert [record["step"] for record in read_log(f"{config.output}/log.jsonl")] == [4]
    assert [path.name for path in checkpoints(Path(config.output))] == ["step-00000004"]
