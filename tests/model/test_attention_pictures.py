"""Attention as pictures: Grad-CAM equals autograd of a hand-written attention; maps lie on the grid of the image."""

import base64
import copy
import io
import json
import math

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

from tests.tiny_model import make_images, make_model
from vlp.cli.main import app
from vlp.config_model import ImageEncoderConfig, ModelConfig, StageConfig
from vlp.errors import UserError
from vlp.model.attention import layer_number, rollout_maps, similarity_maps, word_maps
from vlp.model.attention_pictures import draw_attention
from vlp.models.blip import Blip
from vlp.models.clip import Clip
from vlp.models.compiled import compile_blocks
from vlp.models.cpu.optimise import optimise_for_cpu
from vlp.models.finetuned import extend
from vlp.models.image_encoders.encoder import ImageEncoder
from vlp.models.image_encoders.grid import token_grid
from vlp.models.image_encoders.layers import Attention
from vlp.models.image_encoders.rollout import attention_rollout

TEXTS = ["a red circle", "a large blue square above the small green star on white", "star near a shape"]
IMAGES = make_images(3)


class PlainAttention(nn.Module):
    """Attention whose weights autograd sees."""

    def forward(self, query, key, value, bias=None):
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        self.weights = (scores if bias is None else scores + bias).softmax(-1)
        self.weights.retain_grad()
        return self.weights @ value


def use(model, network):
    model.network, model.config = network, network.config


def plain_maps(model, image, text, layer):
    """Grad-CAM of the tokens of one text on one image, [tokens, rows, columns]."""
    blip = copy.deepcopy(model.blip).eval()
    plain = PlainAttention()
    blip.text_tower.layers[layer].cross_attention.side("encoder").attention = plain
    ids, mask = model.tokenizer.encode([text], 40, first="[ENC]", multiple=1)
    memory = blip.text_tower.project_image(blip.encode_images(image[None]))
    blip.match_logits(ids, mask, memory)[0, 1].backward()
    maps = (plain.weights * plain.weights.grad).clamp(min=0)[0].mean(0)[:, 1:]  # without the class token
    return maps.unflatten(-1, (2, 2)).detach()


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("variant", ["plain", "cpu", "compiled", "frozen", "bf16"])
def test_gradcam_equals_autograd_of_a_plain_attention(layer, variant):
    model = make_model(precision="bf16" if variant == "bf16" else "fp32")
    expected = [plain_maps(model, *pair, layer) for pair in zip(IMAGES, TEXTS, strict=True)]
    if variant == "cpu":
        optimise_for_cpu(model)
    elif variant == "compiled":
        compile_blocks(model.blip, backend="eager")
        model.match(IMAGES, TEXTS)
    elif variant == "frozen":
        model.blip.requires_grad_(False)
    model.blip.train()
    for one, maps in zip(word_maps(model, IMAGES, TEXTS, layer + 1), expected, strict=True):
        for found, token in ((one.start, maps[0]), (one.end, maps[-1]), (one.sentence, maps[1:-1].mean(0))):
            torch.testing.assert_close(found, token, rtol=1e-3, atol=1e-5)
        for (_, pieces), found in zip(model.tokenizer.words(one.text), one.maps, strict=True):
            torch.testing.assert_close(found, maps[1:-1][pieces].mean(0), rtol=1e-3, atol=1e-5)
        assert one.maps.sum() > 0 or layer == 1  # in the last layer, only [ENC] reaches the logit
    assert model.blip.training
    assert all(weight.grad is None for weight in model.blip.parameters())


def test_one_image_meets_several_texts_and_probabilities_are_those_of_match():
    model = make_model()
    together = word_maps(model, IMAGES[0], TEXTS * 12, layer=1)  # more than one batch
    assert len(together) == 36
    for one, text in zip(together, TEXTS * 12, strict=True):
        (alone,) = word_maps(model, IMAGES[0], text, layer=1)
        torch.testing.assert_close(one.maps, alone.maps, rtol=1e-3, atol=1e-5)
        assert one.words == text.split() and one.itm == pytest.approx(alone.itm, abs=1e-5)
    assert [one.itm for one in together[:3]] == pytest.approx(model.match(IMAGES[0], TEXTS).itm.tolist(), abs=1e-5)


