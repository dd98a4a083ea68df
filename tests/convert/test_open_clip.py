"""open_clip's models as CLIP models of ours and back: equal features, equal tensors, equal ids and pixels."""

import json
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.tokenizer import HFTokenizer
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from tests.tiny_model import make_clip, make_model
from vlp.cli.main import app
from vlp.config_model import ModelConfig
from vlp.convert.clip_tokenizers import clip_bpe
from vlp.convert.command import to_open_clip, to_ours
from vlp.errors import UserError
from vlp.model import Model, load_model
from vlp.models.clip import Clip
from vlp.training.loop import train

VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2}
TIMM = {"timm_model_name": "test_vit3", "timm_model_pretrained": False, "timm_pool": "map", "timm_proj": "none"}
SIGLIP_TEXT = {
    "context_length": 12,
    "vocab_size": 40,
    "hf_tokenizer_name": "nobody/nothing",
    "tokenizer_kwargs": {"clean": "canonicalize"},
    "width": 96,
    "heads": 3,
    "layers": 2,
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
    "norm_kwargs": {"eps": 1e-6},
}
SIGLIP = {"embed_dim": 96, "init_logit_bias": -10, "custom_text": True, "text_cfg": SIGLIP_TEXT}
SIGLIP["vision_cfg"] = {"image_size": 160, **TIMM}
CONFIGS = {
    "tiny-vit": {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT},
    "tiny-quickgelu": {"embed_dim": 16, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT},
    "tiny-plain-patches": {"embed_dim": 16, "vision_cfg": {**VISION, "no_ln_pre": True}, "text_cfg": TEXT},
    "tiny-siglip": SIGLIP,
    "tiny-siglip2": {**SIGLIP, "text_cfg": {**SIGLIP_TEXT, "act_kwargs": {"approximate": "tanh"}}},
    "tiny-conv": {
        "embed_dim": 16,
        "vision_cfg": {**TIMM, "timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear"},
        "text_cfg": TEXT,
    },
    "tiny-average": {"embed_dim": 16, "vision_cfg": {**VISION, "pool_type": "avg"}, "text_cfg": TEXT},
    "tiny-scaled": {"embed_dim": 16, "vision_cfg": {**VISION, "ls_init_value": 0.1}, "text_cfg": TEXT},
    "tiny-coca-text": {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": {**TEXT, "no_causal_mask": True}},
    "tiny-resnet": {"embed_dim": 16, "vision_cfg": {**VISION, "layers": [1, 1, 1, 1]}, "text_cfg": TEXT},
    "tiny-patches": {"embed_dim": 16, "vision_cfg": {**VISION, "patch_size": 8}, "text_cfg": TEXT},
}
CONVERTIBLE = list(CONFIGS)[:6]
TEXTS = ["a red circle", "Two dogs, isn't it? & a CAT", "the small blue square " * 6, "strange: naïve 🙂"]
WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "circle", "two", "dogs", "isnt", "it", "cat", "the", "small", "blue"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The architectures, known to open_clip, and a tokenizer of SigLIP's kind in FOLDER/words."""
    folder = tmp_path_factory.mktemp("open_clip")
    for name, config in CONFIGS.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder / "words")
    return folder


def make_theirs(name: str, file: Path):
    """A model of open_clip with random weights, which are saved in a file."""
    torch.manual_seed(3)
    theirs = open_clip.create_model(name).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_file({name: value.contiguous() for name, value in theirs.state_dict().items()}, file)
    return theirs


def make_picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """A smooth random image, as photos are: with noise, the rounding between the two passes of a resize shows."""
    torch.manual_seed(seed)
    colors = torch.randint(0, 256, (5, 5, 3), dtype=torch.uint8)
    return Image.fromarray(colors.numpy()).resize((width, height), Image.Resampling.BILINEAR)


