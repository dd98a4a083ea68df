"""NLVR2's examples and task: pairs reach the network whole, the loss is plain cross-entropy, every weight learns."""

import itertools
import json

import pytest
import torch
from torch.nn import functional as F

from tests.data.test_shards import picture, write_tar
from vlp.config import AugmentConfig, DataConfig, RunConfig, SourceConfig
from vlp.data.loader import training_loader
from vlp.data.tokenizer import load_tokenizer
from vlp.data.transforms import evaluation_image
from vlp.demo.nlvr2_scenes import make_nlvr2_scenes
from vlp.model import load_model
from vlp.models.finetuned import extend
from vlp.tasks import build_examples, build_task

PLAIN = AugmentConfig(crop_min=1, flip=False, operations=0)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs") / "train"
    make_nlvr2_scenes(folder, 24, 32, "train")
    return f"{folder}/*.tar"


@pytest.fixture
def made(models, tokenizer_folder):
    """A function that builds the task and the batches of a config on some shards."""

    def make(shards, reading="auto", count=2, batch_size=8):
        source = SourceConfig(shards, samples=24)
        data = DataConfig([source], reading=reading, workers=0, max_tokens=24, augment=PLAIN, max_bad_share=0.9)
        config = RunConfig(task="nlvr2", data=data)
        tokenizer = load_tokenizer(str(tokenizer_folder))
        loader = training_loader(data, 32, build_examples(config, tokenizer), batch_size, seed=1)
        torch.manual_seed(0)
        network = extend(load_model(models[1], device="cpu").blip, "nlvr2").train()
        return build_task(config, network, tokenizer), list(itertools.islice(loader, count)), loader

    return make


@pytest.mark.parametrize("reading", ["indexed", "streamed"])
def test_batches_hold_both_images_their_sentence_and_label(made, pairs, reading, tokenizer_folder):
    from vlp.data.image_decoding import decode_pixels
    from vlp.data.shards import iterate_samples

    samples = {sample.key: sample for sample in iterate_samples(pairs)}
    tokenizer = load_tokenizer(str(tokenizer_folder))
    _, batches, _ = made(pairs, reading)
    for batch in batches:
        assert batch.images.shape == (8, 2, 3, 32, 32) and batch.images.dtype == torch.uint8
        assert (batch.text_ids[:, 0] == tokenizer.encode(["a"], 8, first="[ENC]")[0][0, 0]).all()
        for row, key in enumerate(batch.keys):
            sample = samples[key]
            for side, data in enumerate((sample.image, sample.right)):
                expected = torch.as_tensor(evaluation_image(decode_pixels(data or b""), 32))
                assert torch.equal(batch.images[row, side], expected)
            assert batch.labels[row] == sample.info["label"]
            ids, mask = tokenizer.encode([sample.info["sentence"]], 24, first="[ENC]")
            assert torch.equal(batch.text_ids[row][batch.text_mask[row]], ids[0][mask[0]])
    assert {0, 1} == set(torch.cat([batch.labels for batch in batches]).tolist())


def test_the_loss_is_plain_cross_entropy_and_every_trained_weight_has_a_gradient(made, pairs):
    task, (batch, _), _ = made(pairs)
    losses, metrics = task(batch)
    losses["classification"].backward()
    for name, weight in task.named_parameters():
        assert (weight.grad is not None) == weight.requires_grad, name
    model, expected, right = task.model, [], 0
    for images, ids, mask, label in zip(batch.images, batch.text_ids, batch.text_mask, batch.labels, strict=True):
        tokens = torch.stack([model.encode_images(one[None])[0] for one in images])[None]
        memory = model.text_tower.project_image(tokens)
        states = model.text_tower.match(ids[mask][None], torch.ones(1, int(mask.sum()), dtype=torch.bool), memory)
        logits = model.pair_head(states[:, 0])
        expected.append(F.cross_entropy(logits, label[None]))
        right += int(logits.argmax() == label)
    torch.testing.assert_close(losses["classification"], torch.stack(expected).mean(), rtol=1e-4, atol=1e-5)
    assert metrics["accuracy"].item() == pytest.approx(right / len(batch.labels))


@pytest.mark.parametrize("reading", ["indexed", "streamed"])
def test_samples_that_are_no_whole_pair_are_skipped_counted_and_named(made, tmp_path, reading, caplog):
    good = {"images": 2, "sentence": "a red bar", "label": True}
    bad = {
        "single": ({"sentence": "a", "label": True}, {}),
        "silent": ({**good, "sentence": " "}, {}),
        "odd": ({**good, "label": "maybe"}, {}),
        "half": (good, {"right": None}),
        "broken": (good, {"right": picture()[:50]}),
        "test": ({"images": 2, "sentence": "a red bar"}, {}),
    }
    members = []
    for key, (info, change) in {"a": (good, {}), **bad, "z": (good, {})}.items():
        right = change.get("right", picture())
        members += [(f"{key}.png", picture()), *([(f"{key}.right.png", right)] if right else [])]
        members.append((f"{key}.json", json.dumps(info).encode()))
    _, (batch,), loader = made(write_tar(tmp_path / "0.tar", members), reading, count=1, batch_size=4)
    assert set(batch.keys) == {"a", "z"}
    reasons = {"no pair of images", "no sentence", "bad label", "no second image"}
    assert set(loader.bad_counts) == reasons and set(loader.filtered_counts) == {"no label"}
    assert "half: no second image" in caplog.text and "broken: no second image" in caplog.text


def test_pretraining_and_capfilt_read_the_first_image(pairs):
    from vlp.data.evaluation_loader import evaluation_batches

    (batch, *_) = evaluation_batches(pairs, 32, 8)
    assert batch.images.shape == (8, 3, 32, 32)


def test_a_run_starts_from_a_pretrained_model_resumes_and_saves_a_model_for_pairs(pairs, models, run_config):
    from vlp.errors import UserError
    from vlp.training.loop import train

    shape = [f"model.{name}={{}}" for name in ("image_encoder", "text_tower")]
    overrides = ["task=nlvr2", f"start_from={models[1]}", f"data.sources=[{{shards: '{pairs}'}}]", *shape]
    overrides += ["model.embed_dim=256", "data.max_tokens=24", "steps=2"]
    config = run_config("run", *overrides)
    train(config)
    train(run_config("run", *overrides, "steps=3"), resume=True)
    trained = load_model(f"{config.output}/model", device="cpu")
    assert trained.config.finetuned_for == "nlvr2"
    before = extend(load_model(models[1], device="cpu").blip, "nlvr2").state_dict()
    after = trained.blip.state_dict()
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert {"text_tower.layers.0.cross_attention.encoder.query.1.weight", "pair_head.0.weight"} <= changed
    assert not {name for name in changed if ".decoder." in name or name.startswith(("itm_head", "language_head"))}
    with pytest.raises(UserError, match="was finetuned for nlvr2 and cannot be finetuned for another task"):
        train(run_config("other", *overrides, "task=retrieval", f"start_from={config.output}/model"))
