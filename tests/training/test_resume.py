"""A resumed run equals an undisturbed one bit for bit, and is refused with settings that would change its results."""

import random
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.processes import run_vlp, start_vlp
from vlp.config import RunConfig
from vlp.config_reader import load_config, save_config
from vlp.errors import UserError
from vlp.log import read_log
from vlp.training.checkpoint import checkpoints
from vlp.training.loop import train
from vlp.training.record_window import RecordWindow

NOT_OF_THE_RUN = ("training_seconds", "pairs_per_second", "data_wait_share", "memory_gib")  # of the machine
RANDOM = ["model.text_tower.dropout=0.1", "model.image_encoder.drop_path=0.2", "data.augment={crop_min: 0.5}"]

LEVERS = [
    "data.texts_per_image=2",
    "objective.patch_dropout=0.5",
    "objective.unmasked_share=0.5",
    "objective.first_image_size=16",
    "objective.first_size_share=0.7",
    "objective.altered_texts=2",
    "objective.hardness_ramp=0.8",
]


class Died(Exception):
    """Stands for whatever ends a process."""


def assert_same_run(one: RunConfig, other: RunConfig) -> None:
    records = [
        [{name: value for name, value in record.items() if name not in NOT_OF_THE_RUN} for record in read_log(path)]
        for path in (f"{one.output}/log.jsonl", f"{other.output}/log.jsonl")
    ]
    assert records[0] == records[1]
    weights = [load_file(f"{config.output}/model/model.safetensors") for config in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def die_at(monkeypatch, step: int) -> None:
    """Raise `Died` in an optimizer step, counted from the start of the process."""
    original, calls = RecordWindow.add_step, []

    def add_step(self, values):
        calls.append(1)
        if len(calls) == step:
            raise Died
        original(self, values)

    monkeypatch.setattr(RecordWindow, "add_step", add_step)


def disturb_random_state() -> None:
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)


@pytest.mark.parametrize(
    "settings",
    [
        ["data.workers=2", *RANDOM],
        ["data.workers=2", *RANDOM, "accumulation=2", "log_every=4"],  # records span the checkpoint
        ["data.workers=1", *RANDOM, "task=captioning", "log_every=4"],
        ["data.workers=1", *RANDOM, "task=self_critical", "objective.reward_samples=2", "data.max_tokens=8"],
        ["data.workers=0", *RANDOM, "task=retrieval", "optim.clip_norm=0.1"],
        ["data.workers=0", *RANDOM, "precision=bf16", "activation_checkpointing=true"],
        ["data.workers=0", *RANDOM, "precision=bf16", "optim={name: muon, layer_decay: 0.8, warmup_steps: 2}"],
        ["data.workers=1", *RANDOM, *LEVERS],  # the checkpoint of step 6 is between the switches
        ["data.workers=0", *RANDOM, "objective={queue_size: 0, alpha: 0}"],
    ],
    ids=["workers", "accumulation", "captioning", "self_critical", "retrieval", "bf16", "muon", "levers", "no twin"],
)
def test_a_resumed_run_equals_an_undisturbed_one_bit_for_bit(run_config, monkeypatch, settings):
    whole, part = (run_config(name, *settings, "checkpoint_every=3") for name in ("whole", "part"))
    train(whole)
    die_at(monkeypatch, 8)
    with pytest.raises(Died):
        train(part)
    monkeypatch.undo()
    disturb_random_state()
    assert checkpoints(Path(part.output))[-1].name == "step-00000006"
    train(part, resume=True)
    assert_same_run(whole, part)


def test_a_killed_process_resumes_bit_for_bit(run_config, tmp_path):
    settings = ["steps=30", "objective.queue_size=50", "data.workers=2", *RANDOM]
    whole = run_config("whole", *settings)
    train(whole)
    part = run_config("part", *settings, "checkpoint_every=2")
    save_config(part, tmp_path / "part.yaml")
    (process,) = start_vlp(tmp_path / "killed", "pretrain", tmp_path / "part.yaml").processes
    folder = Path(part.output)
    deadline = time.monotonic() + 120
    while len(checkpoints(folder)) < 2 and time.monotonic() < deadline and process.is_alive():
        process.join(0.02)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.join()
    assert not (folder / "model").exists(), "the run ended before it was killed"
    assert len(workers) >= 2
    assert not psutil.wait_procs(workers, timeout=20)[1], "all of its processes end"
    run_vlp(tmp_path / "resumed", "pretrain", tmp_path / "part.yaml", "--resume")
    assert_same_run(whole, part)


