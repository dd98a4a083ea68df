"""The recipes in configs/: they load, tell how to run them, and say only what differs from the defaults."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from scale import memory_bytes
from scale_tables import STEPS
from typer.testing import CliRunner

from vlp.cli.main import app
from vlp.config import PRETRAINING, CapFiltConfig, RunConfig, SourceConfig
from vlp.config_reader import load_any_config, load_config, to_dict

RECIPES = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
RECIPE = {path.stem: path for path in RECIPES}


def head(path: Path) -> str:
    """The comment at the top of a recipe, as one line."""
    lines = path.read_text().splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(" ".join(line.lstrip("#").rstrip("\\") for line in lines[:end]).split())


def at_defaults(values, defaults, name: str = "") -> list[str]:
    """Dotted keys of a recipe whose values are the defaults."""
    found = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += at_defaults(value, defaults[key], f"{name}{key}.")
        elif value == defaults[key]:
            found.append(f"{name}{key}")
        elif key == "sources":
            source = to_dict(SourceConfig())
            found += [one for item in value for one in at_defaults(item, source, f"{name}{key}.")]
    return found


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_only_what_differs_from_the_defaults(path):
    kind = CapFiltConfig if path.stem == "capfilt" else RunConfig
    assert at_defaults(yaml.safe_load(path.read_text()), to_dict(kind())) == []


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_tells_command_time_and_score(path):
    comment = head(path)
    assert f"configs/{path.name}" in comment and "vlp " in comment
    assert ("Time" in comment and "not measured yet" in comment) or "Time:" in comment


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_vlp_config_prints_the_whole_recipe(path, tmp_path):
    printed = CliRunner().invoke(app, ["config", str(path), "seed=7"])
    assert printed.exit_code == 0, printed.output
    config = load_any_config(path, ["seed=7"])
    assert yaml.safe_load(printed.stdout) == to_dict(config)
    (tmp_path / "whole.yaml").write_text(printed.stdout)
    assert load_config(type(config), tmp_path / "whole.yaml") == config
    command = "capfilt run" if isinstance(config, CapFiltConfig) else None
    command = command or ("pretrain" if config.task in PRETRAINING else "finetune")
    assert printed.stdout.startswith(f"# for vlp {command}\n")


def test_the_large_recipe_is_the_base_one_but_for_what_the_paper_changes():
    base, large = (to_dict(load_config(RunConfig, RECIPE[f"pretrain-vit-{name}"])) for name in ("b16", "l16"))
    changed = {"output": "runs/pretrain-vit-l16", "batch_size": 2400, "activation_checkpointing": True}
    image = {"width": 1024, "layers": 24, "heads": 16, "drop_path": 0.1}
    assert large == {
        **base,
        **changed,
        "model": {**base["model"], "image_encoder": {**base["model"]["image_encoder"], **image}},
        "optim": {**base["optim"], "learning_rate": 2e-4},
    }


@pytest.mark.parametrize("name, model", [("b16", "ViT-B/16"), ("l16", "ViT-L/16")])
def test_a_pretraining_recipe_tells_the_memory_that_the_formulas_give(name, model):
    path = RECIPE[f"pretrain-vit-{name}"]
    config, step = load_config(RunConfig, path), STEPS[model]
    assert config.batch_size == step.pairs * step.gpus and config.activation_checkpointing == step.checkpointing
    assert config.objective.queue_size == step.queue and config.data.max_tokens == step.tokens
    assert config.model.image_encoder == step.model.image_encoder
    assert f"--num_processes {step.gpus} " in head(path)
    for checkpointing in (False, True):
        gigabytes = sum(memory_bytes(replace(step, checkpointing=checkpointing)).values()) / 1e9
        assert f"{gigabytes:.0f} GB" in head(path)


def test_defaults_are_the_papers():
    config = load_config(RunConfig, RECIPE["pretrain-vit-b16"])
    assert (config.batch_size, config.epochs, config.optim.learning_rate) == (2880, 20, 3e-4)
    assert (config.objective.queue_size, config.objective.momentum, config.objective.alpha) == (57_600, 0.995, 0.4)
    augment = config.data.augment
    assert (augment.crop_min, augment.operations, augment.magnitude, augment.probability) == (0.2, 2, 5, 0.5)
