"""What is checked before the first step: files, captions, settings, disk space, and a run folder that all see."""

import io
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from PIL import Image

from tests.processes import run_ranks
from vlp.data.shard_writer import ShardWriter
from vlp.errors import UserError, WorkError
from vlp.training.checkpoint import checkpoints
from vlp.training.checks import check_shared
from vlp.training.loop import train


def pixel() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["validation='{tmp}/none/*.tar'"], "validation: No shard matches"),
        (["validation='{tmp}/empty.tar'"], "validation: .* no sample; name other shards"),
        (["data.sources=[{shards: '{tmp}/empty.tar'}]"], "hold no sample; name other shards"),
        (["data={sources: [{shards: '{tmp}/empty.tar'}], reading: streamed}"], "no sample; name other shards"),
        (["validation='{tmp}/silent/*.tar'"], "validation: sample a of .* has no caption"),
        (["task=vqa", "validation='{scenes}/*.tar'"], "validation: .* has no 'questions' in the JSON"),
        (["task=nlvr2", "data.sources=[{shards: '{scenes}/*.tar', texts: {}}]"], "which task nlvr2 does not use"),
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


def _see_folder(rank: int, folder: str) -> None:
    """Check a run folder; process 1 is told of another one, as if on a machine without the shared file system."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    check_shared(Path(folder) / "shared")
    try:
        check_shared(Path(folder) / ("shared" if rank == 0 else "elsewhere"))
    except (UserError, SystemExit) as error:
        (Path(folder) / f"error-{rank}").write_text(f"{type(error).__name__}: {error}")
    dist.destroy_process_group()


def test_processes_that_do_not_see_the_run_folder_are_refused(tmp_path):
    for name in ("shared", "elsewhere"):
        (tmp_path / name).mkdir()
    run_ranks(_see_folder, str(tmp_path))
    assert "cannot see the run folder" in (tmp_path / "error-0").read_text()
    assert (tmp_path / "error-1").read_text() == "SystemExit: 2"
    assert not list((tmp_path / "shared").iterdir())