def convert(name: str, folder: Path, tmp_path: Path) -> Model:
    words = str(folder / "words") if "siglip" in name else ""
    to_ours(f"open_clip:{name},{tmp_path}/weights.safetensors", str(tmp_path / "ours"), tokenizer=words)
    return load_model(tmp_path / "ours", device="cpu", precision="fp32")


def their_tokenizer(name: str, folder: Path):
    if "siglip" in name:
        return HFTokenizer(str(folder / "words"), context_length=12, clean="canonicalize")
    return open_clip.get_tokenizer(name)


def assert_equal_features(mine: Model, theirs, tokenizer) -> None:
    torch.manual_seed(0)
    images = torch.randn(3, 3, mine.image_size, mine.image_size)
    with torch.no_grad():
        torch.testing.assert_close(
            mine.embed_images(images), F.normalize(theirs.encode_image(images), dim=-1), atol=1e-4, rtol=0
        )
        expected = F.normalize(theirs.encode_text(tokenizer(TEXTS)), dim=-1)
    torch.testing.assert_close(mine.embed_texts(TEXTS), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", CONVERTIBLE)
def test_features_are_equal_and_the_round_trip_gives_equal_tensors(folder, tmp_path, name):
    theirs = make_theirs(name, tmp_path / "weights.safetensors")
    mine = convert(name, folder, tmp_path)
    assert_equal_features(mine, theirs, their_tokenizer(name, folder))
    clip = mine.network
    assert clip.temperature.item() == pytest.approx(1 / theirs.logit_scale.exp().item())
    assert clip.logit_bias.item() == (0 if theirs.logit_bias is None else theirs.logit_bias.item())
    lines = to_open_clip(str(tmp_path / "ours"), str(tmp_path / "back"))
    assert lines == [f'for open_clip.create_model_and_transforms("local-dir:{tmp_path}/back")']
    before, after = (
        load_file(tmp_path / "weights.safetensors"),
        load_file(tmp_path / "back/open_clip_model.safetensors"),
    )
    assert before.keys() == after.keys()
    assert [one for one in before if not torch.equal(before[one], after[one])] == []
    again, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}/back")
    assert_equal_features(mine, again.eval(), open_clip.get_tokenizer(f"local-dir:{tmp_path}/back"))
    picture = make_picture(50, 90)
    mine.network.image_encoder.tower = torch.nn.Identity()  # gives the normalized pixels
    pixels = mine.network.encode_images(mine.load_images([picture]))[0]
    torch.testing.assert_close(pixels, prepare(picture), atol=0.02, rtol=0)  # one level of 256


@pytest.mark.parametrize("resize, interpolation", [("shortest", "bicubic"), ("squash", "bilinear")])
def test_images_are_prepared_as_in_open_clip(folder, tmp_path, resize, interpolation):
    theirs = make_theirs("tiny-vit", tmp_path / "weights.safetensors")
    settings = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": interpolation, "resize_mode": resize}
    (tmp_path / "theirs").mkdir()
    save_file(theirs.state_dict(), tmp_path / "theirs/open_clip_model.safetensors")
    config = {"model_cfg": CONFIGS["tiny-vit"], "preprocess_cfg": settings}
    (tmp_path / "theirs/open_clip_config.json").write_text(json.dumps(config))
    to_ours(f"open_clip:{tmp_path}/theirs", str(tmp_path / "ours"))
    mine = load_model(tmp_path / "ours", device="cpu", precision="fp32")
    _, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}/theirs")
    mine.network.image_encoder.tower = torch.nn.Identity()
    for height, width in ((50, 90), (121, 40), (32, 32), (33, 32)):
        picture = make_picture(height, width)
        pixels = mine.network.encode_images(mine.load_images([picture]))[0]
        torch.testing.assert_close(pixels, prepare(picture), atol=0.04, rtol=0)  # two levels of 256


