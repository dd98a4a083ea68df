"""The classes of training data: from names, data sets, folders and labels, and what is refused."""

from dataclasses import replace

import pytest

from tests.labelled_data import CLASSES, write_folder, write_parquet, write_shards
from vlp.config import ClassificationConfig, DataConfig, SourceConfig
from vlp.data.evaluation_loader import row_batches
from vlp.data.examples_classification import LabelExamples
from vlp.data.labelled_images import open_labelled, use_classes
from vlp.data.loader import training_loader
from vlp.data.training_classes import find_classes
from vlp.errors import UserError


def data_of(label="", **source):
    return DataConfig(sources=[SourceConfig(**source)], workers=0, label=label, shuffle_buffer=4)


def classes_of(data, **settings):
    return find_classes(data, ClassificationConfig(**settings), quiet=True)


def labels_of(data, count=12):
    """The labels of the first batches by key."""
    loader, found = iter(training_loader(data, 16, LabelExamples(3, data.label), 4)), {}
    while len(found) < count:
        batch = next(loader)
        found |= dict(zip(batch.keys, batch.labels.tolist(), strict=True))
    loader.close()
    return found


def test_shards(tmp_path):
    data = data_of(shards=write_shards(tmp_path / "named", 12))
    assert classes_of(data) == CLASSES
    assert labels_of(data) == labels_of(replace(data, reading="streamed")) == {f"{n:04d}": n % 3 for n in range(12)}
    other = data_of("other", shards=data.sources[0].shards)
    assert labels_of(other) == labels_of(data)
    assert classes_of(data_of(shards=write_shards(tmp_path / "plain", 12, names=False))) == ["0", "1", "2"]
    (tmp_path / "names.txt").write_text("x\ny\nz\n")
    assert classes_of(data, names=str(tmp_path / "names.txt")) == ["x", "y", "z"]


def test_folders_and_parquet(tmp_path):
    folder = data_of(dataset=write_folder(tmp_path / "folder", 12))
    assert classes_of(folder) == ["blue", "dark red", "green"]  # in alphabetical order
    assert sorted(labels_of(folder).values()) == sorted([0, 1, 2] * 4)
    (tmp_path / "folder" / "light_gray").mkdir()
    with pytest.raises(UserError, match=r"no image of 1 of 4 classes \(light gray\)"):
        classes_of(folder)
    parquet = data_of(dataset=write_parquet(tmp_path / "parquet", 12))
    assert classes_of(parquet) == CLASSES
    assert sorted(labels_of(parquet).values()) == sorted([0, 1, 2] * 4)
    with pytest.raises(UserError, match="at least two classes"):
        classes_of(data_of("coarse_label", dataset=parquet.sources[0].dataset))


def test_a_model_finds_its_classes_in_data_of_another_order(tmp_path):
    data = use_classes(open_labelled(write_folder(tmp_path / "folder", 6)), CLASSES)
    assert data.names == CLASSES
    assert [data.class_of(f"{name}/1.png", {}) for name in ("dark_red", "green", "blue")] == [0, 1, 2]
    shards = open_labelled(write_shards(tmp_path / "shards", 6))
    turned = use_classes(shards, ["BLUE", "Dark_Red"])
    assert turned.class_of("any", {"cls": "2"}) == 0 and turned.class_of("any", {"cls": 0}) == 1
    with pytest.raises(Exception, match="unknown class"):
        turned.class_of("any", {"cls": 1})
    with pytest.raises(UserError, match=r"None of the classes of .* is one of the model's"):
        use_classes(shards, ["dog", "cat"])


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        (
            lambda label: f"class {label}",
            {},
            r"The class of 12 of 12 images is not a whole number from 0 to 2, .* 0000 of .* 'class 0'",
        ),
        (lambda label: str(label + 1), {}, "of 12 images is not a whole number from 0 to 2, such as that of 0002 of"),
        (lambda label: str(min(label, 1)), {}, r"no image of 1 of 3 classes \(blue\)"),
        (lambda label: "0", {"classes": 1, "named": False}, "at least two classes"),
        (str, {"classes": 5}, "classification.classes is 5, but the data names 3 classes"),
    ],
)
def test_unusable_labels_are_refused(tmp_path, labels, settings, message):
    named = settings.pop("named", True)
    data = data_of(shards=write_shards(tmp_path / "shards", 12, names=named, labels=labels))
    with pytest.raises(UserError, match=message):
        classes_of(data, **settings)


def test_sources_of_other_classes_are_refused(tmp_path):
    one, two = write_shards(tmp_path / "one", 6), write_folder(tmp_path / "two", 6)
    data = DataConfig(sources=[SourceConfig(shards=one), SourceConfig(dataset=two)])
    with pytest.raises(UserError, match=r"data.sources\[1\] names other classes"):
        classes_of(data)


def test_a_column_that_holds_no_classes_is_refused(tmp_path):
    path = write_parquet(tmp_path / "parquet", 6)
    with pytest.raises(UserError, match="has no column 'cls' for label; its columns are img, fine_label"):
        classes_of(data_of("cls", dataset=path))
    with pytest.raises(UserError, match="does not hold whole numbers"):
        classes_of(data_of("img", dataset=path))


def test_processes_share_the_batches_of_a_data_set(tmp_path):
    rows = open_labelled(write_parquet(tmp_path / "parquet", 11, "test")).rows

    def batches(**options):
        return {
            one.number: (one.keys, [info["cls"] for info in one.infos]) for one in row_batches(rows, 16, 3, **options)
        }

    whole = batches()
    assert [label for _, labels in whole.values() for label in labels] == [number % 3 for number in range(11)]
    first, second = (batches(rank=rank, world=2) for rank in range(2))
    assert list(first) == [0, 2] and list(second) == [1, 3] and whole == first | second
    assert batches(finished=frozenset([0, 2])) == second
    assert sum(len(keys) for keys, _ in batches(limit=7).values()) == 7
