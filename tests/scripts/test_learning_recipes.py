"""The bench of learning: runs are scored while they train, go on where they stopped, and end in a table and curves."""

import json
from pathlib import Path

import pytest
import recipes
from experiment import Experiment, Finished, Point, Reach, Variant, read_experiment
from recipes_page import render, time_to
from split_names import main as split

from vlp.config import RunConfig
from vlp.config_reader import load_config, save_config
from vlp.errors import UserError


@pytest.fixture
def experiment(run_config, tmp_path):
    """The file of a tiny experiment on scenes with two variants."""
    save_config(run_config("unused", "steps=4", "log_every=2"), tmp_path / "base.yaml")
    variants = "[{name: today}, {name: slow, settings: [optim.learning_rate=1e-5]},"
    variants += " {name: filter, settings: [task=retrieval, 'start_from={root}/runs/today/model']}]"
    path = tmp_path / "experiment.yaml"
    path.write_text(
        f"base: {tmp_path}/base.yaml\nscenes: {{human: 40, web: 0, held_out: 12}}\npoints: 2\nreference: today\n"
        "published: slow\nmeasures: [t2i_r10, caption_exact, relation_itm_auc]\n"
        f"reach: [{{measure: t2i_r10, levels: [0.01]}}]\nvariants: {variants}\n"
    )
    return str(path)


def test_runs_are_scored_while_they_train_and_a_second_call_runs_what_is_missing(experiment, tmp_path, monkeypatch):
    out, started = tmp_path / "out", []
    original = recipes.run_variant.__globals__["train"]
    monkeypatch.setitem(
        recipes.run_variant.__globals__,
        "train",
        lambda config, **more: started.append(config.output) or original(config, **more),
    )
    call = [experiment, str(out), "--seeds", "0"]
    recipes.main([*call, "--only", "slow"])
    page = (out / "page.md").read_text()
    assert "| today | 0 | – | – | – | – | – |" in page and "| slow | 1 |" in page
    recipes.main([*call, "--peer", "LAVIS=8"])
    assert [path.rpartition("/")[2] for path in started] == ["slow", "today", "filter"]
    points = json.loads((out / "seed-0" / "results" / "slow.json").read_text())["points"]
    assert [point["step"] for point in points] == [2, 4] and [point["samples"] for point in points] == [16, 32]
    assert 0 < points[0]["seconds"] < points[1]["seconds"]
    wanted = {"t2i_r10", "caption_exact", "CIDEr", "relation_itm_auc", "relation_itc_auc", "web_wrong_dropped"}
    assert all(wanted <= point["scores"].keys() for point in points)
    page = (out / "page.md").read_text()
    assert "seconds at 8 pairs/s of LAVIS" in page and "| 1.0% | slow | 1 of 1 |" in page
    assert (out / "curves.svg").read_text().startswith("<svg")
    with pytest.raises(UserError, match=r"other settings \(optim.learning_rate\)"):
        recipes.main([*call, "--set", "optim.learning_rate=1"])


def test_a_quality_between_two_validations_is_reached_between_them():
    points = [Point(10, 100, 5.0, {"r": 0.2}), Point(20, 200, 9.0, {"r": 0.6}), Point(30, 300, 13.0, {"r": 0.5})]
    run = Finished("a", 0, points, "")
    assert time_to(run, "r", 0.3, "seconds") == pytest.approx(6.0)
    assert time_to(run, "r", 0.3, "samples") == pytest.approx(125)
    assert time_to(run, "r", 0.1, "seconds") == 5.0
    assert time_to(run, "r", 0.7, "seconds") is None
    one = Experiment(measures=["r"], reach=[Reach("r", [0.7])], reference="a", published="a", variants=[Variant("a")])
    page = render(one, {"a": [run]}, "command", ("LAVIS", 4.0))
    assert "| 50.0% | a | 1 of 1 | 8 | 175 | 44 |" in page  # the reference's final quality
    assert "| 70.0% | a | 0 of 1 | – | – | – |" in page


def test_the_development_list_is_a_part_of_the_training_list(tmp_path):
    (tmp_path / "train.txt").write_text("a.jpg\nb.jpg\nc.jpg\n")
    (tmp_path / "pairs.tsv").write_text("image\tcaption\tlabel\na.jpg\tx\tmatch\nc.jpg\ty\u2028z\tno-match\n")
    call = [str(tmp_path / "train.txt"), str(tmp_path / "lists"), "--pairs", str(tmp_path / "pairs.tsv")]
    split([*call, "--last", "1"])
    read = {path.name: path.read_text() for path in (tmp_path / "lists").iterdir()}
    assert read == {
        "train.txt": "a.jpg\nb.jpg\n",
        "develop.txt": "c.jpg\n",
        "develop_pairs.tsv": "image\tcaption\tlabel\nc.jpg\ty\u2028z\tno-match\n",
    }
    with pytest.raises(UserError, match="between 1 and 2"):
        split([*call, "--last", "3"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("reference: today", "reference: best"), "reference names no variant; the variants are today, slow"),
        (("name: slow", "name: today"), "different ones"),
        (("measure: t2i_r10", "measure: loss"), "'loss', which is not in measures"),
        (("points: 2", "points: 0"), "points must be at least 1"),
        (("name: slow", "name: slow, like: filter"), "slow is like filter, which is not a variant above it"),
    ],
)
def test_a_wrong_experiment_is_refused_in_a_sentence(experiment, tmp_path, change, sentence):
    with open(experiment) as file:
        text = file.read()
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(text.replace(*change))
    with pytest.raises(UserError, match=sentence):
        recipes.main([str(wrong), str(tmp_path / "out")])


def test_a_variant_like_another_adds_its_settings_to_those_of_the_other(tmp_path):
    path = tmp_path / "experiment.yaml"
    path.write_text(
        "base: base.yaml\nvariants: [{name: a, settings: [steps=4, seed=1]}, {name: b, like: a, settings: [steps=8]},"
        " {name: c, like: b}]\n"
    )
    a, b, c = (variant.settings for variant in read_experiment(str(path)).variants)
    assert a == ["steps=4", "seed=1"] and b == c == [*a, "steps=8"]


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).parents[2].glob("configs/learning/*.yaml")), ids=lambda one: one.stem
)
def test_the_experiments_in_configs_load(path, monkeypatch):
    monkeypatch.chdir(path.parents[2])
    read = read_experiment(str(path))
    for variant in read.variants:
        settings = [one.replace("{root}", "seed-0") for one in (*read.settings, *variant.settings)]
        config = load_config(RunConfig, read.base, settings)
        assert config.steps > 0 and (read.scenes or config.validation)
