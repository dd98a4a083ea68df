"""Config files: defaults < YAML < key=value; unknown keys and wrong types are rejected by name."""

import dataclasses
import typing
from typing import Annotated

import pytest

from vlp.config import CapFiltConfig, RunConfig
from vlp.config_reader import load_any_config, load_config, save_config
from vlp.errors import UserError

ANY_NUMBER = {"floor", "fallback"}  # scores, which may be negative


def test_overrides_beat_the_file_and_the_file_beats_defaults(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("optim: {learning_rate: 1e-4, clip_norm: 2}\nbatch_size: 12\n")
    config = load_config(RunConfig, path, ["batch_size=24", "data.sources=[{shards: a.tar}]"])
    assert (config.optim.learning_rate, config.optim.clip_norm, config.batch_size) == (1e-4, 2.0, 24)
    assert config.optim.weight_decay == 0.05
    assert config.data.sources[0].shards == "a.tar"


def test_values_beat_the_file_and_overrides_beat_values(tmp_path):
    path = tmp_path / "capfilt.yaml"
    path.write_text("seed: 1\noutput: file\nrules: itm >= 0.1\n")
    config = load_config(CapFiltConfig, path, ["seed=3"], {"seed": 2, "output": "two\nlines 😀"})
    assert (config.seed, config.output, config.rules) == (3, "two\nlines 😀", "itm >= 0.1")


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("tokenizer=", lambda config: config.tokenizer),
        ("objective.locked=", lambda config: config.objective.locked),
        ("data.sources=[{shards: }]", lambda config: config.data.sources[0].shards),
    ],
)
def test_an_empty_value_is_the_empty_text_where_a_setting_takes_text(tmp_path, override, value):
    (tmp_path / "run.yaml").write_text("tokenizer: words\nobjective: {locked: image}\n")
    assert value(load_config(RunConfig, tmp_path / "run.yaml", [override])) == ""


def test_an_empty_value_is_none_where_a_setting_takes_that():
    assert load_config(RunConfig, None, ["decoding.prompt="]).decoding.prompt is None


def test_a_section_without_keys_can_be_overridden(tmp_path):
    (tmp_path / "run.yaml").write_text("optim:\n")
    assert load_config(RunConfig, tmp_path / "run.yaml", ["optim.decay=cosine"]).optim.decay == "cosine"


