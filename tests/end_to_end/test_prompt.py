"""A captioner remembers the prompt that it was trained with: every use decodes after the same tokens."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

import vlp.model.captions
from vlp.cli.main import app
from vlp.config import DecodingConfig
from vlp.data.examples import CaptionExamples
from vlp.data.loader import training_loader
from vlp.data.score_tables import table_path
from vlp.data.shards import iterate_samples
from vlp.data.transforms import clean_caption
from vlp.errors import UserError
from vlp.model import load_model
from vlp.training.loop import train

PROMPT = "A shape, (red) on:  the"  # cleaning makes "a shape, red on the" of it


@pytest.fixture
def prompts(monkeypatch):
    """Every prompt, as token ids, that captions are generated from."""
    seen = []
    real = vlp.model.captions.start_generating
    monkeypatch.setattr(
        vlp.model.captions,
        "start_generating",
        lambda stepper, prompt, *rest: seen.append(prompt) or real(stepper, prompt, *rest),
    )
    return seen


@pytest.fixture
def captioner(run_config, scenes, prompts):
    """The config of a finished captioning run with validation during and after training."""
    config = run_config(
        "captioner",
        "task=captioning",
        f"objective.prompt='{PROMPT}'",
        "decoding={max_length: 14, min_length: 8}",
        f"validation={scenes}/00004.tar",
        "evaluate_every=2",
        "data.max_tokens=24",
        "steps=3",
    )
    train(config)
    return config


def vlp_command(*arguments) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def test_every_use_decodes_after_the_trained_prompt(captioner, prompts, scenes, tmp_path):
    folder = f"{captioner.output}/model"
    model = load_model(folder, precision="fp32")
    ids = model.tokenizer.prompt_ids(PROMPT)
    assert ids == [model.tokenizer.dec_id, *model.tokenizer.word_ids(["a shape, red on the"])[0]]
    loader = training_loader(captioner.data, 32, CaptionExamples(model.tokenizer, captioner.data.max_tokens, PROMPT), 8)
    for row, text in zip((batch := next(iter(loader))).text_ids.tolist(), batch.texts, strict=True):
        assert row[1 : len(ids)] == ids[1:] and text.startswith("a shape, red on the ")

    def uses_the_prompt(calls=1) -> bool:
        used, prompts[:] = list(prompts), []
        return used == [ids] * calls

    assert uses_the_prompt(2), "validation during and at the end of training"
    picture = tmp_path / "picture.png"
    picture.write_bytes(next(iterate_samples(f"{scenes}/*.tar")).image)
    model.caption(picture)
    assert uses_the_prompt()
    vlp_command("caption", folder, picture)
    assert uses_the_prompt()
    vlp_command("evaluate", "captioning", folder, f"{scenes}/00004.tar")
    assert uses_the_prompt()
    vlp_command("capfilt", "score", "--shards", f"{scenes}/00004.tar", "--captioner", folder, "--filter", folder)
    assert uses_the_prompt()
    rows = pq.read_table(table_path(f"{scenes}/00004.tar")).to_pylist()
    decoding = json.loads(next(row["decoding"] for row in rows if row["decoding"]))
    assert (decoding["prompt"], decoding["max_length"], decoding["beams"]) == (PROMPT, 14, 0)
    images = {sample.key: sample.image for sample in iterate_samples(f"{scenes}/00004.tar")}
    for row in rows:
        picture.write_bytes(images[row["key"]])
        assert row["nll"] == pytest.approx(plain_likelihood(model, picture, row["text"], ids), abs=0.02)
    Path(table_path(f"{scenes}/00004.tar")).unlink()


def plain_likelihood(model, image, text, prompt) -> float:
    """Mean negative log-likelihood of the words of a text and its end after the ids of a prompt."""
    words = [*model.tokenizer.word_ids([clean_caption(text)])[0], model.tokenizer.sep_id]
    ids = torch.tensor([[*prompt, *words]])
    memory = model.project(model.encode_images(model.load_images([image])), "decoder")
    with model.inference():
        logits = model.blip.caption_logits(ids, None, memory)[0, len(prompt) - 1 : -1].log_softmax(dim=-1)
    return -logits.gather(1, ids[0, len(prompt) :, None]).mean().item()


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ([], {}),
        (["--beams", 0, "--seed", 3, "--num-captions", 2], {"beams": 0, "seed": 3, "num_captions": 2}),
        (["--prompt", "", "--max-length", 9, "--ban", "red"], {"prompt": "", "max_length": 9, "banned_words": ["red"]}),
    ],
)
def test_command_line_and_python_give_the_same_captions(models, scenes, tmp_path, options, settings):
    model = load_model(models[0])
    model.decoding = DecodingConfig(prompt="the large", beams=2, min_length=7, max_length=13, repetition_penalty=1.2)
    model.save(tmp_path / "model")
    paths = []
    for sample, _ in zip(iterate_samples(f"{scenes}/*.tar"), range(3), strict=False):
        paths.append(str(tmp_path / f"{sample.key}.png"))
        (tmp_path / f"{sample.key}.png").write_bytes(sample.image)
    captions = load_model(tmp_path / "model", precision="fp32").caption(paths, **settings)
    expected = {path: [one.text for one in group] for path, group in zip(paths, captions, strict=True)}
    command = ("caption", tmp_path / "model", *paths, *options, "--precision", "fp32")
    assert json.loads(vlp_command(*command, "--json")) == expected
    lines = vlp_command(*command).splitlines()
    assert lines == [f"{path}\t{text}" for path, texts in expected.items() for text in texts]


def test_what_a_run_stores_continues_what_it_starts_from(captioner, run_config):
    start = f"start_from={captioner.output}/model"
    train(run_config("filter", "task=retrieval", start, "steps=1", "decoding={beams: 2}"))
    decoding = load_model(captioner.output + "/../filter/model").decoding
    assert decoding == DecodingConfig(prompt=PROMPT, beams=2, max_length=14, min_length=8)
    train(run_config("other", "task=captioning", start, "steps=1", "objective.prompt=a"))
    assert load_model(captioner.output + "/../other/model").decoding.prompt == "a"


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("decoding.prompt=a", "set objective.prompt, not decoding.prompt"),
        ("decoding.max_length=3", "min_length must not exceed max_length"),
        ("decoding.max_length=40", "must not exceed model.text_tower.positions"),
        ("data.max_tokens=6", "data.max_tokens must exceed"),
    ],
)
def test_decoding_settings_that_cannot_work_are_refused_before_training(run_config, setting, sentence):
    config = run_config("run", "task=captioning", "objective.prompt=a large red circle", setting)
    with pytest.raises(UserError, match=sentence):
        train(config)
