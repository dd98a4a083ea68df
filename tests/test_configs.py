"""The recipes in configs/: complete, loadable, and saying how they are run."""

from pathlib import Path

import pytest
import yaml

from vlp.config import CapFiltConfig, RunConfig, load_config, to_dict

RECIPES = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_complete_and_says_how_it_is_run(path):
    kind = CapFiltConfig if path.stem == "capfilt" else RunConfig
    assert yaml.safe_load(path.read_text()) == to_dict(load_config(kind, path))  # no key is left to a default
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(path.name in line and "vlp" in line for line in head)


def test_defaults_are_the_papers():
    config = load_config(RunConfig, next(path for path in RECIPES if path.stem == "pretrain-vit-b16"))
    assert (config.batch_size, config.epochs, config.optim.learning_rate) == (2880, 20, 3e-4)
    assert (config.objective.queue_size, config.objective.momentum, config.objective.alpha) == (57_600, 0.995, 0.4)
    augment = config.data.augment
    assert (augment.crop_min, augment.operations, augment.magnitude, augment.probability) == (0.2, 2, 5, 0.5)
