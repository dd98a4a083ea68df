"""Ranked answers of dialogs: equal to one text at a time, one memory an image, submission files and bad input."""

import copy
import io
import json
import random

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.tiny_model import WORDS, make_model
from vlp.cli.main import app
from vlp.data.shard_writer import ShardWriter
from vlp.data.transforms import clean_caption
from vlp.errors import UserError, WorkError
from vlp.evaluation.visdial import evaluate_visdial, submission_rows
from vlp.model import Model, dialog
from vlp.models.cpu.optimise import optimise_for_cpu
from vlp.models.finetuned import extend

ANSWERS = ["yes", "no", "red", "blue", "a red circle", "left of the large star", "above", "small", "Yes."]
SIZE = 32


@pytest.fixture(scope="module")
def model() -> Model:
    tiny = make_model()
    torch.manual_seed(3)
    return Model(extend(tiny.blip, "visdial"), tiny.tokenizer, "fp32")


def picture(rng: random.Random) -> bytes:
    pixels = np.array([rng.randrange(256) for _ in range(SIZE * SIZE * 3)], dtype=np.uint8).reshape(SIZE, SIZE, 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def make_info(number: int, rng: random.Random) -> dict:
    rounds = []
    for _ in range(4):
        options = rng.sample(ANSWERS, 7)
        right = rng.randrange(7)
        question = " ".join(rng.sample(WORDS.split(), 4))
        rounds.append(
            {
                "question": question,
                "answer": options[right],
                "options": options,
                "gt_index": right,
                "relevance": [rng.choice((0, 0.5, 1)) for _ in options],
            }
        )
    return {"image_id": number, "caption": " ".join(rng.sample(WORDS.split(), 3 + number)), "dialog": rounds}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> tuple[str, list[tuple[bytes, dict]]]:
    """Shards with five dialogs and four samples that cannot be ranked; and the good ones."""
    folder, rng = tmp_path_factory.mktemp("visdial"), random.Random(0)
    good = [(picture(rng), make_info(number, rng)) for number in range(5)]
    bad = [
        (b"no image", good[0][1]),
        (good[0][0], {"caption": "no dialog"}),
        (good[0][0], {"caption": "a", "dialog": [{"question": 3}]}),
        (good[0][0], {"caption": "a", "dialog": [{"question": "a", "answer": "b"}]}),
    ]
    with ShardWriter(str(folder), 3) as writer:
        for number, (image, values) in enumerate(good + bad):
            writer.write(f"{number:04d}", image, "png", None, values)
    return f"{folder}/*.tar", good


def plain_scores(model: Model, image: bytes, info: dict) -> list[list[float]]:
    """The log-odds of each option of each round, one text at a time, from the words of the text tower's parts."""
    blip, tokenizer = model.blip, model.tokenizer
    pixels = torch.tensor(np.array(Image.open(io.BytesIO(image)))).permute(2, 0, 1)[None]
    tokens = model.encode_images(pixels)
    scores = []
    with model.inference():
        ids, mask = tokenizer.encode([clean_caption(info["caption"])], 35, multiple=1)
        memory = blip.text_tower.project_image(torch.cat([tokens, blip.text_tower.encode(ids, mask)], dim=1))
        for number, one in enumerate(info["dialog"]):
            before = "".join(f"{r['question']} {clean_caption(r['answer'])} [SEP] " for r in info["dialog"][:number])
            row = []
            for option in one["options"]:
                text = f"{before}{one['question']} {clean_caption(option)}"
                words = tokenizer.tokenizer.encode(text, add_special_tokens=False).ids[-46:]  # of 48 positions
                ids = torch.tensor([[tokenizer.enc_id, *words, tokenizer.sep_id]])
                logits = blip.match_logits(ids, torch.ones_like(ids, dtype=torch.bool), memory)[0]
                row.append(float(logits[1] - logits[0]))
            scores.append(row)
    return scores


def test_the_scores_are_those_of_one_text_at_a_time(model, shards, monkeypatch):
    monkeypatch.setattr(dialog, "TEXTS_AT_ONCE", 5)
    paths, good = shards
    results = evaluate_visdial(model, paths)
    rows = iter(results.predictions)
    ranks = []
    for image, info in good:
        for number, scores in enumerate(plain_scores(model, image, info)):
            row = next(rows)
            torch.testing.assert_close(torch.tensor(row["scores"]), torch.tensor(scores), atol=1e-4, rtol=1e-4)
            assert (row["image_id"], row["round_id"]) == (info["image_id"], number + 1)
            right = info["dialog"][number]["gt_index"]
            ranks.append(sum(score >= row["scores"][right] for score in row["scores"]))
            assert row["rank"] == ranks[-1] and row["right"] == (ranks[-1] == 1)
            assert row["best"] == info["dialog"][number]["options"][int(np.argmax(row["scores"]))]
    metrics = results.metrics
    assert metrics["mrr"] == pytest.approx(np.mean([1 / rank for rank in ranks]))
    assert metrics["r1"] == pytest.approx(np.mean([rank == 1 for rank in ranks]))
    assert 0 < metrics["ndcg"] < 1
    assert (metrics["images"], metrics["rounds"], metrics["rounds_with_answer"]) == (5, 20, 20)


def test_the_fast_path_of_cpus_gives_the_same_scores(model, shards):
    rows = evaluate_visdial(model, shards[0]).predictions
    fast = optimise_for_cpu(Model(copy.deepcopy(model.blip), model.tokenizer, "fp32"))
    for mine, theirs in zip(rows, evaluate_visdial(fast, shards[0]).predictions, strict=True):
        torch.testing.assert_close(torch.tensor(mine["scores"]), torch.tensor(theirs["scores"]), atol=1e-4, rtol=1e-4)


def test_half_precision_makes_few_ties(model, shards):
    half = evaluate_visdial(Model(model.blip, model.tokenizer, "bf16"), shards[0]).predictions
    different = sum(len(set(row["scores"])) for row in evaluate_visdial(model, shards[0]).predictions)
    assert sum(len(set(row["scores"])) for row in half) > 0.9 * different
    rounded = [set(torch.tensor(row["scores"]).bfloat16().tolist()) for row in half]
    assert sum(map(len, rounded)) < 0.85 * different  # as logits in bf16 would be


def test_samples_that_cannot_be_ranked_are_counted(model, shards):
    metrics = evaluate_visdial(model, shards[0]).metrics
    assert metrics["skipped"] == 4
    assert {name: value for name, value in metrics.items() if name.startswith("skipped:")} == {
        "skipped: image undecodable": 1,
        "skipped: no dialog": 1,
        "skipped: bad dialog": 1,
        "skipped: no answer options": 1,
    }


def test_a_dialog_counts_once(model, shards):
    first = shards[0].replace("*", "00000")
    once, twice = evaluate_visdial(model, first), evaluate_visdial(model, [first, first])
    assert twice.metrics == {**once.metrics, "skipped": 12, "skipped: duplicate image_id and round_id": 12}


def test_one_memory_an_image_whatever_the_number_of_texts(model, shards, monkeypatch):
    tower = model.blip.text_tower
    seen, project, match = [], tower.project_image, tower.match
    monkeypatch.setattr(
        tower,
        "project_image",
        lambda tokens, *more: seen.append(len(tokens)) or project(tokens, *more),
    )

    def one_row(ids, mask, memory, image_index=None):
        assert len(memory) == 1 and image_index is None
        return match(ids, mask, memory)

    monkeypatch.setattr(tower, "match", one_row)
    evaluate_visdial(model, shards[0])
    assert seen == [1] * 5


def test_equal_texts_have_equal_scores(model, shards):
    paths, good = shards
    rows, equal = iter(evaluate_visdial(model, paths).predictions), 0
    for options in (one["options"] for _, info in good for one in info["dialog"]):
        scores = next(rows)["scores"]
        if {"yes", "Yes."} <= set(options):
            equal += 1
            assert scores[options.index("yes")] == scores[options.index("Yes.")]
    assert equal
    ranked = model.rank_dialog_answers(Image.new("RGB", (40, 20)), "a red circle", [], "is it red", ["Yes!", "yes"])
    assert ranked[0].itm == ranked[1].itm


def test_answers_are_ranked_by_the_model(model):
    image = Image.new("RGB", (40, 20), (200, 0, 0))
    history = [("is it red", "yes"), ("and the other", "blue")]
    ranked = model.rank_dialog_answers(image, "a red circle", history, "is it large", ["yes", "no", "red"])
    assert sorted(one.text for one in ranked) == ["no", "red", "yes"]
    assert [one.itm for one in ranked] == sorted((one.itm for one in ranked), reverse=True)
    without = model.rank_dialog_answers(image, "a red circle", [], "is it large", ["yes", "no", "red"])
    assert {one.text: one.itm for one in ranked} != {one.text: one.itm for one in without}
    with pytest.raises(UserError, match="no answers to rank"):
        model.rank_dialog_answers(image, "a red circle", [], "is it large", [])


def test_a_model_without_dialog_finetuning_is_refused(shards):
    with pytest.raises(UserError, match=r"not finetuned for visdial.*rank the answers of dialogs.*visdial.yaml"):
        evaluate_visdial(make_model(), shards[0])


def test_the_command_writes_results_and_a_submission(model, shards, tmp_path):
    model.save(tmp_path / "model")
    out, ranks = tmp_path / "x.json", tmp_path / "ranks.json"
    rest = ["--out", str(out), "--precision", "fp32", "--submission", str(ranks)]
    refused = CliRunner().invoke(app, ["evaluate", "visdial", str(tmp_path / "model"), shards[0], *rest])
    assert isinstance(refused.exception, WorkError) and not ranks.exists()  # EvalAI refuses a file that lacks some
    (tmp_path / "x.json.partial").rename(tmp_path / "other")
    first = shards[0].replace("*", "00000")
    done = CliRunner().invoke(app, ["evaluate", "visdial", str(tmp_path / "model"), first, *rest])
    assert done.exit_code == 0, done.output
    results = json.loads(out.read_text())
    assert results["task"] == "visdial" and results["metrics"]["rounds"] == 12
    rows = json.loads(ranks.read_text())
    assert [(row["image_id"], row["round_id"]) for row in rows] == [(i, r) for i in range(3) for r in range(1, 5)]
    assert all(sorted(row["ranks"]) == list(range(1, 8)) for row in rows)


def test_a_submission_with_two_dialogs_of_one_image_is_refused():
    row = {"key": "a", "image_id": 3, "round_id": 1, "ranks": [1, 2]}
    assert submission_rows([row]) == [{"image_id": 3, "round_id": 1, "ranks": [1, 2]}]
    with pytest.raises(UserError, match="image_id 3 occurs twice"):
        submission_rows([row, row])
    with pytest.raises(UserError, match="a has no image_id"):
        submission_rows([row | {"image_id": None}])


def test_shards_without_options_are_refused(model, scenes):
    with pytest.raises(UserError, match="contain none"):
        evaluate_visdial(model, f"{scenes}/00000.tar")
