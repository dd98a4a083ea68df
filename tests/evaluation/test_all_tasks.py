"""`vlp evaluate all`: what is found in a folder, what a model can do, resume, the table and the page."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from task_data import write_task_data
from typer.testing import CliRunner

from vlp import load_model
from vlp.cli.main import app
from vlp.errors import UserError
from vlp.evaluation import all_tasks
from vlp.evaluation.data_stamps import data_stamp
from vlp.evaluation.find_data import FoundData, find_data
from vlp.report.published import PUBLISHED, published_figures


@pytest.fixture(scope="module")
def data(tmp_path_factory, scenes):
    folder = tmp_path_factory.mktemp("data")
    write_task_data(folder, scenes)
    return folder


def test_data_is_recognised_by_its_content(data):
    found = {(one.task, one.dataset) for one in find_data(str(data))}
    assert found == {
        ("retrieval", "scenes/test"),
        ("captioning", "scenes/test"),
        ("captioning", "nocaps/val"),
        ("vqa", "vqa/val"),
        ("visdial", "dialogs/val"),
        ("nlvr2", "pairs/dev"),
        ("classification", "shapes/test"),
        ("linear_probe", "shapes/test"),
        ("video_retrieval", "msrvtt_test"),
        ("video_qa", "msvd_qa"),
        ("", "plain"),
    }
    with pytest.raises(UserError, match="no folder"):
        find_data(f"{data}/absent")


def test_data_of_one_name_links_and_image_folders_are_all_found(data, scenes, tmp_path):
    for name in ("a/coco", "b/coco", "scenes-test", "photos/cat", "photos/dog", "plain/x", "plain/y", "wds/test"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("a/coco", "b/coco", "scenes-test", "wds/test"):
        shutil.copy(data / "scenes/test/00000.tar", tmp_path / name / "0.tar")
    for name in ("photos/cat/1.png", "photos/dog/2.png", "plain/x/1.jpg", "plain/y/1.jpg"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "photos/classnames.txt").write_text("a cat\na dog\n")
    (tmp_path / "wds/test/nshards.txt").write_text("1")
    (tmp_path / "wds/dataset_type.txt").write_text("retrieval")
    (tmp_path / "scenes").symlink_to(data / "scenes")
    (tmp_path / "photos/loop").symlink_to(tmp_path)
    for name, video in (("clips/0.mp4", None), ("msvd/vid7.mp4", None), ("lists/qa.json", 7), ("qa.json", 7)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(
            json.dumps([{"video": video, "question": "who?", "answer": "man"}]) if video else ""
        )
    found = find_data(str(tmp_path))
    assert [(one.task, one.dataset, one.videos) for one in found if one.annotations] == [
        ("video_qa", "qa", str(tmp_path / "msvd")),
        ("", "qa", ""),
    ]
    found = [one for one in found if not one.annotations]
    assert [(one.task, one.dataset) for one in found if one.task != "captioning"] == [
        ("retrieval", "a/coco"),
        ("retrieval", "b/coco"),
        ("retrieval", "scenes/test"),
        ("retrieval", "scenes-test"),
        ("", "wds/test"),
        ("classification", "photos"),
        ("", "plain"),
    ]
    assert ["import" in one.reason for one in found if not one.task] == [True, False]
    files = {str(all_tasks.results_path(Path("out"), one)) for one in found}
    assert len(files) == len(found)  # scenes/test and scenes-test have files of their own


def evaluate(model, data, out, *options):
    arguments = ["evaluate", "all", model, "--data", str(data), "--out", str(out), "--precision", "fp32", *options]
    return CliRunner().invoke(app, arguments)


TASKS = ("--tasks", "retrieval,captioning,visdial")


def test_everything_that_a_model_can_do(models, data, tmp_path, monkeypatch):
    out = tmp_path / "out"
    first = evaluate(models[0], data, out, *TASKS)
    assert first.exit_code == 0, first.output
    summary = json.loads((out / "results.json").read_text())
    assert [(one["task"], one["dataset"]) for one in summary["results"]] == [
        ("captioning", "nocaps/val"),
        ("retrieval", "scenes/test"),
        ("captioning", "scenes/test"),
    ]
    assert all(one["metrics"]["images"] == 6 and one["metrics"]["skipped"] == 0 for one in summary["results"])
    left = {(one["task"], one["dataset"]): one["reason"] for one in summary["not_run"]}
    assert left["visdial", "dialogs/val"] == "needs a model that is finetuned for visdial"
    assert "no captions" in left["", "plain"] and left["vqa", "vqa/val"] == "not among --tasks"
    table = (out / "results.md").read_text()
    assert (
        "| Retrieval | scenes/test | 6 images | image to text R@1 |" in table
        and "- VisDial dialogs/val: needs" in table
    )
    page = (out / "report.html").read_text()
    assert page.count("data:image/jpeg") >= 6 and "prefers-color-scheme: dark" in page
    assert not re.search(r"<script|<link|(src|href)=\"(?!data:)", page)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr(all_tasks, "EVALUATIONS", dict.fromkeys(all_tasks.EVALUATIONS, None))
    assert evaluate(models[0], data, out, *TASKS).exit_code == 0  # nothing is evaluated again
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert evaluate(models[0], data, out, "--tasks", "visdial").exit_code == 0  # what is finished stays in the table
    assert json.loads((out / "results.json").read_text()) == summary
    for options, name in (((*TASKS, "--limit", "3"), "limit"), ((*TASKS, "--batch-size", "3"), "batch size")):
        assert f"another {name}" in str(evaluate(models[0], data, out, *options).exception)
    assert "another model" in str(evaluate(models[1], data, out, *TASKS).exception)
    assert "no evaluation 'dancing'" in str(evaluate(models[0], data, out, "--tasks", "dancing").exception)
    assert "holds no results" in str(evaluate(models[0], data, data, *TASKS).exception)


def test_a_wrong_folder_of_data_leaves_the_output_to_the_right_one(models, data, tmp_path):
    out, empty = tmp_path / "out", tmp_path / "empty"
    empty.mkdir()
    for wrong, sentence in ((tmp_path / "absent", "There is no folder"), (empty, "holds no shards")):
        assert sentence in str(evaluate(models[0], wrong, out).exception)
    assert evaluate(models[0], data, out, "--tasks", "visdial").exit_code == 0
    assert "holds results of other data" in str(evaluate(models[0], f"{data}/scenes", out).exception)


def test_an_interrupted_call_goes_on_with_the_missing_evaluations(models, data, tmp_path, monkeypatch):
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert evaluate(models[0], data, whole, *TASKS, "--batch-size", "2").exit_code == 0
    with monkeypatch.context() as patch:
        patch.setitem(all_tasks.EVALUATIONS, "retrieval", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert evaluate(models[0], data, part, *TASKS, "--batch-size", "2").exit_code != 0
    assert not (part / "results.json").exists() and len(list(part.glob("captioning-*.json"))) == 1
    assert evaluate(models[0], data, part, *TASKS, "--batch-size", "2").exit_code == 0
    for path in whole.iterdir():
        assert (part / path.name).read_bytes() == path.read_bytes(), path.name


def test_an_evaluation_is_repeated_where_its_data_changed(models, data, tmp_path):
    """Only the one of these data; results of data that changed and are not asked for leave the table."""
    copy, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(data, copy)
    assert evaluate(models[0], copy, out, *TASKS).exit_code == 0
    results = sorted(out.glob("*-*--*.json"))
    times = {path.name: path.stat().st_mtime_ns for path in results}
    before = json.loads((out / "results.json").read_text())
    (shard, *_) = sorted((copy / "scenes" / "test").glob("*.tar"))
    os.utime(shard, ns=(0, 0))
    assert evaluate(models[0], copy, out, *TASKS).exit_code == 0
    repeated = {path.name for path in results if path.stat().st_mtime_ns != times[path.name]}
    assert repeated == {name for name in times if "scenes--test" in name} < times.keys()
    assert json.loads((out / "results.json").read_text()) == before
    os.utime(shard, ns=(1, 1))
    assert evaluate(models[0], copy, out, "--tasks", "captioning").exit_code == 0
    listed = json.loads((out / "results.json").read_text())["results"]
    assert {(one["task"], one["dataset"]) for one in listed} == {
        ("captioning", "nocaps/val"),
        ("captioning", "scenes/test"),
    }


def test_data_stamps_tell_changed_files(tmp_path):
    (tmp_path / "videos" / "a").mkdir(parents=True)
    for name in ("list.json", "videos/a/1.mp4", "videos/2.mp4", "0.tar", "classnames.txt"):
        (tmp_path / name).write_text(name)
    found = FoundData(
        "video_qa", "x", [str(tmp_path / "0.tar")], [], str(tmp_path / "list.json"), str(tmp_path / "videos")
    )
    stamps = [data_stamp(found)]
    assert data_stamp(found) == stamps[0]
    for name in ("list.json", "videos/a/1.mp4", "videos/3.mp4", "0.tar", "classnames.txt"):
        (tmp_path / name).write_text(f"{name} changed")
        stamps.append(data_stamp(found))
    assert len(set(stamps)) == len(stamps)


def test_data_that_an_evaluation_refuses_are_named_and_the_others_go_on(models, data, tmp_path, monkeypatch):
    def refuse(*_):
        raise UserError("its images have several classes")

    monkeypatch.setitem(all_tasks.EVALUATIONS, "retrieval", refuse)
    result = evaluate(models[0], data, tmp_path / "out", *TASKS)
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "out/results.json").read_text())
    assert {one["task"] for one in summary["results"]} == {"captioning"} and len(summary["results"]) == 2
    assert {"task": "retrieval", "dataset": "scenes/test", "reason": "its images have several classes"} in summary[
        "not_run"
    ]


@pytest.mark.parametrize(("dataset", "rerank"), [("flickr30k/test", 128), ("coco/test", None)])
def test_retrieval_reranks_as_many_as_the_paper(models, monkeypatch, dataset, rerank):
    asked = []
    monkeypatch.setattr(all_tasks, "evaluate_retrieval", lambda model, shards, rerank, settings: asked.append(rerank))
    data = all_tasks.FoundData("retrieval", dataset, ["x.tar"])
    all_tasks.EVALUATIONS["retrieval"](load_model(models[0]), data, None)
    assert asked == [rerank]


def test_published_figures_need_the_whole_of_the_same_test_set():
    result = {"task": "retrieval", "dataset": "coco/test", "metrics": {"images": 5000, "i2t_r1": 0.5}}
    assert published_figures(result, "i2t_r1").startswith("14M 80.6, 129M 81.9, CapFilt-L 81.2, ViT-L 82.4")
    assert published_figures(result, "images") == ""
    assert published_figures({**result, "metrics": {"images": 4999}}, "i2t_r1") == ""
    assert published_figures({**result, "dataset": "flickr8k/test"}, "i2t_r1") == ""
    assert published_figures({**result, "dataset": "coco/val"}, "i2t_r1") == ""  # which has 5,000 images too
    visdial = {"task": "visdial", "dataset": "visdial/val", "metrics": {"images": 2064}}
    assert published_figures(visdial, "mrr") == "BLIP 69.41 (finetuned)"
    assert all(len(values) in (1, 3, 4) for one in PUBLISHED for values in one.figures.values())


def test_a_model_that_is_finetuned_for_a_task_does_only_that(data, models):
    from vlp.model import load_model

    model = load_model(models[0])
    model.config = replace(model.config, finetuned_for="visdial")
    reasons = {one.task: all_tasks._reason(model, one, None) for one in find_data(str(data)) if one.task}
    assert reasons["visdial"] == "" and reasons["retrieval"] == "the model is finetuned for visdial"


def test_a_converted_model_is_not_scored_on_what_its_source_lacked(data, models):
    from vlp.model import load_model

    model = load_model(models[0])
    model.config = replace(model.config, untrained=["itm_head"])
    reasons = {one.task: all_tasks._reason(model, one, None) for one in find_data(str(data))}
    assert reasons["retrieval"] == "the model was converted without itm_head" and not reasons["captioning"]
