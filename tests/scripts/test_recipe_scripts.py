"""The scripts that run several recipes: stand-ins record their commands, which must name recipes and settings."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from vlp.cli.main import app
from vlp.config import PRETRAINING, CapFiltConfig, RunConfig
from vlp.config_reader import load_config

SCRIPTS = Path(__file__).parents[2] / "scripts"
RECORD = '#!/usr/bin/env bash\nprintf "%s\\t" "$@" >>"$CALLS"; echo >>"$CALLS"\n'


@pytest.fixture
def commands(tmp_path):
    """A function that runs a script and returns each `vlp` command that it calls: its name and its parameters."""
    calls = tmp_path / "calls"
    for name in ("vlp", "accelerate"):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(RECORD)
        path.chmod(0o755)
    environment = {**os.environ, "CALLS": str(calls)}
    environment["PATH"] = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"

    def run(script: str, *arguments: str) -> list[tuple[str, dict]]:
        command = ["bash", str(SCRIPTS / script), *arguments]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        lines = [line.rstrip("\t").split("\t") for line in calls.read_text().splitlines()]
        return [parsed(words[3:] if words[:3] == ["launch", "-m", "vlp"] else words) for words in lines]

    return run


def parsed(words: list[str]) -> tuple[str, dict]:
    """The name of a command and its parameters; raises for an unknown option."""
    command, names = typer.main.get_command(app), []
    while hasattr(command, "commands"):
        name, *words = words
        command = command.commands[name]
        names.append(name)
    return " ".join(names), command.make_context(names[-1], list(words)).params


def settings(name: str, parameters: dict) -> RunConfig | CapFiltConfig:
    """The config of a command that takes a recipe; raises where the file is missing or a setting is wrong."""
    config = load_config(
        CapFiltConfig if name == "capfilt run" else RunConfig, parameters["config"], parameters["overrides"]
    )
    if isinstance(config, RunConfig):
        assert (name == "pretrain") == (config.task in PRETRAINING)
        assert (config.steps > 0) != (config.epochs > 0)
    return config


def test_capfilt_finetunes_a_captioner_and_a_filter_and_cleans(commands):
    calls = commands("capfilt.sh", "base/model", "human/*.tar", "web/*.tar", "out", "batch_size=8")
    assert [name for name, _ in calls] == ["finetune", "finetune", "capfilt run"]
    captioner, filtering, cleaning = (settings(*call) for call in calls)
    assert [one.task for one in (captioner, filtering)] == ["captioning", "retrieval"]
    for training in (captioner, filtering):
        assert (training.start_from, training.data.sources[0].shards) == ("base/model", "human/*.tar")
        assert training.batch_size == 8
    assert cleaning.captioner == f"{captioner.output}/model" and cleaning.filter == f"{filtering.output}/model"
    assert (cleaning.shards, cleaning.human, cleaning.output) == ("web/*.tar", "human/*.tar", "out/cleaned")


def test_flickr8k_tasks_pretrain_finetune_and_evaluate(commands):
    calls = commands("flickr8k_tasks.sh", "flickr8k", "out", "30", "20", "10")
    runs = [settings(*call) for call in calls if "overrides" in call[1]]
    assert [(run.task, run.steps) for run in runs] == [("pretrain", 30), ("retrieval", 20), ("captioning", 10)]
    assert all(run.start_from == f"{runs[0].output}/model" for run in runs[1:])
    scored = [parameters["model"] for name, parameters in calls if name.startswith("evaluate")]
    assert set(scored) == {f"{run.output}/model" for run in runs}
