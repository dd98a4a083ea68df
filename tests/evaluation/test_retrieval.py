"""Retrieval equals a plain loop, whatever the number of processes and interruptions, and holds one batch of tokens."""

import gc
import io
import json
import statistics
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from PIL import Image
from tiny_model import make_images, make_model
from typer.testing import CliRunner

from tests.processes import run_ranks
from vlp.cli.main import app
from vlp.data.shard_writer import ShardWriter
from vlp.data.transforms import clean_caption
from vlp.errors import UserError, WorkError
from vlp.evaluation import gallery
from vlp.evaluation.retrieval import evaluate_retrieval
from vlp.evaluation.settings import EvaluationSettings
from vlp.model import Model

TEXTS = [
    ["a red circle", "the red circle on white"],
    ["a blue square", "A blue square!"],
    ["a star above the circle", "a red circle"],
    ["small green shape", "large shape near a star"],
    ["a square left of the large star", "square"],
    ["blue and white", "the small star below a shape"],
    ["a red and blue shape", "left star"],
]


@pytest.fixture
def shards(tmp_path) -> str:
    """Two shards of seven images with two captions each; some captions read the same."""
    with ShardWriter(tmp_path / "shards", 4) as writer:
        for number, (image, texts) in enumerate(zip(make_images(7), TEXTS, strict=True)):
            png = io.BytesIO()
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(png, "PNG")
            writer.write(f"key{number}", png.getvalue(), "png", None, {"captions": texts})
    return f"{tmp_path}/shards/*.tar"


def plain_metrics(model: Model, score, best: int) -> dict[str, float]:
    """The metrics by sorting the candidates of one query at a time."""
    images = make_images(len(TEXTS))
    captions = [[clean_caption(text) for text in texts] for texts in TEXTS]
    texts = list(dict.fromkeys(text for group in captions for text in group))
    cosines = model.embed_images(images) @ model.embed_texts(texts).T
    ranks: dict[str, list[int]] = {"i2t": [], "t2i": []}
    for i in range(len(images)):
        order = sorted(range(len(texts)), key=lambda j: -cosines[i, j])
        order = sorted(order[:best], key=lambda j: -score(images[i], texts[j], cosines[i, j])) + order[best:]
        ranks["i2t"].append(min(place for place, j in enumerate(order, start=1) if texts[j] in captions[i]))
    for text in [text for group in captions for text in group]:  # every caption asks, also those that read the same
        j = texts.index(text)
        order = sorted(range(len(images)), key=lambda i: -cosines[i, j])
        order = sorted(order[:best], key=lambda i: -score(images[i], text, cosines[i, j])) + order[best:]
        ranks["t2i"].append(min(place for place, i in enumerate(order, start=1) if text in captions[i]))
    found = {f"{way}_r{k}": sum(r <= k for r in some) / len(some) for way, some in ranks.items() for k in (1, 5, 10)}
    found |= {f"{way}_mean_rank": statistics.mean(some) for way, some in ranks.items()}
    return found | {f"{way}_median_rank": statistics.median(some) for way, some in ranks.items()}


def matcher(model: Model):
    def score(image, text, cosine) -> float:
        ids, mask = model.tokenizer.encode([text], 30, first="[ENC]")
        memory = model.project(model.encode_images(image[None]))
        return float(model.match_logits(ids, mask, memory)[0, 1] + cosine)

    return score


@pytest.mark.parametrize(("best", "batch_size"), [(3, 2), (3, 7), (5, 4), (100, 4)])
def test_retrieval_equals_a_plain_loop(shards, best, batch_size):
    model = make_model()
    results = evaluate_retrieval(model, shards, best, EvaluationSettings(batch_size))
    for name, value in plain_metrics(model, matcher(model), best).items():
        assert results.metrics[name] == pytest.approx(value), name
    for name, value in plain_metrics(model, lambda image, text, cosine: cosine, 0).items():
        assert results.metrics[f"itc_{name}"] == pytest.approx(value), name
    counts = {name: results.metrics[name] for name in ("images", "texts", "captions", "skipped")}
    assert counts == {"images": 7, "texts": 12, "captions": 14, "skipped": 0}


def test_predictions_hold_the_ten_best_candidates_of_every_query(shards):
    model = make_model()
    score = matcher(model)
    rows = evaluate_retrieval(model, shards, 4, EvaluationSettings(3)).predictions
    assert [row["query"] for row in rows] == ["image"] * 7 + ["text"] * 12
    for number, row in enumerate(rows[:7]):
        assert row["key"] == f"key{number}" and len(row["best"]) == 10
        own = {clean_caption(text) for text in TEXTS[number]}
        assert [one["right"] for one in row["best"]] == [one["text"] in own for one in row["best"]]
        if any(one["right"] for one in row["best"]):
            assert row["best"][row["rank"] - 1]["right"] and row["right"] == (row["rank"] == 1)
        for place, one in enumerate(row["best"]):  # four by ITM, then by cosine
            image = make_images(7)[number]
            cosine = float(model.embed_images(image) @ model.embed_texts(one["text"])[0])
            expected = score(image, one["text"], cosine) if place < 4 else cosine
            assert one["score"] == pytest.approx(expected, abs=2e-4)
    for row in rows[7:]:
        assert len(row["best"]) == 7 and row["key"] in {one["key"] for one in row["best"] if one["right"]}


