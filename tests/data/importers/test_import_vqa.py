"""VQA's official files, BLIP's and Visual Genome's: an image once with all its questions, and damaged annotations."""

import pytest

from tests.data.importers.layouts import imported, photo, write_json
from vlp.data.importers.vqa import Vqa
from vlp.data.questions import read_questions
from vlp.errors import UserError
from vlp.evaluation.vqa_accuracy import accuracy

QUESTIONS = {
    "data_subtype": "train2014",
    "questions": [
        {"image_id": 7, "question": "What color is the cat? ", "question_id": 7000},
        {"image_id": 9, "question": "How many dogs?", "question_id": 9000},
        {"image_id": 7, "question": "Is it sunny?", "question_id": 7001},
    ],
}


def annotation(number: int, answers: list[str], **more) -> dict:
    listed = [{"answer": one, "answer_confidence": "yes", "answer_id": place} for place, one in enumerate(answers, 1)]
    facts = {"question_type": "what color is the", "answer_type": "other", "multiple_choice_answer": answers[0]}
    return {"question_id": number, "image_id": number // 1000, "answers": listed, **facts, **more}


def annotations(*rows: dict) -> dict:
    return {"annotations": list(rows)}


ALL = annotations(
    annotation(7000, ["red"] * 9 + ["pink"]), annotation(9000, ["2"] * 10), annotation(7001, ["yes"] * 10)
)


@pytest.fixture
def images(tmp_path):
    photo(tmp_path / "images" / "train2014" / "COCO_train2014_000000000007.jpg")
    photo(tmp_path / "images" / "COCO_train2014_000000000009.jpg")
    photo(tmp_path / "images" / "VG_100K_2" / "11.jpg")
    return str(tmp_path / "images")


def test_an_image_has_all_its_questions_with_the_answers_of_all_annotators(images, tmp_path):
    files = [write_json(tmp_path / "annotations.json", ALL), write_json(tmp_path / "questions.json", QUESTIONS)]
    counts, samples = imported(Vqa(files, images), tmp_path / "out")
    assert counts.samples == 2 and not counts.bad
    info = samples["COCO_train2014_000000000007"].info
    assert info["image_id"] == 7
    assert [one["question_id"] for one in info["questions"]] == [7000, 7001]
    assert info["questions"][0] == {
        "question": "What color is the cat?",
        "question_id": 7000,
        "answers": ["red"] * 9 + ["pink"],
        "question_type": "what color is the",
        "answer_type": "other",
    }


def test_an_annotator_who_gave_no_answer_is_one_of_ten(images, tmp_path):
    rows = annotations(annotation(7000, ["red"] * 3 + [" "] * 7), annotation(9000, ["2"]), annotation(7001, ["yes"]))
    files = [write_json(tmp_path / name, one) for name, one in (("q.json", QUESTIONS), ("a.json", rows))]
    _, samples = imported(Vqa(files, images), tmp_path / "out")
    (question, _) = read_questions(samples["COCO_train2014_000000000007"].info)
    assert question.answers == ["red"] * 3 + [""] * 7 and question.shares() == {"red": 1}
    assert accuracy("red", question.answers) == pytest.approx((3 * 2 / 3 + 7) / 10)


def test_a_test_split_has_no_answers(images, tmp_path):
    questions = {**QUESTIONS, "data_subtype": "test-dev2015"}
    photo(tmp_path / "images" / "test2015" / "COCO_test2015_000000000007.jpg")
    counts, samples = imported(Vqa([write_json(tmp_path / "q.json", questions)], images), tmp_path / "out")
    assert counts.samples == 2 and not counts.bad
    assert "answers" not in samples["COCO_test2015_000000000007"].info["questions"][0]


def test_damaged_annotations_are_counted_and_named(images, tmp_path, caplog):
    questions = {
        "questions": [
            *QUESTIONS["questions"],
            {"image_id": 7, "question": "Again?", "question_id": 7001},
            {"image_id": 7, "question": "Nobody answered", "question_id": 7002},
            {"image_id": 7, "question": "Other image", "question_id": 7003},
            {"image_id": 7, "question": " ", "question_id": 7004},
            {"image_id": 5, "question": "Where is the image?", "question_id": 5000},
            {"image_id": "7", "question": "?"},
        ]
    }
    rows = annotations(
        *ALL["annotations"],
        annotation(7001, ["no"]),
        annotation(7003, ["yes"], image_id=8),
        annotation(7004, ["yes"]),
        annotation(5000, ["there"]),
        annotation(123, ["lost"]),
    )
    files = [write_json(tmp_path / "q.json", questions), write_json(tmp_path / "a.json", rows)]
    importer = Vqa(files, images)
    counts, samples = imported(importer, tmp_path / "out")
    assert counts.bad == {
        "duplicate annotation": 1,
        "duplicate question_id": 1,
        "question without an answer": 1,
        "annotation of another image": 1,
        "no question": 1,
        "no image": 1,
        "bad row": 1,
        "annotation without a question": 1,
    }
    assert len(samples) == 2 and len(samples["COCO_train2014_000000000007"].info["questions"]) == 2
    assert "question_id 7002" in caplog.text and "COCO_train2014_000000000005.jpg" in caplog.text


def test_annotations_of_another_split_are_refused(images, tmp_path):
    other = annotations(annotation(555000, ["yes"]))
    files = [write_json(tmp_path / name, one) for name, one in (("q.json", QUESTIONS), ("val.json", other))]
    with pytest.raises(UserError, match=r"val\.json belongs to none of the questions.*another split"):
        Vqa(files, images)


def test_blip_and_visual_genome(images, tmp_path):
    coco = "train2014/COCO_train2014_000000000007.jpg"
    coco = "train2014/COCO_train2014_000000000007.jpg"
    blip = [
        {"question_id": 7, "question": "red?", "answer": ["yes", "no"], "image": coco, "dataset": "vqa"},
        {"question_id": "vg_1", "question": "what?", "answer": "a dog", "image": "11.jpg", "dataset": "vg"},
        {"question_id": 8, "question": "what?", "answer": [], "image": "11.jpg", "dataset": "vg"},
    ]
    genome = [{"id": 11, "qas": [{"qa_id": 5, "image_id": 11, "question": "Who?", "answer": "A man."}, {"qa_id": 6}]}]
    files = [write_json(tmp_path / "vqa_train.json", blip), write_json(tmp_path / "question_answers.json", genome)]
    counts, samples = imported(Vqa(files, images), tmp_path / "out")
    assert counts.bad == {"question without an answer": 1, "bad row": 1}
    assert samples["COCO_train2014_000000000007"].info["questions"] == [
        {"question": "red?", "question_id": 7, "answers": ["yes", "no"]}
    ]
    assert samples["11"].info["questions"] == [
        {"question": "what?", "question_id": "vg_1", "answers": ["a dog"], "weight": 0.2},
        {"question": "Who?", "question_id": "vg-5", "answers": ["A man."], "weight": 0.2},
    ]
