"""Runs that go wrong: losses that are not finite, and what is checked before the first step."""

import io
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from vlp.data.shard_writer import ShardWriter
from vlp.errors import UserError, WorkError
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


def pixel() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["validation='{tmp}/none/*.tar'"], "validation: No shard matches"),
        (["validation='{tmp}/empty.tar'"], "validation: .* no sample"),
        (["validation='{tmp}/silent/*.tar'"], "validation: sample a of .* has no caption"),
        (["evaluate_every=2"], "validation is empty"),
        (["tokenizer='{tmp}/none'"], "is not a tokenizer folder"),
        (["data.sources=[{shards: '{tmp}/none/*.tar'}]"], "No shard matches"),
        (["data.sources=[{shards: '{scenes}/*.tar', texts: {table: missing}}]"], "has no score table"),
        (["batch_size=9", "accumulation=2"], "multiple of accumulation"),
    ],
)
def test_what_a_run_will_need_is_checked_before_its_first_step(run_config, scenes, tmp_path, overrides, sentence):
    (tmp_path / "empty.tar").write_bytes(b"\0" * 10240)
    with ShardWriter(str(tmp_path / "silent"), 10) as writer:
        writer.write("a", pixel(), "png", None, {})
    overrides = [one.replace("{tmp}", str(tmp_path)).replace("{scenes}", str(scenes)) for one in overrides]
    config = run_config("run", *overrides)
    with pytest.raises(UserError, match=sentence):
        train(config)
    assert not (Path(config.output) / "log.jsonl").exists()


def test_a_disk_without_room_for_two_checkpoints_is_refused(run_config, monkeypatch):
    monkeypatch.setattr("vlp.training.checks.shutil.disk_usage", lambda path: SimpleNamespace(free=2**20))
    with pytest.raises(WorkError, match=r"0\.0 GiB free, but two checkpoints and the model need"):
        train(run_config("run"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_that_cannot_be_written_is_refused(run_config, tmp_path):
    (tmp_path / "run").mkdir(mode=0o500)
    with pytest.raises(WorkError, match="cannot be written"):
        train(run_config("run"))


def test_the_estimate_of_disk_space_is_that_of_two_checkpoints_and_the_model(run_config, monkeypatch):
    config = run_config("run", "steps=2", "keep_checkpoints=1")
    train(config)
    checkpoint = sum(file.stat().st_size for file in checkpoints(Path(config.output))[0].iterdir())
    needed = 2 * checkpoint + (Path(config.output) / "model" / "model.safetensors").stat().st_size
    for name, share in (("too-little", 0.8), ("enough", 1.2)):
        free = SimpleNamespace(free=int(share * needed))
        monkeypatch.setattr("vlp.training.checks.shutil.disk_usage", lambda path, free=free: free)
        if share < 1:
            with pytest.raises(WorkError, match="two checkpoints"):
                train(run_config(name, "steps=2"))
        else:
            train(run_config(name, "steps=2"))
