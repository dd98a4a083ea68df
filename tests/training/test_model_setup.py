"""A run starts from a model without contradicting it, its config is not changed, and what is saved is true."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest

from vlp.config import RunConfig
from vlp.config_model import ModelConfig
from vlp.config_reader import load_config
from vlp.data.tokenizer import train_tokenizer
from vlp.errors import UserError
from vlp.model import load_model
from vlp.training.loop import train
from vlp.training.model_setup import build_model, resolved_config


@pytest.fixture
def started(run_config, models):
    """A function that makes a config without settings of the model, started from a model folder."""

    def make(*overrides: str) -> RunConfig:
        config = run_config("run", f"start_from={models[1]}", "tokenizer=''", "task=retrieval", "steps=2")
        config = replace(config, model=ModelConfig())
        for override in overrides:
            *sections, key = override.partition("=")[0].split(".")
            section = config
            for name in sections:
                section = getattr(section, name)
            setattr(section, key, type(getattr(section, key))(override.partition("=")[2]))
        return config

    return make


def test_no_config_of_the_caller_is_changed(run_config, started):
    for config in (run_config("new"), started()):
        before = deepcopy(config)
        blip, tokenizer, _ = build_model(config)
        resolved = resolved_config(config, blip)
        assert config == before
        assert resolved.model.text_tower.vocabulary == len(tokenizer)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("model.embed_dim=17", r"model\.embed_dim is 17 \(the model has 16\)"),
        ("model.image_encoder.patch_size=4", r"model\.image_encoder\.patch_size is 4 \(the model has 8\)"),
        ("model.text_tower.dropout=0.5", r"model\.text_tower\.dropout is 0\.5 \(the model has 0\.0\)"),
        ("objective.temperature=0.2", r"objective\.temperature is 0\.2"),
    ],
)
def test_settings_that_contradict_the_model_are_refused(started, override, sentence):
    with pytest.raises(UserError, match=sentence):
        train(started(override))


def test_another_tokenizer_is_refused_and_the_same_one_is_not(started, tokenizer_folder, tmp_path):
    train_tokenizer(["a red dog", "a blue cat"] * 2, 60).save(str(tmp_path / "other"))
    with pytest.raises(UserError, match=r"tokenizer is .*other \(the model has another one; `tokenizer=` takes it"):
        train(started(f"tokenizer={tmp_path / 'other'}"))
    build_model(started(f"tokenizer={tokenizer_folder}"))
    with pytest.raises(UserError, match=r"absent is not a tokenizer folder.*`tokenizer=` takes that of the model"):
        train(started("tokenizer=absent"))


def test_the_saved_config_and_card_describe_the_model_and_repeat_the_run(started, models):
    config = started("image_size=16", "license=apache-2.0")
    train(config)
    output = Path(config.output)
    saved = load_config(RunConfig, output / "config.yaml")
    model = load_model(output / "model")
    assert saved.model == model.config
    assert saved.model.image_encoder.image_size == 16
    started_temperature = load_model(models[1]).blip.temperature.item()
    assert saved.objective.temperature == pytest.approx(started_temperature, abs=1e-6)
    card = (output / "model" / "README.md").read_text()
    assert f"embed_dim: {model.config.embed_dim}\n" in card
    assert [line for line in card.splitlines() if line.startswith("## ")][:5] == [
        "## Data",
        "## Scores",
        "## License",
        "## Limits",
        "## Recipe",
    ]
    assert "The weights: apache-2.0." in card and f"of `{models[1]}` apply" in card
    assert "images of 16 x 16 pixels" in card and "not calibrated" in card
    build_model(saved)
    assert train(config, resume=True)["step"] == 2