def test_ids_equal_those_of_clips_tokenizer():
    theirs, mine = open_clip.SimpleTokenizer(), clip_bpe()
    for text in ["", "don't STOP'S", "日本語テキスト", "12,345 o'clock", "a_b [x] ~!@#$%^&*()", "zero​width nbsp"]:
        text = text.lower()
        assert mine.encode(text).ids == theirs.encode(text), text


def test_a_text_tower_of_the_bert_family_becomes_one_of_transformers(tmp_path):
    mine = make_clip(seed=2)
    mine.save(tmp_path / "ours")
    to_open_clip(str(tmp_path / "ours"), str(tmp_path / "theirs"))
    theirs, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}/theirs")
    theirs.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path}/theirs")
    texts = ["a red circle", "Green (star), above: the SMALL blue square!", "a " * 60]
    torch.manual_seed(0)
    images = torch.randn(2, 3, mine.image_size, mine.image_size)
    with torch.no_grad():
        expected = [
            F.normalize(one, dim=-1) for one in (theirs.encode_image(images), theirs.encode_text(tokenizer(texts)))
        ]
    torch.testing.assert_close(mine.embed_images(images), expected[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(mine.embed_texts(texts), expected[1], atol=1e-4, rtol=0)


def test_a_converted_model_searches_and_classifies_like_open_clips(folder, tmp_path):
    theirs = make_theirs("tiny-vit", tmp_path / "weights.safetensors")
    source = f"open_clip:tiny-vit,{tmp_path}/weights.safetensors"
    done = CliRunner().invoke(app, ["convert", source, str(tmp_path / "ours")])
    assert done.exit_code == 0, done.output
    (tmp_path / "photos").mkdir()
    pictures = {f"{number}.png": make_picture(40 + 8 * number, 60, seed=number) for number in range(4)}
    for name, picture in pictures.items():
        picture.save(tmp_path / "photos" / name)
    _, _, prepare = open_clip.create_model_and_transforms("tiny-vit")
    tokenizer, query = open_clip.get_tokenizer("tiny-vit"), "A red circle, isn't it?"
    with torch.no_grad():
        vectors = F.normalize(theirs.encode_image(torch.stack(list(map(prepare, pictures.values())))), dim=-1)
        text = F.normalize(theirs.encode_text(tokenizer([query, *TEXTS])), dim=-1)
    found = CliRunner().invoke(
        app,
        ["search", str(tmp_path / "ours"), str(tmp_path / "photos"), "--query", query, "--json", "--precision", "fp32"],
    )
    assert found.exit_code == 0, found.output
    hits, cosines = json.loads(found.output), dict(zip(pictures, (vectors @ text[0]).tolist(), strict=True))
    assert [Path(hit["name"]).name for hit in hits] == sorted(cosines, key=lambda name: -cosines[name])
    assert [hit["itc"] for hit in hits] == pytest.approx(sorted(cosines.values(), reverse=True), abs=2e-3)
    mine = load_model(tmp_path / "ours", device="cpu", precision="fp32")
    found = mine.classify([tmp_path / "photos" / name for name in pictures], TEXTS)
    expected = (theirs.logit_scale.exp() * vectors @ text[1:].T).softmax(dim=1)
    torch.testing.assert_close(found.probabilities, expected, atol=0.02, rtol=0)


def test_a_converted_model_trains_and_goes_back(folder, tmp_path, scenes, run_config):
    make_theirs("tiny-siglip", tmp_path / "weights.safetensors")
    convert("tiny-siglip", folder, tmp_path)
    settings = ("task=contrastive", "objective.contrastive=sigmoid", "steps=2", "batch_size=4", "tokenizer=''")
    config = run_config("run", f"start_from={tmp_path}/ours", "data.max_tokens=8", *settings)
    train(replace(config, model=ModelConfig()))
    to_open_clip(str(tmp_path / "run/model"), str(tmp_path / "back"))
    theirs = open_clip.create_model(f"local-dir:{tmp_path}/back").eval()
    trained = load_model(tmp_path / "run/model", device="cpu", precision="fp32")
    assert_equal_features(trained, theirs, their_tokenizer("tiny-siglip", folder))
    before, after = load_file(tmp_path / "ours/model.safetensors"), load_file(tmp_path / "run/model/model.safetensors")
    assert not torch.equal(before["text_tower.words.weight"], after["text_tower.words.weight"])


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("tiny-average", "its image features in vlp and in open_clip differ"),
        ("tiny-scaled", r"has parts that our ViT does not have: transformer\.resblocks"),
        ("tiny-coca-text", "its text features in vlp and in open_clip differ"),
        ("tiny-resnet", "has a ModifiedResNet; ViTs and timm models are supported"),
    ],
)
def test_models_with_other_settings_are_refused(folder, tmp_path, name, sentence):
    make_theirs(name, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=sentence):
        convert(name, folder, tmp_path)
    assert not (tmp_path / "ours").exists()


