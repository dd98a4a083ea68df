"""Configs: defaults < YAML < key=value; unknown keys and wrong types are refused by name."""

import pytest

from vlp.config import CapFiltConfig, RunConfig
from vlp.config_reader import load_config, save_config
from vlp.errors import UserError


def test_overrides_beat_the_file_and_the_file_beats_defaults(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("optim: {learning_rate: 1e-4, clip_norm: 2}\nbatch_size: 12\n")
    config = load_config(RunConfig, path, ["batch_size=24", "data.sources=[{shards: a.tar}]"])
    assert (config.optim.learning_rate, config.optim.clip_norm, config.batch_size) == (1e-4, 2.0, 24)
    assert config.optim.weight_decay == 0.05
    assert config.data.sources[0].shards == "a.tar"


def test_a_saved_config_loads_as_it_was(tmp_path):
    config = load_config(RunConfig, None, ["seed=3", "model.text_tower.sharing=all"])
    save_config(config, tmp_path / "config.yaml")
    assert load_config(RunConfig, tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("batchsize=3", "batchsize; did you mean batch_size"),
        ("optim.learning_rat=1", "optim.learning_rat"),
        ("batch_size=many", "batch_size must be int, not 'many'"),
        ("batch_size=2.5", "batch_size"),
        ("data.augment.flip=1", "data.augment.flip must be bool"),
        ("task=retrieve", "task must be one of"),
        ("data.sources=[{shard: a}]", "data.sources[0].shard"),
        ("optim=3", "optim must be a section"),
        ("seed", "key=value"),
    ],
)
def test_mistakes_are_named(override, says):
    with pytest.raises(UserError) as error:
        load_config(RunConfig, None, [override])
    assert says in str(error.value)


def test_files_that_are_no_configs(tmp_path):
    (tmp_path / "list.yaml").write_text("- 1")
    (tmp_path / "broken.yaml").write_text("a: [")
    for name in ("absent.yaml", "list.yaml", "broken.yaml"):
        with pytest.raises(UserError, match=name):
            load_config(CapFiltConfig, tmp_path / name)
