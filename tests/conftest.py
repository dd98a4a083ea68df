"""Fixtures shared by all tests: small shards of scenes, a tokenizer, tiny models and the config of a tiny run."""

import os
from pathlib import Path

import pytest
import torch

from tests.s3 import s3, s3_server  # noqa: F401

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # scripts/gpu.sh sets it to test on a GPU
if not os.environ["CUDA_VISIBLE_DEVICES"]:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported; its kernels then run on CPUs
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # else names that are on no hub are tried again and again without network


def pytest_collection_modifyitems(items):
    """Run the long tests first, so that no process waits for another one at the end."""
    items.sort(key=lambda item: not item.nodeid.startswith(("tests/end_to_end/", "tests/scripts/")))


@pytest.fixture(scope="session", autouse=True)
def _one_thread_and_separate_cache(tmp_path_factory):
    torch.set_num_threads(1)
    os.environ["VLP_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """A folder of five shards: 4 x 20 and 1 x 7 clean scenes of 32 pixels."""
    from vlp.demo.scenes import write_scenes

    folder = tmp_path_factory.mktemp("scenes") / "human"
    write_scenes(str(folder), 87, "human", 0, 32, 20, seed=1)
    return folder


@pytest.fixture(scope="session")
def captioned(tmp_path_factory, scenes) -> Path:
    """A folder of two shards with 20 scenes each, with one, two or three captions."""
    from vlp.data.shard_writer import ShardWriter
    from vlp.data.shards import iterate_samples

    folder = tmp_path_factory.mktemp("scenes") / "captioned"
    with ShardWriter(folder, 20) as writer:
        for number, sample in zip(range(40), iterate_samples(f"{scenes}/*.tar"), strict=False):
            captions = [f"{sample.captions[0]} {word}" for word in ("left", "right", "above")[: 1 + number % 3]]
            writer.write(sample.key, sample.image, "png", None, {"captions": captions})
    return folder


@pytest.fixture(scope="session")
def web_scenes(tmp_path_factory) -> Path:
    """A folder of three shards with 20 scenes each; half of the texts are wrong."""
    from vlp.demo.scenes import write_scenes

    folder = tmp_path_factory.mktemp("scenes") / "web"
    write_scenes(str(folder), 60, "web", 0.5, 32, 20, seed=2)
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory, scenes) -> Path:
    """A tokenizer trained on the scenes' captions."""
    from vlp.data.shards import iterate_samples
    from vlp.data.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    train_tokenizer((sample.captions[0] for sample in iterate_samples(f"{scenes}/*.tar")), 200).save(str(folder))
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory, tokenizer_folder) -> list[str]:
    """Folders of two tiny random models, a captioner and a filter, with different image sizes."""
    from vlp.config_model import ImageEncoderConfig, ModelConfig, TextTowerConfig
    from vlp.data.tokenizer import load_tokenizer
    from vlp.model_folder import save_model
    from vlp.models.blip import Blip

    tokenizer = load_tokenizer(str(tokenizer_folder))
    folders = []
    for name, size in (("captioner", 24), ("filter", 32)):
        torch.manual_seed(size)
        image = ImageEncoderConfig(image_size=size, patch_size=8, width=32, layers=1, heads=2)
        text = TextTowerConfig(
            vocabulary=len(tokenizer), width=32, layers=2, heads=2, feed_forward=64, positions=40, dropout=0.0
        )
        blip = Blip(ModelConfig(image, text, embed_dim=16))
        with torch.no_grad():
            for parameter in blip.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        folders.append(str(tmp_path_factory.mktemp("models") / name))
        save_model(blip, tokenizer, folders[-1])
    return folders


@pytest.fixture
def run_config(tmp_path, scenes, tokenizer_folder):
    """A function that makes the config of a tiny run from the name of its folder and `key=value` overrides."""
    from vlp.config import RunConfig
    from vlp.config_reader import load_config

    def make(output: str = "run", *overrides: str) -> RunConfig:
        base = [
            f"output={tmp_path / output}",
            f"tokenizer={tokenizer_folder}",
            f"data.sources=[{{shards: '{scenes}/*.tar'}}]",
            "data.workers=0",
            "data.max_tokens=16",
            "data.augment={crop_min: 1, flip: false, operations: 0}",
            "model.image_encoder={image_size: 32, patch_size: 8, width: 32, layers: 2, heads: 2}",
            "model.text_tower={width: 32, layers: 2, heads: 2, feed_forward: 64, positions: 32, dropout: 0.0}",
            "model.embed_dim=16",
            "objective={queue_size: 24, momentum: 0.9}",
            "optim={learning_rate: 1e-3, warmup_steps: 2, decay: cosine}",
            "batch_size=8",
            "steps=10",
            "precision=fp32",
            "log_every=1",
        ]
        return load_config(RunConfig, None, base + list(overrides))

    return make
