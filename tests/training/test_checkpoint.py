"""Checkpoints appear whole or not at all, old ones go, and nothing in them is executed."""

import pytest
import torch

from vlp.errors import FullDiskError, UserError
from vlp.training.checkpoint import ResumeState, checkpoints, load_checkpoint, save_checkpoint


def make(width=3):
    torch.manual_seed(0)
    task = torch.nn.Linear(width, 2)
    optimizer = torch.optim.AdamW(task.parameters())
    task(torch.ones(1, width)).sum().backward()
    optimizer.step()
    return task, optimizer


def test_what_is_saved_is_loaded(tmp_path):
    task, optimizer = make()
    save_checkpoint(tmp_path, task, optimizer, ResumeState(7, [{"place": 5}]), keep=2)
    drawn = torch.rand(3)
    other, fresh = make()
    with torch.no_grad():
        other.weight.zero_()
    fresh.state.clear()
    standing = load_checkpoint(checkpoints(tmp_path)[-1], other, fresh)
    assert (standing.step, standing.loaders) == (7, [{"place": 5}])
    assert torch.equal(other.weight, task.weight)
    assert torch.equal(torch.rand(3), drawn)
    assert torch.equal(fresh.state[other.weight]["exp_avg"], optimizer.state[task.weight]["exp_avg"])


def test_old_ones_go(tmp_path):
    task, optimizer = make()
    for step in (1, 2, 3, 10):
        save_checkpoint(tmp_path, task, optimizer, ResumeState(step, [{}]), keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000003", "step-00000010"]


def test_a_failure_while_writing_leaves_no_checkpoint(tmp_path, monkeypatch):
    task, optimizer = make()
    monkeypatch.setattr(
        "vlp.training.checkpoint.torch.save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(FullDiskError, match="no space left on device"):
        save_checkpoint(tmp_path, task, optimizer, ResumeState(1, [{}]), keep=2)
    assert checkpoints(tmp_path) == []


def test_what_a_killed_run_half_wrote_is_cleared(tmp_path):
    task, optimizer = make()
    half = tmp_path / "checkpoints" / ".step-00000001.tmp-12345"
    half.mkdir(parents=True)
    (half / "task.safetensors").write_bytes(b"cut")
    assert checkpoints(tmp_path) == []
    save_checkpoint(tmp_path, task, optimizer, ResumeState(2, [{}]), keep=2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


def test_another_model_is_refused_in_a_sentence(tmp_path):
    task, optimizer = make()
    save_checkpoint(tmp_path, task, optimizer, ResumeState(1, [{}]), keep=2)
    with pytest.raises(UserError, match="does not fit this config"):
        load_checkpoint(checkpoints(tmp_path)[0], *make(4))
