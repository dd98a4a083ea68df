"""Questions about videos: the model's answers, their normalization, and what is not counted."""

import pytest
from PIL import Image
from tiny_model import make_images, make_model
from videos import write_list, write_noise_videos

from vlp.errors import UserError
from vlp.evaluation.settings import EvaluationSettings
from vlp.evaluation.video_qa import evaluate_video_qa
from vlp.model.answers import answer_memory, question_memory
from vlp.model.video import encode_videos, load_videos
from vlp.models.finetuned import extend

FRAMES = 3


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos")
    write_noise_videos(path, 3)
    return path


@pytest.fixture(scope="module")
def answering():
    model = make_model()
    model.network = extend(model.blip, "vqa")
    model.config = model.blip.config
    return model


def test_questions_about_videos(tmp_path, videos, answering, caplog):
    frames = load_videos(answering, [videos / f"v{number}.mp4" for number in range(3)], FRAMES)
    asked = [["what is red", "where is the star"], ["what is above"], ["is it small"]]
    rows, expected = [], []
    for number, (one, questions) in enumerate(zip(frames, asked, strict=True)):
        memory = question_memory(answering, answering.encode_images(one).flatten(0, 1)[None], questions)
        found = answer_memory(answering, memory, answering.decoding, questions)
        for place, (question, answer) in enumerate(zip(questions, found, strict=True)):
            truth = f"The {answer.upper()}." if place == 0 and answer else "never that"
            rows.append({"video": f"v{number}", "question": question, "answer": truth, "question_id": len(rows)})
            expected.append((answer, truth != "never that"))
    rows += [
        {"video": "bad", "question": "what is it", "answer": "a dog", "question_id": 90},
        {"video": "bad", "question": "who is it", "answer": "a dog", "question_id": 91},
        {"video": "v1", "question": "what is it", "answer": "a dog", "question_id": 0},
        {"video": "v1", "question": "what is it", "answer": "", "question_id": 92},
    ]
    path = write_list(tmp_path / "qa.jsonl", rows)
    settings = EvaluationSettings(batch_size=2)
    results = evaluate_video_qa(answering, path, str(videos), FRAMES, decoding=answering.decoding, settings=settings)
    assert [(row["answer"], row["right"]) for row in results.predictions] == expected
    right = sum(one for _, one in expected)
    assert results.metrics == {
        "accuracy": right / 4,
        "questions": 4,
        "videos": 3,
        "skipped": 4,
        "skipped: duplicate question id": 1,
        "skipped: no answer": 1,
        "skipped: video undecodable": 2,
    }
    assert f"skipped {path} bad: video undecodable" in caplog.text
    ranked = evaluate_video_qa(answering, path, str(videos), FRAMES, ["red", "star", "the"], 3, settings=settings)
    assert {row["answer"] for row in ranked.predictions} <= {"red", "star", "the"}


def test_a_model_without_vqa_and_unreadable_videos_are_refused(tmp_path, videos, answering):
    path = write_list(tmp_path / "qa.jsonl", [{"video": "bad", "question": "who is it", "answer": "a dog"}])
    with pytest.raises(UserError, match=r"VQA|vqa"):
        evaluate_video_qa(make_model(), path, str(videos))
    with pytest.raises(UserError, match=r"No video that .* can be read .*undecodable: 1"):
        evaluate_video_qa(answering, path, str(videos))


def test_answer_takes_images_and_videos(videos, answering, tmp_path):
    Image.fromarray(make_images(1)[0].permute(1, 2, 0).numpy()).save(tmp_path / "photo.png")
    asked = [(videos / "v0.mp4", "what is red"), (tmp_path / "photo.png", "where is it"), (videos / "v1.mp4", "how")]
    images, questions = [image for image, _ in asked], [question for _, question in asked]
    answers = answering.answer(images, questions, frames=FRAMES)
    ranked = answering.rank_answers(images, questions, ["red", "star", "the circle"], frames=FRAMES)
    for (image, question), answer, best in zip(asked, answers, ranked, strict=True):
        assert [answer] == answering.answer(image, question, frames=FRAMES)
        alone = answering.rank_answers(image, [question, "who"], ["red", "star", "the circle"], frames=FRAMES)[0]
        assert [one.text for one in best] == [one.text for one in alone]
    memory = question_memory(answering, encode_videos(answering, load_videos(answering, images[:1], FRAMES)), ["how"])
    assert answering.answer(images[0], "how", frames=FRAMES) == answer_memory(
        answering, memory, answering.decoding, [""]
    )