def test_words_are_joined_from_pieces_and_keep_their_spelling():
    model = make_model()
    words = model.tokenizer.words("a well-known zqx red")
    assert [word for word, _ in words] == ["a", "well-known", "zqx", "red"]
    pieces = model.tokenizer.word_ids(["a well-known zqx red"])[0]
    assert [piece for _, numbers in words for piece in numbers] == list(range(len(pieces)))
    (one,) = word_maps(model, IMAGES[0], "A well-known  Red circle!", layer=1)
    assert one.text == "a well-known red circle" and one.words == ["a", "well-known", "red", "circle"]
    assert one.maps.shape == (4, 2, 2)
    (long,) = word_maps(model, IMAGES[0], "a red circle " * 15, layer=1)
    assert len(long.words) == model.text_tokens - 2  # the rest is beyond the model's limit


def test_similarity_maps_are_cosines_of_projected_tokens():
    model = make_model()
    found = similarity_maps(model, IMAGES, TEXTS)
    tokens = model.blip.eval().encode_images(IMAGES)
    vectors = F.normalize(model.blip.image_projection(tokens), dim=-1)  # [images, tokens, embed_dim]
    cosines = (vectors * model.embed_texts(TEXTS)[:, None]).sum(-1)
    for one, row in zip(found, cosines, strict=True):
        assert one.itc == pytest.approx(row[0].item(), abs=1e-5)
        torch.testing.assert_close(one.map, row[1:].view(2, 2).detach(), rtol=1e-4, atol=1e-5)
    assert [one.itc for one in found] == pytest.approx(model.match(IMAGES, TEXTS).itc.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "width", "side"),
    [("timm:test_vit", 64, 2), ("timm:test_convnext", 64, 1), ("timm:vit_tiny_patch16_224", 192, 2)],
)
def test_towers_of_timm_have_maps(name, width, side):
    model = make_model()
    config = model.config
    torch.manual_seed(0)
    image = ImageEncoderConfig(name=name, image_size=32, width=width)
    use(model, Blip(type(config)(image, config.text_tower, config.embed_dim)))
    (one,) = word_maps(model, IMAGES[0], TEXTS[0], layer=1)
    assert one.maps.shape == (3, side, side) and one.start.sum() > 0
    (similar,) = similarity_maps(model, IMAGES[0], TEXTS[0])
    assert similar.map.shape == (side, side)


def test_a_clip_model_has_similarity_maps_only():
    model = make_model()
    config = model.config
    use(model, Clip(ModelConfig(config.image_encoder, config.text_tower, 16, network="clip")))
    found = similarity_maps(model, IMAGES, TEXTS)
    tokens = model.network.eval().encode_images(IMAGES)
    vectors = F.normalize(model.network.image_projection(tokens), dim=-1)
    cosines = (vectors * model.embed_texts(TEXTS)[:, None]).sum(-1)
    torch.testing.assert_close(torch.stack([one.map.flatten() for one in found]), cosines[:, 1:].detach())
    with pytest.raises(UserError, match="The model is a CLIP model, which cannot show where words look"):
        word_maps(model, IMAGES, TEXTS)


STAGES = [StageConfig(16, 1, 1, 32, 2), StageConfig(32, 1, 2, 32)]
SMALL = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 3, "heads": 2}


def plain_rollout(encoder, images):
    """Rollout from the inputs of the attention layers, image by image: [images, tokens, tokens]."""
    seen = []
    layers = [one for one in encoder.modules() if isinstance(one, Attention)]
    hooks = [one.register_forward_hook(lambda layer, inputs, _: seen.append((layer, inputs[0]))) for one in layers]
    encoder(images)
    for hook in hooks:
        hook.remove()
    flows = []
    for image in range(len(images)):
        flow = None
        for layer, x in seen:
            query, key, _ = layer.qkv(x[image]).chunk(3, dim=-1)
            heads = [
                (q @ k.T / math.sqrt(q.shape[1])).softmax(-1)
                for q, k in zip(query.chunk(layer.heads, -1), key.chunk(layer.heads, -1), strict=True)
            ]
            step = sum(heads) / layer.heads + torch.eye(len(x[image]))
            step = step / step.sum(-1, keepdim=True)
            flow = step if flow is None else step @ flow
        flows.append(flow)
    return torch.stack(flows)