def test_a_run_killed_before_its_first_checkpoint_starts_again(run_config, monkeypatch):
    whole, part = run_config("whole", "steps=4"), run_config("part", "steps=4")
    train(whole)
    die_at(monkeypatch, 3)
    with pytest.raises(Died):
        train(part)
    monkeypatch.undo()
    train(part, resume=True)
    assert_same_run(whole, part)


@pytest.mark.parametrize("where", ["save_model", "validate", "write_json"])
def test_a_run_killed_at_its_end_is_finished_by_a_resume(run_config, scenes, monkeypatch, caplog, where):
    settings = ["steps=4", f"validation='{scenes}/00004.tar'", "checkpoint_every=0", "log_every=0"]
    whole, part = run_config("whole", *settings), run_config("part", *settings)
    expected = train(whole)

    def die(*_arguments, **_settings):
        raise Died

    monkeypatch.setattr(f"vlp.training.loop.{where}", die)
    with pytest.raises(Died):
        train(part)
    monkeypatch.undo()
    output = Path(part.output)
    assert [path.name for path in checkpoints(output)] == ["step-00000004"]
    assert (output / "model").exists() == (where != "save_model")
    assert not (output / "results.json").exists()
    results = train(part, resume=True)
    assert {name: value for name, value in results.items() if name not in NOT_OF_THE_RUN} == {
        name: value for name, value in expected.items() if name not in NOT_OF_THE_RUN
    }
    assert_same_run(whole, part)
    assert "t2i_r1" in (output / "model" / "README.md").read_text()
    with caplog.at_level("INFO"):
        assert train(part, resume=True) == results
    assert f"{output} was finished before, with these settings; its model is {output / 'model'}" in caplog.messages


def test_a_longer_run_continues_a_finished_one(run_config):
    steps = "optim.decay=constant"
    whole, part = run_config("whole", "steps=6", steps), run_config("part", "steps=4", steps)
    train(whole)
    assert train(part)["step"] == 4
    part = run_config("part", "steps=6", steps)
    assert train(part, resume=True)["step"] == 6
    assert_same_run(whole, part)
    assert load_config(RunConfig, f"{part.output}/config.yaml").steps == 6


def test_settings_that_would_change_the_results_are_refused_and_listed(run_config, scenes):
    train(run_config("run", "steps=4"))
    saved = (Path(run_config("run").output) / "config.yaml").read_text()
    for override, change in (
        ("seed=1", "seed: 0 -> 1"),
        ("batch_size=4", "batch_size: 8 -> 4"),
        ("model.text_tower.dropout=0.2", r"model.text_tower.dropout: 0.0 -> 0.2"),
        (f"data.sources=[{{shards: '{scenes}/00000.tar'}}]", r"data.sources\[0\].shards: "),
        ("optim.learning_rate=1", "optim.learning_rate: 0.001 -> 1.0"),
        ("steps=3", "steps: 4 -> 3"),
        ("task=retrieval", "task: 'pretrain' -> 'retrieval'"),
    ):
        with pytest.raises(UserError, match=change):
            train(run_config("run", "steps=4", override), resume=True)
        assert (Path(run_config("run").output) / "config.yaml").read_text() == saved


def test_settings_that_change_no_result_may_change(run_config, scenes, monkeypatch):
    part = run_config("part", "steps=6", "checkpoint_every=2")
    die_at(monkeypatch, 4)
    with pytest.raises(Died):
        train(part)
    monkeypatch.undo()
    changed = ["data.workers=1", "log_every=3", "checkpoint_every=3", "keep_checkpoints=0", "evaluate_every=3"]
    changed += [f"validation='{scenes}/00004.tar'", "activation_checkpointing=true", "collective_timeout_minutes=5"]
    part = run_config("part", "steps=6", *changed)
    train(part, resume=True)
    saved = load_config(RunConfig, f"{part.output}/config.yaml")
    assert (saved.log_every, saved.data.workers, saved.collective_timeout_minutes) == (3, 1, 5)


def test_a_folder_that_is_no_run_is_not_resumed(run_config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "photo.jpg").touch()
    with pytest.raises(UserError, match="is not a run folder"):
        train(run_config("run"), resume=True)
