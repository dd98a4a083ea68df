"""A start that fails before the first step leaves nothing behind, so that the corrected command can run."""

from pathlib import Path

import pytest

from tests.processes import start_vlp
from vlp.config_reader import save_config
from vlp.data.shard_writer import ShardWriter
from vlp.errors import UserError, WorkError
from vlp.training.loop import train
from vlp.training.new_run import NewRun


@pytest.fixture
def failing(tmp_path, scenes):
    """Overrides by which a run fails before its first step."""
    with ShardWriter(str(tmp_path / "broken"), 10) as writer:
        for number in range(9):
            writer.write(str(number), b"no image", "png", "a text", {})
    return {
        "best_by": [f"validation='{scenes}/00004.tar'", "evaluate_every=1", "best_by=r1"],
        "samples": [f"data.sources=[{{shards: '{tmp_path}/broken/*.tar'}}]"],
        "tokenizer": ["model.text_tower.vocabulary=3"],
    }


@pytest.mark.parametrize("name", ["best_by", "samples", "tokenizer"])
@pytest.mark.parametrize("existed", [False, True])
def test_the_corrected_command_finds_no_folder_in_its_way(run_config, failing, name, existed):
    output = Path(run_config("run").output)
    if existed:
        output.mkdir()
    with pytest.raises((UserError, WorkError)):
        train(run_config("run", *failing[name]))
    assert output.exists() == existed and not (existed and list(output.iterdir()))
    assert train(run_config("run", "steps=1"))["step"] == 1
    with pytest.raises(UserError, match="exists already"):
        train(run_config("run", "steps=1"))
    assert (output / "results.json").exists()


def test_nothing_is_removed_of_a_run_that_took_a_step_or_was_started_before(run_config, failing):
    config = run_config("run", *failing["samples"])
    save_config(config, Path(config.output) / "config.yaml")  # of an earlier start
    with pytest.raises(WorkError, match="none of the first"):
        train(config, resume=True)
    assert (Path(config.output) / "config.yaml").exists()
    with pytest.raises(WorkError, match="not finite at step 1"):
        train(run_config("diverged", "objective.lm_weight=1e38"))
    assert (Path(run_config("diverged").output) / "config.yaml").exists()


def test_files_of_others_are_kept(run_config, tmp_path):
    for name in ("replaced", "first", "beside"):
        config = run_config(name)
        output = tmp_path / name
        new = NewRun(output)
        output.mkdir()
        if name == "first":  # another process was there between the look and the writing
            save_config(config, output / "config.yaml")
        new.save_config(config)
        if name == "replaced":
            save_config(config, output / "config.yaml")
        if name == "beside":
            (output / "notes.txt").write_text("mine")
        new.remove()
        assert [path.name for path in output.iterdir()] == ["notes.txt" if name == "beside" else "config.yaml"]


@pytest.mark.parametrize("name", ["best_by", "samples"])
def test_two_processes_leave_nothing_behind(run_config, failing, name, tmp_path):
    config = run_config("run", *failing[name])
    save_config(config, tmp_path / "run.yaml")
    program = start_vlp(tmp_path / "printed", "pretrain", tmp_path / "run.yaml", count=2)
    assert all(program.finish()) and "Traceback" not in program.err, program.err
    assert not Path(config.output).exists()
