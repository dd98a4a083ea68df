"""Folders of converted models: weights and decoding survive a round trip, and what is missing is refused."""

import json
import re
from dataclasses import replace

import pytest
import torch
import transformers
from transformers import BlipTextModel
from typer.testing import CliRunner

from tests.convert.blip_models import CLASSES, pictures, redraw
from tests.tiny_model import make_model
from vlp.cli.main import app
from vlp.config import DecodingConfig
from vlp.config_model import ModelConfig
from vlp.convert.command import from_ours, to_ours
from vlp.convert.decoding import captioner_decoding
from vlp.data.tokenizer import load_tokenizer
from vlp.errors import UserError
from vlp.model import load_model
from vlp.training.loop import train


@pytest.mark.parametrize("kind", ["captioning", "retrieval", "vqa"])
def test_weights_survive_a_round_trip(both, tmp_path, kind):
    theirs, _, _ = both(kind)
    from_ours(str(tmp_path / f"{kind}-ours"), str(tmp_path / "back"), kind)
    again, report = CLASSES[kind].from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    for name, weight in theirs.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    processor = transformers.BlipProcessor.from_pretrained(tmp_path / "back")
    ids = processor.tokenizer("a red circle")["input_ids"]
    ours, mask = load_tokenizer(str(tmp_path / "back")).encode(["a red circle"], 30)
    assert ids == ours[mask].tolist()
    assert json.loads((tmp_path / "back" / "config.json").read_text())["architectures"] == [CLASSES[kind].__name__]


def test_a_transformers_folder_loads_directly(both, tmp_path):
    _, ours, _ = both("captioning")
    direct = load_model(tmp_path / "captioning", device="cpu", precision="fp32")
    images = pictures(ours, 4)
    assert direct.caption(images, beams=3) == ours.caption(images, beams=3)


@pytest.mark.parametrize(
    ("config", "generation", "changes"),
    [
        ({}, None, {}),
        ({"max_length": 20, "min_length": 0, "num_beams": 1, "top_p": 1.0}, None, {}),  # defaults of older versions
        ({"num_beams": 5, "repetition_penalty": 1.3}, None, {"beams": 5, "repetition_penalty": 1.3}),
        ({"num_beams": 5}, {"num_beams": 1, "max_length": 30}, {"beams": 1, "max_length": 30}),
        (
            {},
            {"do_sample": True, "top_p": 0.8, "no_repeat_ngram_size": 2},
            {"beams": 0, "top_p": 0.8, "no_repeat_ngram": 2},
        ),
    ],
)
def test_captioners_decode_as_published_unless_their_folder_sets_more(both, tmp_path, config, generation, changes):
    _, ours, _ = both("captioning")
    folder = tmp_path / "captioning"
    facts = json.loads((folder / "config.json").read_text())
    facts["text_config"] |= config
    (folder / "config.json").write_text(json.dumps(facts))
    (folder / "generation_config.json").unlink(missing_ok=True)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    published = DecodingConfig(prompt="a picture of", beams=3, min_length=5, max_length=20, repetition_penalty=1.0)
    assert ours.decoding == published
    assert captioner_decoding(folder) == replace(published, **changes)
    if generation is None and not config:
        assert load_model(folder, device="cpu").decoding == published
    (folder / "generation_config.json").write_text('{"num_beams": "many"}')
    with pytest.raises(UserError, match="beams must be a whole number"):
        captioner_decoding(folder)


@pytest.mark.parametrize("kind", ["retrieval", "features"])
def test_other_models_keep_the_default_decoding(both, kind):
    assert both(kind)[1].decoding == DecodingConfig()


def test_a_vqa_model_decodes_as_published_and_is_nothing_else(both, tmp_path):
    ours = both("vqa")[1]
    assert ours.config.finetuned_for == "vqa" and ours.decoding == DecodingConfig(beams=3, min_length=1, max_length=10)
    for kind in ("captioning", "retrieval"):
        with pytest.raises(UserError, match="was finetuned for vqa"):
            from_ours(str(tmp_path / "vqa-ours"), str(tmp_path / "other"), kind)
    both("captioning")
    with pytest.raises(UserError, match=r"not finetuned for vqa.*vlp finetune configs/vqa\.yaml"):
        from_ours(str(tmp_path / "captioning-ours"), str(tmp_path / "other"), "vqa")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("beams", [0, 1, 4])