def test_without_reranking_the_scores_equal_those_of_itc(shards):
    metrics = evaluate_retrieval(make_model(), shards, 0, EvaluationSettings(limit=4)).metrics
    assert metrics["images"] == 4 and metrics["t2i_r5"] == metrics["itc_t2i_r5"] == 1.0


def test_images_are_projected_once(shards, monkeypatch):
    model, calls = make_model(), []
    project = model.project
    monkeypatch.setattr(
        model, "project", lambda tokens, side="encoder": calls.append(len(tokens)) or project(tokens, side)
    )
    monkeypatch.setattr(gallery, "TEXTS_AT_ONCE", 2)
    evaluate_retrieval(model, shards, 5)
    assert calls == [1] * len(TEXTS)


def test_no_more_image_tokens_are_held_than_a_batch_needs(shards, monkeypatch):
    model = make_model()
    shape = model.encode_images(make_images(1)).shape[1:]
    held, real = [], model.encode_images

    def encode_images(images):
        tensors = [one for one in gc.get_objects() if type(one) is torch.Tensor and one.shape[-2:] == shape]
        storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
        held.append(sum(storages.values()))
        return real(images)

    monkeypatch.setattr(model, "encode_images", encode_images)
    evaluate_retrieval(model, shards, 5, EvaluationSettings(1))
    batch = shape.numel() * 4
    assert len(held) == 14 and max(held) - held[0] <= 2 * batch  # the last batch may still be there


def test_retrieval_needs_captions(tmp_path):
    with ShardWriter(tmp_path / "shards") as writer:
        png = io.BytesIO()
        Image.new("RGB", (8, 8)).save(png, "PNG")
        writer.write("one", png.getvalue(), "png", None, {})
    with pytest.raises(UserError, match="captions"):
        evaluate_retrieval(make_model(), f"{tmp_path}/shards/*.tar")


def test_an_image_that_is_lost_before_reranking_ends_the_evaluation(shards, monkeypatch):
    model, real = make_model(), gallery.collect_gallery

    def lose_a_shard(*arguments):
        found = real(*arguments)
        Path(shards.replace("*", "00001")).unlink()
        return found

    monkeypatch.setattr("vlp.evaluation.retrieval.collect_gallery", lose_a_shard)
    with pytest.raises(WorkError, match="3 images, such as key4"):
        evaluate_retrieval(model, shards, 2)


def _process(rank: int, world: int, folder: str, shards: str, batch_size: int, partial: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{world}", rank=rank, world_size=world)
    settings = EvaluationSettings(batch_size, spread=True, partial=partial)
    results = evaluate_retrieval(make_model(), shards, 3, settings)
    Path(folder, f"found-{rank}.json").write_text(json.dumps([results.metrics, results.predictions]))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_give_the_same_digits_as_one(shards, tmp_path, world):
    one = evaluate_retrieval(make_model(), shards, 3, EvaluationSettings(2))
    run_ranks(_process, world, str(tmp_path), shards, 2, "", count=world)
    for rank in range(world):
        assert json.loads((tmp_path / f"found-{rank}.json").read_text()) == [one.metrics, one.predictions]


def test_an_interrupted_evaluation_goes_on_where_it_was(shards, tmp_path, monkeypatch):
    model, matched = make_model(), []
    expected = evaluate_retrieval(model, shards, 3, EvaluationSettings(2))
    settings = EvaluationSettings(2, partial=str(tmp_path / "partial"))
    project = model.project

    def stop_at_the_sixth(tokens, side="encoder"):
        if len(matched) == 5:
            raise KeyboardInterrupt
        matched.append(1)
        return project(tokens, side)

    monkeypatch.setattr(model, "project", stop_at_the_sixth)
    with pytest.raises(KeyboardInterrupt):
        evaluate_retrieval(model, shards, 3, settings)
    monkeypatch.setattr(model, "embed_texts", lambda *_, **__: pytest.fail("the texts are encoded"))
    monkeypatch.setattr(model, "project", lambda tokens, side="encoder": matched.append(1) or project(tokens, side))
    again = evaluate_retrieval(model, shards, 3, settings)
    assert (again.metrics, again.predictions) == (expected.metrics, expected.predictions)
    assert len(matched) == 5 + 3  # the fifth image was in an unfinished batch


def test_the_command_writes_results_and_predictions(models, shards, tmp_path):
    out = tmp_path / "found" / "retrieval.json"
    arguments = ["evaluate", "retrieval", models[1], shards, "--rerank", "4", "--out", str(out), "--precision", "fp32"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    assert found["task"] == "retrieval" and 1 <= found["metrics"]["t2i_median_rank"] <= 7
    assert len((tmp_path / "found" / "retrieval.predictions.jsonl").read_text().splitlines()) == 7 + 12