@pytest.mark.parametrize(
    ("settings", "rows", "places"),
    [
        ({}, [0], range(1, 5)),
        ({"registers": 3}, [0], range(4, 8)),
        ({"registers": 2, "pooling": "mean"}, range(2, 6), range(2, 6)),
        ({"name": "cvt_compact"}, range(4), range(4)),
        ({"name": "vit_lite"}, [0], range(1, 5)),
        ({"name": "t2t"}, [0], range(1, 5)),  # without the layers between its splits
        ({"convolutions": 2, "kernel": 7}, [0], range(1, 5)),
    ],
)
def test_rollout_equals_a_plain_one(settings, rows, places):
    torch.manual_seed(0)
    encoder = ImageEncoder(ImageEncoderConfig(**{**SMALL, **settings})).eval()
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(8)  # attention that is not uniform
        flow = plain_rollout(encoder, IMAGES)[:, list(rows)].mean(1)[:, list(places)]
    assert flow.std(dim=1).max() > 0.01
    torch.testing.assert_close(attention_rollout(encoder, IMAGES).flatten(1), flow)
    torch.testing.assert_close(attention_rollout(optimise_for_cpu(encoder), IMAGES).flatten(1), flow)


def test_rollout_of_a_model_and_of_encoders_without_one():
    model = make_model(precision="bf16")
    maps = rollout_maps(model, make_images(11))
    torch.testing.assert_close(maps, attention_rollout(model.network.image_encoder.eval(), make_images(11)))
    for settings, message in (
        ({"name": "timm:test_vit", "width": 64}, "image encoders of vlp itself, not for timm:test_vit"),
        ({"name": "pvt", "stages": STAGES}, "needs full attention over one grid in all layers, which pvt has not"),
    ):
        with pytest.raises(UserError, match=message):
            attention_rollout(ImageEncoder(ImageEncoderConfig(**{**SMALL, **settings})).eval(), IMAGES)


def test_pyramids_have_grad_cam():
    model = make_model()
    image = ImageEncoderConfig("pvt", 32, 4, 32, stages=STAGES)
    use(model, Blip(ModelConfig(image, model.config.text_tower, 16)))
    (one,) = word_maps(model, IMAGES[0], TEXTS[0], layer=1)
    assert one.maps.shape == (3, 4, 4) and one.start.sum() > 0


def test_the_default_layer_is_two_thirds_deep():
    model = make_model()
    for layers, number in ((12, 8), (6, 4), (4, 3), (2, 1), (1, 1)):
        model.config.text_tower.layers = layers
        assert layer_number(model, 0) + 1 == number


def test_tokens_without_a_grid_are_refused():
    encoder = make_model().blip.image_encoder
    assert token_grid(encoder, torch.arange(10)).tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    two = ImageEncoder(ImageEncoderConfig("pvt", 32, 4, 32, stages=STAGES, last_stages=2)).eval()
    with pytest.raises(UserError, match="The 80 tokens of pvt form no square grid"):
        token_grid(two, two(IMAGES)[..., 0])
    with pytest.raises(UserError, match="The 5 tokens of vit form no square grid"):
        token_grid(encoder, torch.arange(6))


