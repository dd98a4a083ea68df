"""VQA's evaluation: every question of the shards is answered, scored and counted; ranking equals a plain one."""

import io
import json

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.models.test_finetuned import QUESTIONS, vqa_model
from tests.tiny_model import make_images
from vlp.cli.main import app
from vlp.data.questions import Question, frequent_answers, read_answer_list
from vlp.data.shard_writer import ShardWriter
from vlp.errors import UserError, WorkError
from vlp.evaluation.settings import EvaluationSettings
from vlp.evaluation.vqa import evaluate_vqa
from vlp.evaluation.vqa_answers import question_row, score_answers, vqa_metrics, write_submission
from vlp.model.answer_ranking import AnswerList, rank_memory
from vlp.model.answers import question_memory

ANSWERS = ["red", "a large circle", "star", "left of the star", "small", "red square", "white", "red"]


def plain_scores(model, image, question: str) -> dict[str, float]:
    """The log-likelihood of each answer, one at a time, without padding."""
    scores = {}
    blip = model.blip.eval()
    ids, mask = model.tokenizer.encode([question], 30, "[ENC]", multiple=1)
    with torch.no_grad():
        tower = blip.text_tower
        states = tower.match(ids, mask, tower.project_image(blip.encode_images(image[None])))
        memory = tower.project_image(states, "decoder")
        for answer in ANSWERS:
            answer_ids, _ = model.tokenizer.encode([answer], 30, "[DEC]", multiple=1)
            log_p = blip.caption_logits(answer_ids[:, :-1], None, memory)[0].log_softmax(-1)
            scores[answer] = log_p[torch.arange(len(log_p)), answer_ids[0, 1:]].sum().item()
    return scores


@pytest.mark.parametrize("k", [2, 100])
def test_ranking_equals_a_plain_one(k):
    model = vqa_model()
    images = make_images(4)
    ranked = model.rank_answers(images, QUESTIONS, ANSWERS, k=k)
    for image, question, found in zip(images, QUESTIONS, ranked, strict=True):
        scores = plain_scores(model, image, question)
        assert len(found) == min(k, 7) and found == sorted(found, key=lambda one: -one.log_probability)
        for one in found:
            assert one.log_probability == pytest.approx(scores[one.text], rel=1e-4)
        if k == 100:
            assert found[0].text == max(scores, key=lambda answer: scores[answer])


def test_k_answers_are_chosen_by_their_first_token():
    model = vqa_model()
    image, question = make_images(1), "is it red"
    ids, mask = model.tokenizer.encode([question], 30, "[ENC]", multiple=1)
    with torch.no_grad():
        blip = model.blip.eval()
        memory = blip.question_memory(ids, mask, blip.text_tower.project_image(blip.encode_images(image)))
        first = blip.caption_logits(torch.tensor([[model.tokenizer.dec_id]]), None, memory)[0, 0]
    distinct = ["red", "large", "star", "left", "small", "white"]
    order = sorted(distinct, key=lambda answer: -first[model.tokenizer.word_ids([answer])[0][0]].item())
    (found,) = model.rank_answers(image, question, distinct, k=3)
    assert {one.text for one in found} == set(order[:3])


def test_states_of_questions_are_not_repeated_for_their_answers(monkeypatch):
    model = vqa_model()
    memory = question_memory(model, model.encode_images(make_images(4)), QUESTIONS)
    decode, seen = model.blip.text_tower.decode, []
    monkeypatch.setattr(
        model.blip.text_tower,
        "decode",
        lambda ids, mask, memory, *more: seen.append((ids, memory.keys[0], more)) or decode(ids, mask, memory, *more),
    )
    rank_memory(model, memory, AnswerList(model, ANSWERS), 5)
    ids, keys, more = seen[-1]
    assert len(ids) == 20 and keys is memory.keys[0] and not any(one is not None for one in more)


def image() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(file, "PNG")
    return file.getvalue()


def question(number, text="is it red?", answers=("yes",) * 10, kind="yes/no") -> dict:
    return {"question": text, "question_id": number, "answers": list(answers), "answer_type": kind}


@pytest.fixture
def shards(tmp_path):
    """Questions with answers, two of one id, one without answers; an image without, and one with bad questions."""
    infos = [
        {"questions": [question(1), question(2, "what color is the star", ["red"] * 10, "other")]},
        {"questions": [question(3, answers=["", " "], kind=""), question(1)]},
        {},
        {"questions": ["where"]},
    ]
    (tmp_path / "data").mkdir()
    with ShardWriter(tmp_path / "data", 10) as writer:
        for number, info in enumerate(infos):
            writer.write(str(number), image(), "png", None, info)
    return str(tmp_path / "data" / "*.tar")


@pytest.mark.parametrize("answers", [None, ["yes", "no", "red"]])
def test_no_question_is_dropped_silently(shards, answers):
    model = vqa_model()
    results = evaluate_vqa(model, shards, answers, settings=EvaluationSettings(batch_size=2))
    assert [row["question_id"] for row in results.predictions] == [1, 2, 3]
    metrics = results.metrics
    assert (metrics["questions"], metrics["without_answers"], metrics["skipped"]) == (3, 1, 3)
    assert metrics["skipped: duplicate question_id"] == 1
    assert metrics["skipped: no question"] == metrics["skipped: bad questions"] == 1
    for row in results.predictions:
        asked = [row["question"]]
        picture = torch.zeros(3, 32, 32, dtype=torch.uint8)
        picture[0] = 255
        if answers is None:
            assert row["answer"] == model.answer([picture], asked)[0]
        else:
            assert row["answer"] == model.rank_answers([picture], asked, answers)[0][0].text
            assert row["answer"] in answers