def test_decoding_settings_survive_a_round_trip(both, tmp_path, beams):
    _, ours, _ = both("captioning")
    ours.decoding = DecodingConfig(prompt="A red, big", beams=beams, min_length=3, max_length=17, top_k=5)
    ours.save(tmp_path / "mine")
    from_ours(str(tmp_path / "mine"), str(tmp_path / "theirs"))
    again = CLASSES["captioning"].from_pretrained(tmp_path / "theirs").generation_config
    assert (again.max_length, again.min_length, again.num_beams) == (17, 3, max(beams, 1))
    assert bool(again.do_sample) == (beams == 0)
    to_ours(str(tmp_path / "theirs"), str(tmp_path / "back"))
    assert load_model(tmp_path / "back").decoding == ours.decoding


def test_missing_parts_are_listed_and_initialized(both):
    _, ours, lines = both("captioning")
    assert "missing in the source: text_tower.layers.*.self_attention.encoder.qkv: copied from the decoder" in lines
    assert "missing in the source: itm_head: random weights" in lines
    layer = ours.blip.text_tower.layers[0].self_attention
    assert torch.equal(layer["encoder"].qkv.weight, layer["decoder"].qkv.weight)


USES = {
    "embed": lambda model: model.embed_texts("a red circle"),
    "match": lambda model: model.match(torch.zeros(3, model.image_size, model.image_size), "a red circle"),
    "caption": lambda model: model.caption(torch.zeros(3, model.image_size, model.image_size)),
}


@pytest.mark.parametrize(
    ("kind", "able", "sentence"),
    [
        ("captioning", {"caption"}, "cannot embed .* without image_projection and text_projection.*retrieval.yaml"),
        ("retrieval", {"embed", "match"}, "cannot generate text: .* without language_head.*captioning.yaml"),
        ("features", {"embed"}, "cannot match .* without itm_head.*retrieval.yaml"),
    ],
)
def test_a_model_refuses_what_it_has_only_random_weights_for(both, kind, able, sentence):
    _, ours, _ = both(kind)
    refused = []
    for name, use in USES.items():
        if name in able:
            use(ours)
            continue
        with pytest.raises(UserError) as error:
            use(ours)
        refused.append(str(error.value))
    assert any(re.search(sentence, one) for one in refused), refused


def test_training_a_part_lifts_the_refusal_also_after_saving(both, run_config, tmp_path):
    _, ours, _ = both("captioning")
    assert ours.config.untrained == ["image_projection", "text_projection", "itm_head"]
    for task, left in (("captioning", ours.config.untrained), ("retrieval", [])):
        start = f"start_from={tmp_path / 'captioning-ours'}"
        config = run_config(f"run-{task}", f"task={task}", start, "tokenizer=''", "steps=1", "optim.warmup_steps=0")
        train(replace(config, model=ModelConfig()))
        assert load_model(f"{config.output}/model").config.untrained == left


def test_broken_sources_write_nothing(both, tmp_path):
    theirs, _, _ = both("captioning")
    before = set(tmp_path.iterdir())
    weights = theirs.state_dict()
    torch.save(
        {"model": {name: tensor[:-1] if tensor.ndim else tensor for name, tensor in weights.items()}, "f": redraw},
        tmp_path / "code.pth",
    )
    torch.save({"model": {"a": torch.zeros(2)}}, tmp_path / "other.pth")
    (tmp_path / "broken.pth").write_bytes(b"PK\x03\x04 half of it")
    for name, sentence in [
        ("code.pth", "would run code"),
        ("other.pth", "not a BLIP checkpoint"),
        ("broken.pth", "cannot be read"),
    ]:
        with pytest.raises(UserError, match=sentence):
            to_ours(str(tmp_path / name), str(tmp_path / "out"))
        (tmp_path / name).unlink()
    assert set(tmp_path.iterdir()) == before
    assert isinstance(theirs.text_decoder.bert, BlipTextModel)


def test_a_model_folder_changes_its_image_size(tmp_path):
    model = make_model()
    model.save(tmp_path / "model")
    source, output = str(tmp_path / "model"), str(tmp_path / "larger")

    def run(*options):
        return CliRunner().invoke(app, ["convert", source, output, *options]).exception

    assert run("--image-size", "48") is None
    larger = load_model(output, device="cpu", precision="fp32")
    model.network.resize_images(48)
    for name, weight in model.network.state_dict().items():
        assert torch.equal(weight, larger.network.state_dict()[name]), name
    output = str(tmp_path / "other")
    for options, message in (
        ((), "only its image size can change"),
        (("--image-size", "40"), r"image_size \(40\) must be a multiple of its patch_size \(16\)"),
        (("--image-size", "48", "--tokenizer", source), "only its image size can change"),
        (("--image-size", "48", "--to", "hf"), "--image-size are for --to vlp"),
        (("--kind", "vqa", "--image-size", "48"), "--kind is for --to hf"),
    ):
        with pytest.raises(UserError, match=message):
            raise run(*options)
        assert not (tmp_path / "other").exists()
