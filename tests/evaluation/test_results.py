"""Results in CLIP_benchmark's format."""

import csv
import json

import pytest

from vlp.evaluation.results import Results, dataset_name, read_predictions, save_results, skipped_metrics


@pytest.mark.parametrize(
    ("shards", "name"),
    [
        ("data/flickr30k/test/*.tar", "flickr30k/test"),
        ("data/coco-test/{00000..00004}.tar", "coco-test"),
        ("/mnt/coco/val", "coco/val"),
        ("s3://bucket/vqa/val/00000.tar", "vqa/val"),
        (["a/x/1.tar", "a/x/2.tar", "b/y.tar"], "x+b"),
        ("00000.tar", "00000"),
        ("*.tar", "*"),
    ],
)
def test_the_name_of_a_data_set(shards, name):
    assert dataset_name(shards) == name


def test_the_fields_of_clip_benchmark(tmp_path):
    """`clip_benchmark build` takes flat metrics, copies the other fields and joins the names of model and weights."""
    metrics = {"acc1": 0.5, "acc5": 1.0, "mean_per_class_recall": 0.25, **skipped_metrics({"no image": 2})}
    rows = [{"key": "é", "right": True}, {"key": "b", "text": "two\u2028lines\x85", "right": False}]
    out = str(tmp_path / "x.json")
    save_results(Results("classification", "cifar10", metrics, rows), out, "runs/first/model")
    document = json.loads((tmp_path / "x.json").read_text())
    assert set(document) == {"dataset", "model", "pretrained", "task", "metrics", "language"}
    assert document["metrics"] == metrics and not set(document["metrics"]) & set(document)
    assert read_predictions(out) == rows
    row = {**document["metrics"], **document, "model_fullname": f"{document['model']} {document['pretrained']}"}
    del row["metrics"]
    assert not any(isinstance(value, (dict, list)) for value in row.values())
    with open(tmp_path / "table.csv", "w") as file:
        writer = csv.DictWriter(file, sorted(row))
        writer.writeheader()
        writer.writerow(row)
    assert (tmp_path / "table.csv").read_text().count("cifar10") == 1
