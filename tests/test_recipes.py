"""The recipes in configs/: complete, loadable, and saying how they are run."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from vlp.bench.scale import memory_bytes
from vlp.bench.scale_tables import STEPS
from vlp.config import CapFiltConfig, RunConfig
from vlp.config_reader import load_config, to_dict

RECIPES = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_complete_and_says_how_it_is_run(path):
    kind = CapFiltConfig if path.stem == "capfilt" else RunConfig
    assert yaml.safe_load(path.read_text()) == to_dict(load_config(kind, path))  # no key is left to a default
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(path.name in line and "vlp" in line for line in head)


def test_the_large_recipe_is_the_base_one_but_for_what_the_paper_changes():
    base, large = (
        to_dict(load_config(RunConfig, next(path for path in RECIPES if path.stem == f"pretrain-vit-{name}")))
        for name in ("b16", "l16")
    )
    changed = {"output": "runs/pretrain-vit-l16", "batch_size": 2400, "activation_checkpointing": True}
    image = {"width": 1024, "layers": 24, "heads": 16, "drop_path": 0.1}
    assert large == {
        **base,
        **changed,
        "model": {**base["model"], "image_encoder": {**base["model"]["image_encoder"], **image}},
        "optim": {**base["optim"], "learning_rate": 2e-4},
    }


@pytest.mark.parametrize("name, model", [("b16", "ViT-B/16"), ("l16", "ViT-L/16")])
def test_a_pretraining_recipe_says_the_memory_that_the_formulas_give(name, model):
    path = next(path for path in RECIPES if path.stem == f"pretrain-vit-{name}")
    config, step = load_config(RunConfig, path), STEPS[model]
    assert config.batch_size == step.pairs * step.gpus and config.activation_checkpointing == step.checkpointing
    assert config.objective.queue_size == step.queue and config.data.max_tokens == step.tokens
    assert config.model.image_encoder == step.model.image_encoder
    head = path.read_text()[: path.read_text().index("task:")]
    assert f"--num_processes {step.gpus} " in head
    for again in (False, True):
        assert f"{sum(memory_bytes(replace(step, checkpointing=again)).values()) / 1e9:.0f} GB" in head


def test_defaults_are_the_papers():
    config = load_config(RunConfig, next(path for path in RECIPES if path.stem == "pretrain-vit-b16"))
    assert (config.batch_size, config.epochs, config.optim.learning_rate) == (2880, 20, 3e-4)
    assert (config.objective.queue_size, config.objective.momentum, config.objective.alpha) == (57_600, 0.995, 0.4)
    augment = config.data.augment
    assert (augment.crop_min, augment.operations, augment.magnitude, augment.probability) == (0.2, 2, 5, 0.5)
