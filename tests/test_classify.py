"""Zero-shot classification against plain loops, and `vlp classify`."""

import json

import pytest
import torch
from PIL import Image
from tiny_model import make_images, make_model
from torch.nn import functional as F
from typer.testing import CliRunner

from vlp.cli.main import app
from vlp.errors import UserError
from vlp.model import Model
from vlp.model import classify as module
from vlp.models.finetuned import extend

LABELS = ["circle", "square", "star", "red shape", "large blue"]
TEMPLATES = ["a {} on white", "the {c}"]


@pytest.fixture(scope="module")
def model():
    return make_model()


def plain_cosines(model, images):
    rows = []
    for label in LABELS:
        vectors = torch.cat([model.embed_texts(f"a {label} on white"), model.embed_texts(f"the {label}")])
        mean = sum(vector / vector.norm() for vector in vectors) / 2
        rows.append(mean / mean.norm())
    return model.embed_images(images) @ torch.stack(rows).T


def test_itc_follows_clips_protocol(model):
    images = make_images(5)
    found = model.classify(images, LABELS, TEMPLATES, batch_size=2)
    cosines = plain_cosines(model, images)
    expected = torch.stack([torch.softmax(row / model.blip.temperature.item(), dim=0) for row in cosines])
    torch.testing.assert_close(found.probabilities, expected, atol=1e-5, rtol=1e-4)
    assert found.ranking.tolist() == [sorted(range(5), key=lambda label: -row[label]) for row in cosines.tolist()]


@pytest.mark.parametrize("at_once", [3, 8, 256])
@pytest.mark.parametrize("rerank", [3, 99])
def test_reranking_equals_a_plain_loop(model, rerank, at_once, monkeypatch):
    monkeypatch.setattr(module, "TEXTS_AT_ONCE", at_once)
    images = make_images(4)
    found, cosines = model.classify(images, LABELS, TEMPLATES, rerank), plain_cosines(model, images)
    by_itc = model.classify(images, LABELS, TEMPLATES)
    for image, row in enumerate(cosines):
        texts = {
            template.replace("{}", name).replace("{c}", name): label
            for label, name in enumerate(LABELS)
            for template in TEMPLATES
        }
        near = {text: (model.embed_images(images[image]) @ model.embed_texts(text).T).item() for text in texts}
        memory, scores = model.project(model.encode_images(images[image, None])), {}
        for text in sorted(near, key=lambda text: -near[text])[:rerank]:
            other, match = model.match_logits(*model.text_ids([text], "[ENC]"), memory)[0].tolist()
            score = match - other + near[text]
            scores[texts[text]] = max(score, scores.get(texts[text], score))
        best = sorted(scores, key=lambda label: -scores[label])
        rest = [label for label in sorted(range(5), key=lambda label: -row[label].item()) if label not in scores]
        assert found.ranking[image].tolist() == best + rest
        shares = F.softmax(torch.tensor([scores[label] for label in best]), dim=0)
        expected = shares * by_itc.probabilities[image, best].sum()
        torch.testing.assert_close(found.probabilities[image, best], expected, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found.probabilities.sum(dim=1), torch.ones(4))


def test_images_are_projected_once(model, monkeypatch):
    projected = []
    project = model.project
    monkeypatch.setattr(model, "project", lambda tokens: projected.append(len(tokens)) or project(tokens))
    monkeypatch.setattr(module, "TEXTS_AT_ONCE", 4)
    model.classify(make_images(3), LABELS, TEMPLATES, rerank=5)
    assert projected == [1, 1, 1]


def test_wrong_calls_are_refused(model):
    for labels, templates, message in (
        ([], [], "at least one class name or label"),
        (["a"], ["a photo"], r"'a photo' has no \{\}"),
        (["a", "!!"], [], "'!!' has no words"),
    ):
        with pytest.raises(UserError, match=message):
            model.classify(make_images(1), labels, templates)
    assert model.classify([], LABELS).ranking.shape == (0, 5)


def test_a_model_for_another_task_is_refused(model):
    other = Model(extend(model.blip, "visdial"), model.tokenizer, "fp32")
    with pytest.raises(UserError, match="finetuned for visdial, which leaves its embeddings untrained"):
        other.classify(make_images(1), LABELS)


def test_the_command_prints_the_best_labels(models, tmp_path):
    for number, image in enumerate(make_images(2)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{number}.png")
    (tmp_path / "labels.txt").write_text("a red circle\na blue square\na star\n")
    (tmp_path / "templates.txt").write_text("there is {}\n")
    names = [str(tmp_path / f"{number}.png") for number in range(2)]
    call = ["classify", models[1], *names, "--labels"]
    result = CliRunner().invoke(app, [*call, "a red circle, a blue square,a star", "--json"])
    found = json.loads(result.stdout)
    assert list(found) == names and len(found[names[0]]) == 3
    assert sum(one["probability"] for one in found[names[0]]) == pytest.approx(1, abs=1e-3)
    again = CliRunner().invoke(app, [*call, str(tmp_path / "labels.txt"), "--json"])
    assert json.loads(again.stdout) == found
    lines = CliRunner().invoke(
        app, [*call, "a star,a circle", "--top", "1", "--rerank", "2", "--templates", str(tmp_path / "templates.txt")]
    )
    assert [line.split("\t")[0] for line in lines.stdout.splitlines()] == names
    assert {line.split("\t")[2] for line in lines.stdout.splitlines()} <= {"a star", "a circle"}