def test_a_saved_config_loads_unchanged(tmp_path):
    config = load_config(RunConfig, None, ["seed=3", "model.text_tower.sharing=all", "objective.prompt=a 😀 of"])
    save_config(config, tmp_path / "config.yaml")
    assert load_config(RunConfig, tmp_path / "config.yaml") == config
    assert "a 😀 of" in (tmp_path / "config.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("steps: 3\noutput: x", RunConfig),
        ("output: x", RunConfig),
        ("", RunConfig),
        ("rules: itm >= 0.5\noutput: x", CapFiltConfig),
        ("shards: a.tar\nhuman: b.tar\nbatch_size: 3\nseed: 1", CapFiltConfig),
    ],
)
def test_the_keys_tell_the_kind_of_a_config(tmp_path, text, kind):
    (tmp_path / "recipe.yaml").write_text(text)
    assert type(load_any_config(tmp_path / "recipe.yaml")) is kind


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batchsize=3", "batchsize; did you mean batch_size"),
        ("optim.learning_rat=1", "optim.learning_rat"),
        ("batch_size=many", "batch_size must be a whole number, not 'many'"),
        ("batch_size=", "batch_size must be a whole number, not null"),
        ("compile=maybe", "compile must be true or false, not 'maybe'"),
        ("output=3", "output must be text, not 3"),
        ("optim.learning_rate=high", "optim.learning_rate must be a number, not 'high'"),
        ("decoding.banned_words=[null]", "decoding.banned_words[0] must be text, not null"),
        ("batch_size=2.5", "batch_size"),
        ("data.augment.flip=1", "data.augment.flip must be true or false"),
        ("task=retrieve", "task must be one of"),
        ("data.sources=[{shard: a}]", "data.sources[0].shard"),
        ("optim=3", "optim must be a section"),
        ("seed", "key=value"),
        ("=3", "key=value"),
        ("batch_size=true", "batch_size must be a whole number, not True"),
        ("task=[1]", "task must be one of"),
        ("data.sources=&x [*x]", "data.sources[0] must be a section"),
        ("optim.learning_rate=.nan", "optim.learning_rate must be a finite number, not nan"),
        ("optim.weight_decay=-inf", "optim.weight_decay must be a finite number, not -inf"),
        ("batch_size=0", "batch_size must be at least 1, not 0"),
        ("steps=99999999999999999999", "steps must be at most 2147483647"),
        ("data.workers=-1", "data.workers must be at least 0"),
        ("model.text_tower.dropout=1", "model.text_tower.dropout must be at least 0 and below 1, not 1"),
        ("objective.temperature=0", "objective.temperature must be above 0"),
        ("optim.betas=[0.9]", "optim.betas must be a list of 2"),
        ("optim.betas=[0.9, 2]", "optim.betas[1] must be"),
        ("data.sources=[{shards: a.tar, weight: -1}]", "data.sources[0].weight"),
        ("data.sources=[{shards: 3}]", "data.sources[0].shards must be text or a list, not 3"),
        ('output="a\\0b"', "output must be valid Unicode text"),
        ("optim={decay: cosine, decay: constant}", "the key decay occurs twice"),
        ("seed=2024-13-45", "The value of seed is not valid YAML"),
        ("output=" + "[" * 3000, "The value of output is not valid YAML"),
    ],
)
def test_mistakes_are_named(override, message):
    with pytest.raises(UserError) as error:
        load_config(RunConfig, None, [override])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_aliases_cannot_blow_up_a_config(tmp_path):
    lists = ["a0: &a0 [x, x]", *(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]" for i in range(20))]
    (tmp_path / "lists.yaml").write_text("\n".join(lists) + "\noutput: *a20\n")
    maps = ["a0: &a0 {x: 1}", *(f"a{i + 1}: &a{i + 1} {{<<: [{', '.join([f'*a{i}'] * 10)}]}}" for i in range(20))]
    (tmp_path / "maps.yaml").write_text("\n".join(maps) + "\n")
    for name in ("lists.yaml", "maps.yaml"):
        with pytest.raises(UserError) as error:
            load_config(RunConfig, tmp_path / name)
        assert len(str(error.value)) < 1000


def sections_of(kind):
    """A config dataclass and all those within it."""
    found = [kind]
    for section in found:
        for hint in typing.get_type_hints(section).values():
            parts = [
                hint,
                *typing.get_args(hint),
                *(one for part in typing.get_args(hint) for one in typing.get_args(part)),
            ]
            found += [part for part in parts if dataclasses.is_dataclass(part) and part not in found]
    return found


@pytest.mark.parametrize("section", sections_of(CapFiltConfig), ids=lambda section: section.__name__)
def test_every_number_in_a_config_has_a_range(section):
    hints = typing.get_type_hints(section, include_extras=True)
    bare = [name for name, hint in hints.items() if {hint, *typing.get_args(hint)} & {int, float}]
    annotated = [name for name, hint in hints.items() if typing.get_origin(hint) is Annotated]
    assert set(bare) - set(annotated) <= ANY_NUMBER


@pytest.mark.parametrize(
    ("text", "kind", "command"),
    [
        ("tokenizer: words\noutput: x", CapFiltConfig, "pretrain"),
        ("task: captioning\noutput: x", CapFiltConfig, "finetune"),
        ("rules: itm >= 0.5\noutput: x", RunConfig, "capfilt run"),
    ],
)
def test_a_recipe_of_another_command_is_told_which_takes_it(tmp_path, text, kind, command):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(UserError, match=f"recipe.yaml is a recipe for `vlp {command}`; give it to that"):
        load_config(kind, tmp_path / "recipe.yaml", ["output=y"])
    with pytest.raises(UserError, match="Unknown config key"):
        load_config(kind, None, [text.split("\n")[0].replace(": ", "=", 1)])
    (tmp_path / "recipe.yaml").write_text(f"{text}\nmistyped: 3")
    with pytest.raises(UserError, match="Unknown config key"):
        load_config(kind, tmp_path / "recipe.yaml")


def test_files_that_are_no_configs_are_named(tmp_path):
    (tmp_path / "list.yaml").write_text("- 1")
    (tmp_path / "broken.yaml").write_text("a: [")
    (tmp_path / "tag.yaml").write_text("a: !!python/name:os.system")
    for name in ("absent.yaml", "list.yaml", "broken.yaml", "tag.yaml"):
        for load in (lambda path: load_config(CapFiltConfig, path), load_any_config):
            with pytest.raises(UserError, match=name):
                load(tmp_path / name)