def test_a_row_tells_whether_its_answer_is_right_or_wrong_unless_it_is_partly_right():
    asked = Question("what", 1, ["red"] * 9 + ["blue"])
    rows = [question_row("k", asked, answer) for answer in ("red", "green", "blue")]
    assert [row.get("right") for row in rows] == [True, False, None] and 0 < rows[2]["score"] < 1
    assert "right" not in question_row("k", Question("what", 1), "red")


def test_accuracy_is_over_the_questions_with_answers():
    def row(score, kind):
        return {"score": score, "answer_type": kind}

    metrics = vqa_metrics([row(1.0, "yes/no"), row(0.5, "other"), row(0.0, "other"), row(None, "")])
    assert metrics["accuracy"] == 0.5 and metrics["accuracy_yes/no"] == 1 and metrics["accuracy_other"] == 0.25
    assert metrics["questions"] == 4 and metrics["without_answers"] == 1
    assert "accuracy" not in vqa_metrics([row(None, "")])


def test_the_submission_covers_every_question_or_is_not_written(shards, tmp_path):
    results = evaluate_vqa(vqa_model(), shards)
    path = str(tmp_path / "vqa.json")
    with pytest.raises(WorkError, match=r"\(bad questions: 1, duplicate question_id: 1\)"):
        write_submission(path, results)
    assert not (tmp_path / "vqa.json").exists()
    results.metrics = {"skipped": 1, "skipped: no question": 1}
    write_submission(path, results)
    rows = json.loads((tmp_path / "vqa.json").read_text())
    assert [row["question_id"] for row in rows] == [1, 2, 3] and set(rows[0]) == {"question_id", "answer"}
    scored = score_answers(path, shards)
    assert scored.predictions == json.loads(json.dumps(results.predictions))
    assert scored.metrics == {**vqa_metrics(results.predictions), **scored_counts(scored.metrics)}
    assert scored.metrics["skipped"] == 3


def scored_counts(metrics: dict) -> dict:
    return {name: value for name, value in metrics.items() if name.startswith("skipped")}


def test_after_a_refused_submission_the_results_need_no_new_predictions(shards, tmp_path):
    vqa_model().save(tmp_path / "model")
    arguments = ["evaluate", "vqa", tmp_path / "model", shards, "--out", tmp_path / "out.json", "--batch-size", 2]
    refused = CliRunner().invoke(app, [str(one) for one in [*arguments, "--submission", tmp_path / "vqa.json"]])
    assert isinstance(refused.exception, WorkError) and (tmp_path / "out.json.partial").exists()
    assert CliRunner().invoke(app, [str(one) for one in arguments]).exit_code == 0


def test_another_list_of_answers_does_not_go_on_with_a_partial_evaluation(shards, tmp_path):
    model, settings = vqa_model(), EvaluationSettings(2, partial=str(tmp_path / "partial"))
    evaluate_vqa(model, shards, ["yes", "no"], settings=settings)
    with pytest.raises(UserError, match="another list of answers"):
        evaluate_vqa(model, shards, ["yes", "red"], settings=settings)


def test_shards_without_questions_are_refused(scenes):
    with pytest.raises(UserError, match="VQA needs images with questions"):
        evaluate_vqa(vqa_model(), f"{scenes}/00000.tar", settings=EvaluationSettings(limit=2))


def test_results_of_another_split_are_named(shards, tmp_path):
    path = tmp_path / "results.json"

    def score(*numbers):
        path.write_text(json.dumps([{"question_id": number, "answer": "yes"} for number in numbers]))
        return score_answers(str(path), shards)

    assert [row["score"] for row in score(3, 2, 1).predictions] == [1, 0, None]
    with pytest.raises(UserError, match=r"another split.*lacks 1 question \(question_id 2\).*answers 1 question.* 7"):
        score(1, 3, 7)
    with pytest.raises(UserError, match=r"several answers to 1 question \(question_id 1\)"):
        score(1, 2, 1)
    path.write_text('{"a": 1}')
    with pytest.raises(UserError, match="not a list of question_id and answer"):
        score_answers(str(path), shards)


def test_the_list_of_answers_has_the_frequent_ones(shards, tmp_path):
    assert frequent_answers(shards, 9) == ["yes", "red"]
    assert frequent_answers(shards, 11) == ["yes"]
    with pytest.raises(UserError, match="No answer occurs 100 times"):
        frequent_answers(shards, 100)
    (tmp_path / "list.json").write_text('["yes", 1]')
    with pytest.raises(UserError, match="not a JSON list of answers"):
        read_answer_list(str(tmp_path / "list.json"))


def test_a_model_without_a_question_encoder_cannot_rank():
    from tests.tiny_model import make_model

    with pytest.raises(UserError, match="cannot rank answers"):
        make_model().rank_answers(make_images(1), "is it red", ["yes"])
