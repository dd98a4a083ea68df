"""Dialog finetuning: its loss equals a plain one, one text at a time; two processes equal one; the memory's parts."""

import itertools
import json

import pytest
import torch
from torch.nn import functional as F

from tests.processes import run_vlp
from tests.tiny_model import make_images, make_model
from vlp.config import RunConfig
from vlp.config_model import ImageEncoderConfig, ModelConfig, TextTowerConfig
from vlp.config_reader import load_config, save_config
from vlp.data.loader import training_loader
from vlp.demo.visdial_scenes import make_visdial_scenes
from vlp.errors import UserError
from vlp.log import read_log
from vlp.model import load_model
from vlp.model_folder import read_model
from vlp.models.blip import Blip
from vlp.models.finetuned import extend
from vlp.tasks import build_examples, build_task
from vlp.training.loop import train
from vlp.training.model_setup import build_model


@pytest.fixture(scope="module")
def dialogs(tmp_path_factory) -> str:
    """Shards of twenty scenes with dialogs."""
    folder = tmp_path_factory.mktemp("dialogs") / "scenes"
    make_visdial_scenes(folder, 20, 32, "test")
    return f"{folder}/*.tar"


@pytest.fixture
def dialog_config(run_config, dialogs):
    """A function that makes the config of a tiny run on dialogs."""

    def make(output: str = "run", *more: str):
        settings = ["data.max_tokens=32", "data.texts_per_image=2", "data.false_answers=2", "batch_size=6", *more]
        return run_config(output, "task=visdial", f"data.sources=[{{shards: '{dialogs}'}}]", *settings)

    return make


def test_the_loss_equals_a_plain_one(dialog_config):
    config = dialog_config()
    torch.manual_seed(0)
    model, tokenizer, _ = build_model(config)
    task = build_task(config, model, tokenizer).eval()
    (batch,) = itertools.islice(training_loader(config.data, 32, build_examples(config, tokenizer), 6, seed=1), 1)
    assert batch.text_ids.shape[0] == 6 * 2 * 3 and batch.labels.tolist() == 12 * [1, 0, 0]
    assert not batch.caption_mask.all()  # so that padding matters
    loss, metrics = task(batch)
    losses, right = [], []
    for text in range(36):
        image, words, seen = text // 6, batch.text_ids[text], batch.text_mask[text]
        caption = batch.caption_ids[image][batch.caption_mask[image]][None]
        states = model.text_tower.encode(caption, torch.ones_like(caption, dtype=torch.bool))
        tokens = torch.cat([model.encode_images(batch.images[image][None]), states], dim=1)
        logits = model.match_logits(words[seen][None], seen[seen][None], model.text_tower.project_image(tokens))
        losses.append(F.cross_entropy(logits, batch.labels[text : text + 1]))
        right.append(logits.argmax() == batch.labels[text])
    torch.testing.assert_close(loss["itm"], torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)
    assert metrics["itm_accuracy"] == pytest.approx(sum(right) / 36)


def test_texts_that_fill_a_place_do_not_count(dialog_config):
    config = dialog_config()
    model, tokenizer, _ = build_model(config)
    task = build_task(config, model, tokenizer).eval()
    (batch,) = itertools.islice(training_loader(config.data, 32, build_examples(config, tokenizer), 6, seed=1), 1)
    batch.counted[1::2] = False
    loss = task(batch).losses["itm"]
    batch.text_ids[1::2] = 7
    assert task(batch).losses["itm"] == loss


def test_every_trained_weight_gets_a_gradient(dialog_config):
    config = dialog_config("run", "model.image_encoder.width=16", "model.text_tower.sharing=nothing")
    model, tokenizer, _ = build_model(config)
    task = build_task(config, model, tokenizer)
    (batch,) = itertools.islice(training_loader(config.data, 32, build_examples(config, tokenizer), 6, seed=1), 1)
    task(batch).losses["itm"].backward()
    assert model.caption_projection is not None
    missing = [name for name, value in task.named_parameters() if value.requires_grad and value.grad is None]
    assert not missing


def test_two_processes_equal_one(dialog_config, tmp_path):
    one = dialog_config("one", "steps=4")
    train(one)
    two = dialog_config("two", "steps=4")
    save_config(two, tmp_path / "two.yaml")
    run_vlp(tmp_path / "printed", "finetune", tmp_path / "two.yaml", count=2)
    expected, got = (read_log(f"{config.output}/log.jsonl") for config in (one, two))
    assert [record["step"] for record in got] == [1, 2, 3, 4]
    for mine, theirs in zip(expected, got, strict=True):
        for name in ("itm", "itm_accuracy"):
            assert theirs[name] == pytest.approx(mine[name], abs=1e-4), (mine["step"], name)
    folder = f"{one.output}/model"
    with open(f"{folder}/config.json") as file:
        assert json.load(file)["model"]["finetuned_for"] == "visdial"
    assert read_model(folder).network.config.finetuned_for == "visdial"
    ranked = load_model(folder).rank_dialog_answers(make_images(1)[0], "a red circle", [], "is it red", ["yes", "no"])
    assert len(ranked) == 2


def test_a_finetuning_resumes_from_its_own_config(run_config, dialogs, tmp_path):
    pretrained = run_config("pretrained", "steps=1", "data.max_tokens=32")
    train(pretrained)
    settings = [
        f"output={tmp_path / 'run'}",
        f"start_from={pretrained.output}/model",
        f"data={{sources: [{{shards: '{dialogs}'}}], workers: 0, max_tokens: 32}}",
        "task=visdial",
        "batch_size=4",
        "optim.warmup_steps=0",
        f"validation='{dialogs}'",
    ]
    train(load_config(RunConfig, None, [*settings, "steps=2"]))
    resolved = tmp_path / "run" / "config.yaml"
    assert load_config(RunConfig, resolved, []).model.finetuned_for == "visdial"
    results = train(load_config(RunConfig, resolved, ["steps=3"]), resume=True)
    assert results["step"] == 3 and 0 < results["mrr"] <= 1 and results["rounds"] == 80


@pytest.mark.parametrize("width", [16, 32])
def test_the_memory_of_a_padded_caption_is_that_of_the_caption(width):
    torch.manual_seed(0)
    tokenizer = make_model().tokenizer
    image = ImageEncoderConfig(image_size=32, patch_size=16, width=width, layers=1, heads=2)
    text = TextTowerConfig(len(tokenizer), width=32, layers=2, heads=2, feed_forward=64, positions=32, dropout=0.0)
    pretrained = Blip(ModelConfig(image, text, embed_dim=16)).eval()
    blip = extend(pretrained, "visdial")
    assert (blip.caption_projection is None) == (width == 32)
    assert all(torch.equal(value, blip.state_dict()[name]) for name, value in pretrained.state_dict().items())
    images = make_images(2)
    ids, mask = tokenizer.encode(["a red circle above the star", "blue"], 20)
    texts, seen = tokenizer.encode(["is it red yes", "what is it a star"], 20, "[ENC]")
    together = blip.match_logits(texts, seen, blip.dialog_memory(blip.encode_images(images), ids, mask))
    for row in range(2):
        one = slice(row, row + 1)
        short = ids[one, : int(mask[row].sum())]
        memory = blip.dialog_memory(
            blip.encode_images(images[one]), short, torch.ones_like(short, dtype=torch.bool), padded=False
        )
        assert memory.mask is None
        torch.testing.assert_close(blip.match_logits(texts[one], seen[one], memory)[0], together[row])
    with pytest.raises(UserError, match="finetuned for visdial and cannot be finetuned for vqa"):
        extend(blip, "vqa")
