"""VisDial: texts in place of numbers, dense annotations at their rounds, and damaged files."""

import copy

import pytest

from tests.data.importers.layouts import imported, photo, write_json
from vlp.data.importers.visdial import VisDial
from vlp.errors import UserError

QUESTIONS = ["is it sunny", "how many dogs", "is there a cat"]
ANSWERS = ["yes", "no", "two", "i can't tell", "maybe"]


def round_of(question: int, answer: int | None, options: list[int] | None = None) -> dict:
    row: dict = {"question": question}
    if answer is not None:
        row["answer"] = answer
    if options is not None:
        row["answer_options"] = options
        if answer is not None:
            row["gt_index"] = options.index(answer)
    return row


def dialogs(split: str = "val") -> dict:
    rows = [
        {
            "image_id": 185565,
            "caption": "a dog on grass ",
            "dialog": [round_of(0, 0, [4, 3, 1, 0]), round_of(1, 2, [2, 0, 1, 3])],
        },
        {"image_id": 7, "caption": "a cat", "dialog": [round_of(2, 3, [0, 1, 2, 3])]},
    ]
    if split == "test":
        rows[0]["dialog"] = [round_of(0, 0), round_of(1, None, [2, 0, 1, 3])]
        rows[1]["dialog"] = [round_of(2, None, [0, 1, 2, 3])]
    return {
        "version": "1.0",
        "split": split,
        "data": {"questions": QUESTIONS, "answers": ANSWERS, "dialogs": rows},
    }


DENSE = [{"image_id": 185565, "round_id": 2, "gt_relevance": [1, 0.2, 0, 0.4]}]


@pytest.fixture
def images(tmp_path):
    photo(tmp_path / "images" / "VisualDialog_val2018" / "VisualDialog_val2018_000000185565.jpg")
    photo(tmp_path / "images" / "COCO_train2014_000000000007.jpg")
    return str(tmp_path / "images")


def test_texts_take_the_place_of_numbers(images, tmp_path):
    files = [write_json(tmp_path / "val.json", dialogs()), write_json(tmp_path / "dense.json", DENSE)]
    importer = VisDial(files, images)
    counts, samples = imported(importer, tmp_path / "out")
    assert (len(importer), counts.samples, counts.bad) == (2, 2, {})
    assert list(samples) == ["000000185565", "000000000007"]
    info = samples["000000185565"].info
    assert (info["image_id"], info["caption"], info["split"]) == (185565, "a dog on grass", "val")
    assert samples["000000185565"].captions == ["a dog on grass"]
    first, second = info["dialog"]
    assert first == {
        "question": "is it sunny",
        "answer": "yes",
        "options": ["maybe", "i can't tell", "no", "yes"],
        "gt_index": 3,
    }
    assert (second["answer"], second["relevance"]) == ("two", [1, 0.2, 0, 0.4])


def test_the_test_split_has_options_without_an_answer_in_the_last_round(images, tmp_path):
    _, samples = imported(VisDial([write_json(tmp_path / "test.json", dialogs("test"))], images), tmp_path / "out")
    first, last = samples["000000185565"].info["dialog"]
    assert first == {"question": "is it sunny", "answer": "yes"}
    assert last == {"question": "how many dogs", "options": ["two", "yes", "no", "i can't tell"]}


@pytest.mark.parametrize("keep", [2, 3, 4, 9])
def test_fewer_options_include_the_true_answer(images, tmp_path, keep):
    importer = VisDial([write_json(tmp_path / "val.json", dialogs())], images, keep)
    _, samples = imported(importer, tmp_path / "out")
    for sample in samples.values():
        for one in sample.info["dialog"]:
            assert len(set(one["options"])) == min(keep, 4)
            assert one["options"][one["gt_index"]] == one["answer"]


DAMAGE = {
    "index out of the pool": lambda row: row["dialog"][0].update(question=3),
    "question without an answer": lambda row: row["dialog"][0].pop("answer"),
    "gt_index is not the answer": lambda row: row["dialog"][0].update(gt_index=0),
    "empty dialog": lambda row: row.update(dialog=[]),
    "no image": lambda row: row.update(image_id=8),
    "duplicate image_id": lambda row: row.update(image_id=7),
    "bad row": lambda row: row.update(caption=None),
}


@pytest.mark.parametrize("reason", DAMAGE)
def test_a_damaged_dialog_is_counted_and_named(images, tmp_path, caplog, reason):
    values = dialogs()
    DAMAGE[reason](values["data"]["dialogs"][0])
    counts, samples = imported(VisDial([write_json(tmp_path / "val.json", values)], images), tmp_path / "out")
    assert counts.bad == {reason: 1}
    assert len(samples) == 1
    assert "val.json image_id " in caplog.text


@pytest.mark.parametrize("index", [-1, 4, True, "0", None])
def test_indices_that_do_not_exist(images, tmp_path, index):
    values = dialogs()
    values["data"]["dialogs"][0]["dialog"][1]["answer_options"][1] = index if index != 4 else 5
    values["data"]["dialogs"][1]["dialog"][0]["gt_index"] = index
    path = write_json(tmp_path / "val.json", values)
    if index is None:  # no gt_index is as in the test split
        counts, _ = imported(VisDial([path], images), tmp_path / "out")
        assert counts.bad == {"index out of the pool": 1}
    else:
        with pytest.raises(UserError, match="no sample to import"):
            imported(VisDial([path], images), tmp_path / "out")


def test_dense_annotations_that_do_not_fit(images, tmp_path):
    rows = [
        *DENSE,
        copy.deepcopy(DENSE[0]),
        {"image_id": 185565, "round_id": 3, "gt_relevance": [1, 0, 0, 0]},
        {"image_id": 7, "round_id": 1, "relevance": [1, 0, 0]},
        {"image_id": 7, "round_id": 1, "gt_relevance": [2, 0, 0, 0]},
        {"image_id": 31, "round_id": 1, "gt_relevance": [1, 0, 0, 0]},
    ]
    files = [write_json(tmp_path / "val.json", dialogs()), write_json(tmp_path / "dense.json", rows)]
    counts, samples = imported(VisDial(files, images), tmp_path / "out")
    assert counts.bad == {
        "duplicate round_id": 1,
        "no such round": 2,
        "relevance does not fit the options": 1,
        "bad row": 1,
    }
    assert samples["000000185565"].info["dialog"][1]["relevance"] == [1, 0.2, 0, 0.4]
    assert "relevance" not in samples["000000000007"].info["dialog"][0]


def test_wrong_calls(images, tmp_path):
    path, dense = write_json(tmp_path / "val.json", dialogs()), write_json(tmp_path / "dense.json", DENSE)
    other = write_json(tmp_path / "other.json", [{"image_id": 31, "round_id": 1, "gt_relevance": [1, 0, 0, 0]}])
    for files, options, folder, words in (
        ([path, other], None, images, r"other.json is of another split"),
        ([dense], None, images, "dense.json has no dialogs"),
        ([path, dense], 2, images, "leave --options out"),
        ([path], 1, images, "at least 2 options, not 1"),
        ([path], None, str(tmp_path / "none"), "There is no image folder"),
        ([write_json(tmp_path / "cut.json", {"data": {"dialogs": 3}})], None, images, "'questions' is not a list"),
    ):
        with pytest.raises(UserError, match=words):
            VisDial(files, folder, options)
