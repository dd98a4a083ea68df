"""Scenes with a single object: their classes are true, and they are scored by ITC and by ITM."""

from tests.tiny_model import make_model
from vlp.data.labelled_images import open_labelled
from vlp.data.shards import iterate_samples
from vlp.demo.classification_scenes import CLASSES, make_classification_scenes, score_classification


def test_classes_are_those_of_the_objects(tmp_path):
    make_classification_scenes(tmp_path / "scenes", 30, 32, "one")
    for attribute in CLASSES:
        data = open_labelled(str(tmp_path / "scenes" / attribute))
        assert data.names == CLASSES[attribute] and len(data.templates) == 16
        found = set()
        for sample in iterate_samples(data.source):
            (thing,) = sample.info["truth"]["objects"]
            assert data.names[data.class_of(sample.key, sample.info)] == thing[attribute]
            found.add(thing[attribute])
        assert len(found) > 4
    pictures = [[one.image for one in iterate_samples(f"{tmp_path}/scenes/{name}/*.tar")] for name in CLASSES]
    assert pictures[0] == pictures[1]


def test_scores(tmp_path):
    make_classification_scenes(tmp_path / "scenes", 6, 32, "two")
    scores = score_classification(make_model(), tmp_path / "scenes")
    assert set(scores) == {"acc1", "shape_acc1", "itc_shape_acc1", "colour_acc1", "itc_colour_acc1"}
    assert scores["acc1"] == min(scores["shape_acc1"], scores["colour_acc1"])
