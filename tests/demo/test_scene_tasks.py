"""The demo's tasks: they run after a demo, resume, and say what they reached."""

import json
import math
from dataclasses import asdict, replace

import pytest

from vlp.config import ObjectiveConfig
from vlp.data.shards import iterate_samples
from vlp.data.tokenizer import load_tokenizer
from vlp.demo import tasks
from vlp.demo.retrieval_scenes import make_retrieval_scenes
from vlp.demo.scene_captions import read_caption
from vlp.demo.stages import DemoSizes, demo_model
from vlp.errors import UserError
from vlp.model_folder import save_model
from vlp.models.blip import Blip

SIZES = DemoSizes(
    64, 48, 16, 6, 3, 3, 2, batch_size=16, filter_batch_size=16, image_size=32, width=32, layers=2, heads=2
)


@pytest.fixture
def demo(tmp_path, models, monkeypatch):
    """What a finished demo leaves for its tasks, with a random model."""
    (tmp_path / "bootstrapped").mkdir()
    (tmp_path / "bootstrapped" / "model").symlink_to(models[1])
    (tmp_path / "demo.json").write_text(json.dumps({"sizes": asdict(SIZES), "seed": 4}))
    (tmp_path / "report.json").write_text("{}")
    monkeypatch.setattr(tasks, "QUICK", SIZES)
    monkeypatch.setattr(tasks, "QUICK_SAMPLES", 32)
    monkeypatch.setattr(tasks, "QUICK_STEPS", 2)
    monkeypatch.setattr(tasks, "write_demo_page", lambda root: None)
    smaller = replace(
        tasks.SCENE_TASKS["retrieval"],
        config=lambda config: replace(config, task="retrieval", objective=ObjectiveConfig(queue_size=32)),
    )
    monkeypatch.setitem(tasks.SCENE_TASKS, "retrieval", smaller)
    return tmp_path


def run(folder, names="retrieval"):
    return tasks.run_tasks(str(folder), names, quick=True, seed=4)


def test_an_interrupted_task_resumes_and_is_not_run_again(demo, monkeypatch, capsys):
    whole = tasks.SCENE_TASKS["retrieval"]

    def fail(model, folder):
        raise RuntimeError("interrupted")

    monkeypatch.setitem(tasks.SCENE_TASKS, "retrieval", replace(whole, evaluate=fail))
    with pytest.raises(RuntimeError):
        run(demo)
    before = json.loads((demo / "tasks.json").read_text())["retrieval"]["seconds"]
    weights = demo / "retrieval-run" / "model" / "model.safetensors"
    trained = weights.stat().st_mtime_ns
    monkeypatch.setitem(tasks.SCENE_TASKS, "retrieval", whole)
    results = run(demo)
    assert weights.stat().st_mtime_ns == trained
    metrics = results["retrieval"]["metrics"]
    assert metrics["images"] == 32 and results["retrieval"]["seconds"] > before > 0
    assert metrics["i2t_r1_gain"] == pytest.approx(metrics["i2t_r1"] - metrics["before_i2t_r1"])
    assert results == json.loads((demo / "tasks.json").read_text())
    capsys.readouterr()
    monkeypatch.setitem(tasks.SCENE_TASKS, "retrieval", replace(whole, evaluate=fail))
    assert run(demo) == results
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["task", "metric", "target", "reached", "time"] and lines[1].startswith("retrieval")


@pytest.mark.parametrize("name", tasks.SCENE_TASKS)
def test_every_task_runs_from_the_model_of_a_demo(tmp_path, tokenizer_folder, monkeypatch, name):
    tokenizer = load_tokenizer(str(tokenizer_folder))
    shape = demo_model(SIZES)
    blip = Blip(replace(shape, text_tower=replace(shape.text_tower, vocabulary=len(tokenizer))))
    for folder in {"bootstrapped/model", tasks.SCENE_TASKS[name].start}:
        save_model(blip, tokenizer, tmp_path / folder)
    (tmp_path / "demo.json").write_text(json.dumps({"sizes": asdict(SIZES), "seed": 4}))
    (tmp_path / "report.json").write_text("{}")
    for changed, value in {"QUICK": SIZES, "QUICK_SAMPLES": 32, "QUICK_STEPS": 1}.items():
        monkeypatch.setattr(tasks, changed, value)
    monkeypatch.setattr(tasks, "write_demo_page", lambda root: None)
    found = run(tmp_path, name)[name]
    assert math.isfinite(found["metrics"][found["metric"]])


def test_wrong_calls_are_refused_in_one_sentence(demo, tmp_path):
    with pytest.raises(UserError, match=r"no task 'flying' on scenes; choose from .*retrieval"):
        run(demo, "retrieval,flying")
    with pytest.raises(UserError, match="other settings"):
        tasks.run_tasks(str(demo), "retrieval", quick=True, seed=5)
    with pytest.raises(UserError, match=r"holds no finished demo.*run `vlp demo"):
        run(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_retrieval_scenes_have_five_correct_captions(tmp_path):
    make_retrieval_scenes(tmp_path / "scenes", 20, 32, "one")
    samples = list(iterate_samples(f"{tmp_path}/scenes/*.tar"))
    assert len(samples) == 20
    for sample in samples:
        read = [found for found in map(read_caption, sample.captions) if found]
        assert len(read) == 5
        shapes = {frozenset(thing["shape"] + thing["colour"] for thing in objects) for objects, _ in read}
        assert len(shapes) == 1