def test_other_uses_are_refused():
    model = make_model()
    for arguments, message in (
        ((IMAGES[:2], TEXTS), "as many images as texts, or one image: 2 and 3"),
        ((IMAGES[0], "!"), "The text '!' has no words"),
        (("clip.mp4", "a star"), "clip.mp4 is a video; attention is shown on images only"),
    ):
        for function in (word_maps, similarity_maps):
            with pytest.raises(UserError, match=message):
                function(model, *arguments)
    with pytest.raises(UserError, match="layers 1 to 2; choose one of them, not 3"):
        word_maps(model, IMAGES[0], "a star", layer=3)
    model.config.untrained = ["itm_head", "image_projection"]
    with pytest.raises(UserError, match="cannot show where words look"):
        word_maps(model, IMAGES[0], "a star")
    with pytest.raises(UserError, match="cannot compare patches of images with texts"):
        similarity_maps(model, IMAGES[0], "a star")
    for task in ("nlvr2", "vqa", "visdial"):
        model = make_model()
        use(model, extend(model.blip, task))
        with pytest.raises(UserError, match=f"finetuned for {task} and does not match an image with a text alone"):
            word_maps(model, IMAGES[0], "a star")
        with pytest.raises(UserError, match=f"finetuned for {task}, which leaves its embeddings untrained"):
            similarity_maps(model, IMAGES[0], "a star")


def test_the_command_writes_a_sheet_and_a_page(tmp_path):
    model = make_model()
    model.save(tmp_path / "model")
    picture = tmp_path / "photo.png"
    Image.fromarray(IMAGES[0].permute(1, 2, 0).numpy()).resize((60, 40)).save(picture)

    def run(*arguments, code=0):
        result = CliRunner().invoke(app, ["attention", str(tmp_path / "model"), *map(str, arguments)])
        assert result.exit_code == code or isinstance(result.exception, UserError), result.output
        return result.output or str(result.exception)

    page, sheet = tmp_path / "page.html", tmp_path / "sheet.png"
    shown = json.loads(run(picture, TEXTS[0], TEXTS[2], "--out", page, "--layer", 1, "--json"))
    (expected, _) = word_maps(model, str(picture), [TEXTS[0], TEXTS[2]], layer=1)
    assert [one["label"] for one in shown[0]["maps"]] == ["a", "red", "circle", "whole text", "[ENC]", "[SEP]"]
    torch.testing.assert_close(torch.tensor(shown[0]["maps"][1]["map"]), expected.maps[1], rtol=1e-3, atol=1e-5)
    assert shown[0]["maps"][1]["strength"] == pytest.approx(expected.maps[1].sum().item(), rel=1e-3)
    html = page.read_text()
    assert html.count("<button") == 6 + 7 + 1 and "http" not in html
    assert f"{sheet} is complete" in run(picture, TEXTS[0], "--out", sheet)
    with Image.open(sheet) as opened:
        assert opened.width > opened.height  # one row, of more than one row of cells
    run(picture, TEXTS[0], "--kind", "similarity", "--out", page)
    assert page.read_text().count("<button") == 2
    run(picture, "--kind", "rollout", "--out", page)
    assert page.read_text().count("<button") == 2
    assert "takes no text" in run(picture, TEXTS[0], "--kind", "rollout", "--out", page, code=1)
    assert "Only the maps of words" in run(picture, "--kind", "rollout", "--layer", 1, "--out", page, code=1)
    assert "Give a text to show its words" in run(picture, "--out", page, code=1)
    assert "must end with .png" in run(picture, TEXTS[0], "--out", tmp_path / "page.pdf", code=1)
    assert "cannot be read" in run(tmp_path / "none.png", TEXTS[0], "--out", sheet, code=1)


def test_a_map_lies_over_the_part_of_the_image_that_the_model_sees(tmp_path):
    model = make_model()
    Image.new("RGB", (90, 30)).save(tmp_path / "wide.png")
    for resize, ratio in (("squash", 3), ("shortest", 1)):
        model.config.image_encoder.resize = resize
        draw_attention(model, str(tmp_path / "wide.png"), [], str(tmp_path / "page.html"), "rollout")
        address = (tmp_path / "page.html").read_text().split("data:image/jpeg;base64,")[1].split('"')[0]
        with Image.open(io.BytesIO(base64.b64decode(address))) as shown:
            assert shown.width == ratio * shown.height