def test_wrong_sources_are_refused(folder, tmp_path):
    make_theirs("tiny-vit", tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r"cannot be loaded: .*ln_pre"):
        to_ours(f"open_clip:tiny-plain-patches,{tmp_path}/weights.safetensors", str(tmp_path / "out"))
    with pytest.raises(UserError, match="open_clip has no model 'ViT-Z'"):
        to_ours("open_clip:ViT-Z,openai", str(tmp_path / "out"))
    with pytest.raises(UserError, match=r"no model 'ViT-B33' \(did you mean ViT-B-32\?\)"):
        to_ours("open_clip:ViT-B33,openai", str(tmp_path / "out"))
    with pytest.raises(UserError, match="its text tower is roberta-base of the Hugging Face hub; download that once"):
        to_ours(f"open_clip:roberta-ViT-B-32,{tmp_path}/weights.safetensors", str(tmp_path / "out"))
    other = (
        r"of another architecture, with visual\.conv1\.weight of \[32, 3, 16, 16\]; tiny-patches has \[32, 3, 8, 8\]\.$"
    )
    with pytest.raises(UserError, match=other):
        to_ours(f"open_clip:tiny-patches,{tmp_path}/weights.safetensors", str(tmp_path / "out"))
    make_theirs("tiny-siglip", tmp_path / "siglip.safetensors")
    with pytest.raises(UserError, match=r"needs the tokenizer nobody/nothing, .*; give its folder as --tokenizer\."):
        to_ours(f"open_clip:tiny-siglip,{tmp_path}/siglip.safetensors", str(tmp_path / "out"))
    (tmp_path / "bad.pt").write_bytes(b"\x80\x02c__builtin__\neval\nq\x00X\x01\x00\x00\x001\x85R.")
    with pytest.raises(UserError, match="contains more than tensors"):
        to_ours(f"open_clip:tiny-vit,{tmp_path}/bad.pt", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_models_that_open_clip_does_not_have_are_refused(tmp_path):
    make_model(seed=1).save(tmp_path / "blip")
    with pytest.raises(UserError, match="is a BLIP model, which cannot be converted to open_clip"):
        to_open_clip(str(tmp_path / "blip"), str(tmp_path / "out"))
    make_clip(causal=True, pooling="end").save(tmp_path / "causal")
    with pytest.raises(UserError, match="no text tower of the BERT family that is causal"):
        to_open_clip(str(tmp_path / "causal"), str(tmp_path / "out"))
    plain = make_clip()
    for change in ({"name": "cct", "convolutions": 1}, {"registers": 2}, {"pooling": "mean"}, {"convolutions": 1}):
        image = replace(plain.config.image_encoder, **change)
        model = Model(Clip(replace(plain.config, image_encoder=image)), plain.tokenizer, "fp32")
        model.save(tmp_path / str(change))
        with pytest.raises(UserError, match="open_clip has no image tower like"):
            to_open_clip(str(tmp_path / str(change)), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
