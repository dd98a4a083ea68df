"""The CLIP network: its embeddings, text towers of each kind, model folders, and what it cannot do."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

from tests.tiny_model import make_clip, make_images, make_model
from vlp.cli.main import app
from vlp.config_model import ModelConfig, TextTowerConfig
from vlp.errors import UserError
from vlp.evaluation.retrieval import evaluate_retrieval
from vlp.index.search import search
from vlp.model import load_model
from vlp.models.clip import Clip
from vlp.models.cpu.optimise import optimise_for_cpu
from vlp.models.network import as_clip

TEXTS = ["a red circle above the small blue square", "green star", "a large shape"]


def plain_states(clip: Clip, ids: torch.Tensor, causal: bool) -> torch.Tensor:
    """The states [tokens, width] of one text without padding, head by head, after BERT's equations."""
    tower, heads = clip.text_tower, clip.config.text_tower.heads
    embeddings = tower.embeddings["shared"]
    x = embeddings.norm(embeddings.words(ids) + embeddings.positions.weight[: len(ids)])
    forbidden = torch.ones(len(ids), len(ids)).triu(1).bool() if causal else torch.zeros(len(ids), len(ids)).bool()
    for layer in tower.layers:
        attention, feed_forward = layer.self_attention["shared"], layer.feed_forward["shared"]
        query, key, value = attention.qkv(x).chunk(3, dim=-1)
        parts = []
        for head in torch.arange(x.shape[1]).chunk(heads):
            scores = query[:, head] @ key[:, head].T / len(head) ** 0.5
            parts.append(scores.masked_fill(forbidden, float("-inf")).softmax(-1) @ value[:, head])
        x = attention.norm(x + attention.out(torch.cat(parts, dim=-1)))
        x = feed_forward.norm(x + feed_forward.down(F.gelu(feed_forward.up(x))))
    return x


@pytest.mark.parametrize(("causal", "pooling"), [(False, "class"), (False, "end"), (True, "end")])
@pytest.mark.parametrize("fast", [False, True])
def test_texts_are_embedded_as_the_equations_say(causal, pooling, fast):
    model = make_clip(causal=causal, pooling=pooling)
    clip = optimise_for_cpu(model).network if fast else model.network
    found = model.embed_texts(TEXTS)
    for text, vector in zip(TEXTS, found, strict=True):
        ids, mask = model.tokenizer.encode([text], 35)
        states = plain_states(clip, ids[0][mask[0]], causal)
        expected = clip.text_projection(states[-1 if pooling == "end" else 0])
        assert torch.allclose(vector, F.normalize(expected, dim=0), atol=1e-5)


def test_a_clip_folder_is_loaded_with_equal_features(tmp_path):
    model = make_clip(causal=True, pooling="end")
    model.save(tmp_path / "model")
    loaded = load_model(tmp_path / "model", device="cpu", precision="fp32")
    assert isinstance(loaded.network, Clip) and loaded.config == model.config
    assert torch.equal(loaded.embed_texts(TEXTS), model.embed_texts(TEXTS))
    images = make_images(2)
    assert torch.equal(loaded.embed_images(list(images)), model.embed_images(list(images)))
    assert "Decoding" not in (tmp_path / "model" / "README.md").read_text()


def test_a_clip_of_a_blip_has_its_embeddings_but_for_the_biases():
    blip = make_model(sharing="nothing")
    with torch.no_grad():
        blip.network.image_projection.bias.zero_()
        blip.network.text_projection.bias.zero_()
    clip = type(blip)(as_clip(blip.network), blip.tokenizer, "fp32")
    assert torch.allclose(clip.embed_texts(TEXTS), blip.embed_texts(TEXTS), atol=1e-6)
    images = list(make_images(3))
    assert torch.allclose(clip.embed_images(images), blip.embed_images(images), atol=1e-6)
    assert clip.network.temperature == blip.network.temperature
    assert not [name for name in clip.network.state_dict() if "cross_attention" in name or "decoder" in name]


def test_a_clip_of_a_converted_blip_keeps_what_is_untrained_of_its_parts():
    blip = make_model().network
    blip.config = replace(blip.config, untrained=["image_projection", "itm_head", "cross_attention"])
    assert as_clip(blip).config.untrained == ["image_projection"]
    blip.config = replace(blip.config, finetuned_for="visdial")
    with pytest.raises(UserError, match="was finetuned for visdial and cannot become a CLIP model"):
        as_clip(blip)


def test_a_clip_takes_larger_images():
    model = make_clip()
    before = model.network.image_projection.weight.clone()
    model.network.resize_images(48)
    tokens = model.network.encode_images(torch.rand(2, 3, 48, 48))
    assert tokens.shape == (2, 1 + 9, 32) and model.network.config.image_encoder.image_size == 48
    assert torch.equal(before, model.network.image_projection.weight)


def test_a_clip_searches_and_classifies_without_re_ranking(scenes, models, tmp_path):
    blip = load_model(models[1], device="cpu", precision="fp32")
    clip = type(blip)(as_clip(blip.network), blip.tokenizer, "fp32")
    shards = f"{scenes}/*.tar"
    assert all(hit.itm is None for hit in search(clip, shards, "a red circle"))
    with pytest.raises(UserError, match="is a CLIP model, which cannot re-rank by ITM; use a BLIP model"):
        search(clip, shards, "a red circle", rerank=5)
    scores = evaluate_retrieval(clip, shards).metrics
    assert scores["t2i_r10"] == scores["itc_t2i_r10"]
    assert clip.classify(make_images(1)[0], ["red", "blue"]).probabilities.sum() == pytest.approx(1)
    clip.save(tmp_path / "clip")
    image = tmp_path / "image.png"
    from PIL import Image

    Image.new("RGB", (40, 40), "red").save(image)
    for command in (["classify", str(image), "--labels", "red,blue"], ["search", str(tmp_path), "--query", "red"]):
        done = CliRunner().invoke(app, [command[0], str(tmp_path / "clip"), *command[1:]])
        assert done.exit_code == 0, done.output


def test_what_a_clip_cannot_do_is_one_sentence():
    model = make_clip()
    image = make_images(1)[0]
    uses = {
        "generate": lambda: model.caption(image),
        "match": lambda: model.match(image, "a red circle"),
        "answer": lambda: model.answer(image, "what color?"),
        "compare": lambda: model.compare(image, image, "both are red"),
        "dialog": lambda: model.rank_dialog_answers(image, "a", [], "what?", ["yes"]),
    }
    for use in uses.values():
        with pytest.raises(UserError, match=r"The model is a CLIP model, which cannot .*; use a BLIP model\."):
            use()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"causal": True, "pooling": "class"}, "set pooling: end"),
        ({"sharing": "nothing"}, "leave model.text_tower.sharing out"),
    ],
)
def test_text_towers_that_make_no_sense_are_refused(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        ModelConfig(text_tower=replace(TextTowerConfig(), **settings), network="clip")
    for name in ("causal", "pooling"):
        with pytest.raises(UserError, match=rf"model.text_tower.{name} needs model.network: clip"):
            ModelConfig(text_tower=replace(TextTowerConfig(), **{name: True if name == "causal" else "end"}))
