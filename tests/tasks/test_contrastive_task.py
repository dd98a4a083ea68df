"""CLIP training: the loss, locked towers, patch dropout, several captions, gradient caching, resume and validation."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from vlp.data.loader import training_loader
from vlp.data.shards import iterate_samples
from vlp.data.tokenizer import load_tokenizer
from vlp.data.transforms import clean_caption
from vlp.demo.classification_scenes import make_classification_scenes
from vlp.errors import UserError
from vlp.log import read_log
from vlp.model import load_model
from vlp.model_folder import save_model
from vlp.models.image_encoders.encoder import ImageEncoder
from vlp.models.image_encoders.vit import keep_patches
from vlp.tasks import build_examples, build_task
from vlp.tasks.contrastive import in_chunks
from vlp.training.loop import train
from vlp.training.model_setup import build_model

CLIP = ("task=contrastive", "model.network=clip")
CCT = "model.image_encoder={name: cct, convolutions: 1, kernel: 3, image_size: 32, width: 32, layers: 1, heads: 2}"
RANDOM = ("model.text_tower.dropout=0.2", "model.image_encoder.drop_path=0.2", "objective.patch_dropout=0.5")


@pytest.fixture
def made(run_config):
    """A function that builds the task of a config and a batch."""

    def make(*overrides):
        config = run_config("run", *CLIP, *overrides)
        torch.manual_seed(0)
        model, tokenizer, _ = build_model(config)
        loader = training_loader(config.data, 32, build_examples(config, tokenizer), config.batch_size, seed=1)
        return build_task(config, model, tokenizer).train(), next(iter(loader))

    return make


def loss_and_gradients(task, batch, seed: int = 0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(seed)
    task.zero_grad()
    loss = task(batch).losses["itc"]
    loss.backward()
    return loss.detach(), {name: one.grad.clone() for name, one in task.named_parameters() if one.grad is not None}


def test_the_loss_is_the_mean_of_two_cross_entropies(made):
    task, batch = made()
    loss, gradients = loss_and_gradients(task, batch)
    model = task.model
    images = F.normalize(model.image_projection(model.encode_images(batch.images)[:, 0]), dim=1)
    logits = images @ model.embed_texts(batch.text_ids, batch.text_mask).T / model.temperature
    labels = torch.arange(len(images))
    torch.testing.assert_close(loss, (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2)
    assert set(dict(task.named_parameters())) - gradients.keys() == {"model.logit_bias"}


def test_the_temperature_stays_above_a_hundredth(made):
    task, _ = made()
    with torch.no_grad():
        task.model.log_temperature.fill_(-9)
    task.start_step(0, 0.0)
    assert task.model.temperature.item() == pytest.approx(0.01)


@pytest.mark.parametrize("contrastive", ["softmax", "sigmoid"])
@pytest.mark.parametrize("more", [(), RANDOM], ids=["plain", "random"])
def test_gradient_caching_equals_the_plain_loss(made, contrastive, more, monkeypatch):
    task, batch = made(f"objective.contrastive={contrastive}", "objective.gradient_cache=3", *more)
    cached = loss_and_gradients(task, batch)
    # The same chunks in the same order, with all their graphs in memory.
    monkeypatch.setattr("vlp.tasks.contrastive.checkpoint", lambda encode, *part, **_: encode(*part))
    chunked = loss_and_gradients(task, batch)
    found = [cached, chunked]
    if not more:  # without random numbers, chunks do not matter
        task.objective.gradient_cache = 0
        found.append(loss_and_gradients(task, batch))
    for loss, gradients in found[1:]:
        torch.testing.assert_close(loss, cached[0], atol=1e-5, rtol=0)
        assert gradients.keys() == cached[1].keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, cached[1][name], atol=1e-5, rtol=1e-5)
    if more:
        assert loss_and_gradients(task, batch, seed=1)[0] != cached[0]


def test_gradient_caching_encodes_again_one_chunk_at_a_time():
    layer, events = torch.nn.Linear(4, 4), []

    def encode(x):
        number = int(x[0, 0])
        events.append(("encode", number))
        x = x * layer.weight[0]
        x.register_hook(lambda _: events.append(("done", number)))
        return layer(x).tanh().square()

    vectors = in_chunks(layer, encode, 2, torch.arange(8.0)[:, None].expand(8, 4))
    assert events == [("encode", number) for number in (0, 2, 4, 6)]
    events.clear()
    vectors.sum().backward()
    assert events == [(what, number) for number in (6, 4, 2, 0) for what in ("encode", "done")]


def test_gradient_caching_updates_running_statistics_once():
    images = torch.randn(8, 3)
    plain, cached = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    torch.cat([plain(part) for part in images.split(2)]).square().sum().backward()
    in_chunks(cached, cached, 2, images).square().sum().backward()
    torch.testing.assert_close(cached.running_mean, plain.running_mean)
    torch.testing.assert_close(cached.running_var, plain.running_var)
    torch.testing.assert_close(cached.weight.grad, plain.weight.grad)
    assert cached.momentum == plain.momentum


@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize("pooling", ["class", "mean"])
def test_patch_dropout_keeps_the_class_token_and_a_share_of_the_patches(run_config, registers, pooling):
    config = run_config("run", f"model.image_encoder.registers={registers}", f"model.image_encoder.pooling={pooling}")
    encoder = ImageEncoder(config.model.image_encoder)
    images = torch.randn(3, 3, 32, 32)
    assert encoder(images, keep=0.3).shape == (3, 1 + round(0.3 * 16), 32)
    assert torch.equal(encoder(images, keep=1.0), encoder(images))
    tokens = torch.arange(3 * 17.0).view(3, 17, 1)
    kept = keep_patches(tokens, 0.5, leading=1)
    assert torch.equal(kept[:, 0], tokens[:, 0])
    for row, all_tokens in zip(kept[:, 1:, 0].tolist(), tokens[..., 0].tolist(), strict=True):
        assert len(set(row)) == 8 and set(row) <= set(all_tokens[1:]) and row == sorted(row)
    assert kept[0, 1:, 0].tolist() != (kept[1, 1:, 0] - 17).tolist()  # another subset for each image


def test_validation_and_use_see_all_patches(made):
    task, _ = made("objective.patch_dropout=0.5")
    images = torch.randn(2, 3, 32, 32)
    assert task.model.encode_images(images).shape[1] == 17


@pytest.mark.parametrize("locked", ["image", "text"])
def test_a_locked_tower_stays_as_it_is(run_config, models, locked):
    config = run_config(
        "run",
        *CLIP,
        f"start_from={models[1]}",
        f"objective.locked={locked}",
        "validation=" + run_config().data.sources[0].shards,
        "evaluate_every=3",
    )
    config.model, config.tokenizer = type(config.model)(network="clip"), ""
    train(config)
    before = load_model(models[1], device="cpu").blip.state_dict()
    after = load_model(f"{config.output}/model", device="cpu").network.state_dict()
    changed = set()
    for name, weight in after.items():
        source = before.get(name, before.get(name.replace(".shared.", ".encoder.")))
        if source is None or not torch.equal(source, weight):
            changed.add(name.partition(".")[0])
    other = {"image": "text_tower", "text": "image_encoder"}[locked]
    assert changed == {other, "image_projection", "text_projection", "log_temperature", "logit_bias"}


@pytest.mark.parametrize("locked", ["image", "text"])
def test_a_locked_tower_has_neither_dropout_nor_gradients(made, locked):
    task, batch = made(f"objective.locked={locked}")
    towers = {"image": task.model.image_encoder, "text": task.model.text_tower}
    loss_and_gradients(task.train(), batch)
    for name, tower in towers.items():
        assert {module.training for module in tower.modules()} == {name != locked}
        assert any(weight.requires_grad for weight in tower.parameters()) == (name != locked)


def test_each_image_has_as_many_captions_of_its_own(made, captioned, tokenizer_folder):
    task, batch = made(f"data.sources=[{{shards: '{captioned}/*.tar'}}]", "data.texts_per_image=2")
    assert batch.images.shape[0] == 8 and batch.text_ids.shape[0] == 16
    texts = {
        sample.key: {tuple(row.tolist()) for row in encode(tokenizer_folder, sample)}
        for sample in iterate_samples(f"{captioned}/*.tar")
    }
    for number, key in enumerate(batch.keys):
        rows = [
            tuple(ids[mask].tolist())
            for ids, mask in zip(batch.text_ids[2 * number :], batch.text_mask[2 * number :], strict=True)
        ][:2]
        assert set(rows) <= texts[key]
        assert len(set(rows)) == min(2, len(texts[key]))
    loss, _ = loss_and_gradients(task, batch)
    images = task.model.embed_image_tokens(task.model.encode_images(batch.images))
    logits = images @ task.model.embed_texts(batch.text_ids, batch.text_mask).T / task.model.temperature
    truth = torch.eye(8).repeat_interleave(2, dim=1)
    by_text = F.cross_entropy(logits.T, torch.arange(16) // 2)
    torch.testing.assert_close(loss, (F.cross_entropy(logits, truth / 2) + by_text) / 2)


def encode(tokenizer_folder, sample) -> list[torch.Tensor]:
    ids, mask = load_tokenizer(str(tokenizer_folder)).encode([clean_caption(text) for text in sample.captions], 16)
    return [row[real] for row, real in zip(ids, mask, strict=True)]


def test_a_run_learns_validates_and_resumes_exactly(run_config, scenes):
    more = (*CLIP, *RANDOM, "objective.contrastive=sigmoid", "objective.gradient_cache=4", f"validation={scenes}/*.tar")
    whole = run_config("whole", *more, "steps=6", "evaluate_every=3")
    results = train(whole)
    assert {"itc", "temperature", "bias", "i2t_r1", "t2i_r10", "gradient_norm"} <= results.keys()
    assert "itm" not in results
    train(run_config("parts", *more, "steps=3", "evaluate_every=3"))
    parts = run_config("parts", *more, "steps=6", "evaluate_every=3")
    train(parts, resume=True)
    one, other = (load_file(f"{config.output}/model/model.safetensors") for config in (whole, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)
    card = Path(f"{whole.output}/model/README.md").read_text()
    assert "`vlp pretrain config.yaml`" in card and "A CLIP model, trained" in card


def test_validation_on_labelled_images_is_zero_shot_accuracy(run_config, tmp_path):
    make_classification_scenes(tmp_path / "classes", 12, 32, "test")
    config = run_config("run", *CLIP, f"validation={tmp_path}/classes/shape", "evaluate_every=5")
    results = train(config)
    assert 0 <= results["acc1"] <= 1 and "i2t_r1" not in results
    scored = [record for record in read_log(f"{config.output}/log.jsonl") if "acc1" in record]
    assert [record["step"] for record in scored] == [5]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("task=contrastive",), "task contrastive trains a CLIP model; set model.network: clip"),
        (("task=retrieval", "model.network=clip"), "task retrieval trains a BLIP model; set model.network: blip"),
        ((*CLIP, "objective.locked=text"), "objective.locked: text would keep the text tower at random weights"),
        (
            ("task=retrieval", "objective.patch_dropout=0.5"),
            "objective.patch_dropout is for tasks pretrain and contrastive",
        ),
        (("task=captioning", "objective.first_image_size=16"), "objective.first_image_size is for tasks pretrain and"),
        ((*CLIP, "objective.unmasked_share=0.1"), "the end of a run with objective.patch_dropout; set that, too"),
        (("objective.gradient_cache=8",), "objective.gradient_cache is for task contrastive"),
        ((*CLIP, "objective.contrastive=sigmoid", "objective.temperature=0.2"), "objective.temperature"),
        (
            (
                *CLIP,
                "objective.patch_dropout=0.5",
                CCT,
            ),
            "the image encoder cct cannot drop patches; set 0 or use vit",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(run_config, overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        train(run_config("run", *overrides))


def test_a_clip_cannot_start_a_task_that_needs_matching(run_config):
    first = run_config("clip", *CLIP, "steps=1")
    train(first)
    second = run_config("second", "task=retrieval", f"start_from={first.output}/model", "tokenizer=''")
    second.model = type(second.model)()
    with pytest.raises(UserError, match="is a CLIP model, which cannot be trained by task retrieval"):
        train(second)


def test_the_sigmoid_loss_starts_from_siglips_values_only_once(run_config, models, tmp_path):
    def started(folder: str):
        config = run_config("run", *CLIP, f"start_from={folder}", "objective.contrastive=sigmoid", "tokenizer=''")
        config.model = type(config.model)(network="clip")
        return build_model(config)

    network, tokenizer, _ = started(models[1])
    assert network.temperature.item() == pytest.approx(0.1) and network.logit_bias.item() == -10
    with torch.no_grad():
        network.logit_bias.fill_(-9)
        network.log_temperature.fill_(-3)
    save_model(network, tokenizer, tmp_path / "trained")
    network, *_ = started(str(tmp_path / "trained"))
    assert (network.log_temperature.item(), network.logit_bias.item()) == (-3, -9)


def test_texts_longer_than_the_positions_of_the_model_are_refused(run_config, models):
    config = run_config("run", *CLIP, f"start_from={models[1]}", "tokenizer=''", "data.max_tokens=41")
    config.model = type(config.model)(network="clip")
    with pytest.raises(UserError, match=r"data.max_tokens \(41\) must not exceed model.text_tower.positions \(40\)"):
        build_model(config)
