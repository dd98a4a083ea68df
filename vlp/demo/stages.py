"""The stages of the demo: their sizes, their configs, and functions that run a stage unless it is done."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vlp.capfilt.run import run_capfilt
from vlp.config import (
    AugmentConfig,
    CapFiltConfig,
    DataConfig,
    DecodingOverrides,
    ObjectiveConfig,
    OptimConfig,
    RunConfig,
    SamplingOverrides,
    SourceConfig,
    TaskName,
)
from vlp.config_model import ImageEncoderConfig, ModelConfig, TextTowerConfig
from vlp.data.shard_index import expand_shards
from vlp.data.shards import iterate_samples
from vlp.data.tokenizer import train_tokenizer
from vlp.data.transforms import clean_caption
from vlp.demo.scenes import write_scenes
from vlp.demo.truth import exact_caption_share
from vlp.errors import UserError
from vlp.evaluation.captioning import evaluate_captioning
from vlp.evaluation.retrieval import evaluate_retrieval
from vlp.files import remove, write_json, writing_folder
from vlp.model import load_model
from vlp.models.cpu.optimise import optimise_for_cpu
from vlp.training.loop import train

WRONG = 0.4  # share of wrong web texts
# Selection rules. The paper's `itm >= 0.5` would drop many right texts: altered captions made matches rarer in training
# (docs/capfilt.md).
RULES = "itm >= 0.25 and nll <= 1.2"
QUICK_RULES = "top(itm, 0.3)"  # after a few steps every nll is above 1.2
# Cropping and flipping would falsify captions that tell positions, and color jitter those that tell colors.
PLAIN = AugmentConfig(crop_min=1.0, crop_max=1.0, flip=False, operations=0)
PRETRAIN_ALTERED, FILTER_ALTERED = 1, 2  # altered captions of each image, in pretraining and for the filter
GREEDY = DecodingOverrides(beams=1, min_length=4, max_length=24)  # stored with the models
NUCLEUS = SamplingOverrides(repetition_penalty=1.0)


@dataclass(frozen=True)
class DemoSizes:
    """Sizes of the data, the trainings and the model of a demo."""

    human: int  # samples with correct captions
    web: int  # samples of which the share WRONG has a wrong text
    held_out: int  # samples with correct captions, for evaluation
    pretrain_steps: int
    captioner_steps: int
    filter_steps: int
    warmup_steps: int
    batch_size: int
    filter_batch_size: int
    image_size: int = 64
    width: int = 128
    layers: int = 4
    heads: int = 2


FULL = DemoSizes(
    human=5000,
    web=16000,
    held_out=500,
    pretrain_steps=400,
    captioner_steps=600,
    filter_steps=330,
    warmup_steps=100,
    batch_size=64,
    filter_batch_size=128,  # as many pairs in smaller batches teach relations less surely (docs/itm.md)
)
QUICK = DemoSizes(
    human=800,
    web=1600,
    held_out=100,
    pretrain_steps=40,
    captioner_steps=20,
    filter_steps=20,
    warmup_steps=10,
    batch_size=64,
    filter_batch_size=64,
)


def claim(root: Path, called: str, settings: dict) -> None:
    """Mark a folder as used for "a demo" or "ablations" with these settings, by a file such as ROOT/demo.json.

    Raises:
        UserError: the folder holds one with other settings, or anything else.
    """
    mark = root / f"{called.split()[-1]}.json"
    if mark.exists():
        if _read_json(mark) != settings:
            raise UserError(f"{root} holds {called} with other settings; choose another folder or remove it.")
        return
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root} exists and does not hold {called}; choose another folder.")
    write_json(mark, settings)


def _read_json(path: Path) -> Any:
    """The content of a JSON file; None if it is damaged."""
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError:
        return None


def shards_of(root: Path, name: str) -> str:
    """The shards of ROOT/data/NAME, as a pattern."""
    return str(root / "data" / name / "*.tar")


def make_data(root: Path, sizes: DemoSizes, seed: int) -> None:
    """Generate the scenes (human, web, held-out) and train the tokenizer, unless they exist."""
    splits: dict[str, tuple[int, Literal["human", "web"], float, int]] = {
        "human": (sizes.human, "human", 0.0, 3 * seed),
        "web": (sizes.web, "web", WRONG, 3 * seed + 1),
        "held-out": (sizes.held_out, "human", 0.0, 3 * seed + 2),
    }
    for name, (count, split, wrong, scene_seed) in splits.items():
        folder = root / "data" / name
        if not folder.exists():
            write_scenes(str(folder), count, split, wrong, sizes.image_size, 1000, scene_seed)
    if not (root / "tokenizer").exists():
        shards = expand_shards([shards_of(root, "human"), shards_of(root, "web")])
        texts = (clean_caption(text) for sample in iterate_samples(shards, None) for text in sample.captions)
        train_tokenizer(texts, 1000).save(root / "tokenizer")


def demo_model(sizes: DemoSizes) -> ModelConfig:
    """The shape of the demo's models."""
    return ModelConfig(
        ImageEncoderConfig(
            image_size=sizes.image_size,
            # Shapes are learned from far fewer images than with patches (docs/encoders.md).
            convolutions=2,
            kernel=7,  # 16 tokens of a picture of 64 pixels
            width=sizes.width,
            layers=sizes.layers,
            heads=sizes.heads,
        ),
        TextTowerConfig(
            width=sizes.width,
            layers=sizes.layers,
            heads=sizes.heads,
            feed_forward=4 * sizes.width,
            positions=64,
            dropout=0.0,
        ),
        embed_dim=128,
    )


def _data(root: Path, names: list[str]) -> DataConfig:
    sources = [SourceConfig(shards_of(root, name)) for name in names]
    return DataConfig(sources, workers=1, shuffle_buffer=20_000, max_tokens=24, augment=PLAIN)


def pretrain_config(root: Path, name: str, sources: list[str], sizes: DemoSizes, seed: int) -> RunConfig:
    """The config of a pretraining in ROOT/NAME on the folders `sources` of ROOT/data."""
    return RunConfig(
        task="pretrain",
        output=str(root / name),
        tokenizer=str(root / "tokenizer"),
        seed=seed,
        model=demo_model(sizes),
        data=_data(root, sources),
        objective=ObjectiveConfig(queue_size=2048, altered_texts=PRETRAIN_ALTERED),
        optim=OptimConfig("muon", learning_rate=3e-3, warmup_steps=sizes.warmup_steps, decay="cosine", clip_norm=1.0),
        decoding=GREEDY,
        batch_size=sizes.batch_size,
        steps=sizes.pretrain_steps,
        checkpoint_every=500,
        keep_checkpoints=1,
    )


def finetune_config(
    root: Path,
    name: str,
    task: TaskName,
    sizes: DemoSizes,
    seed: int,
    start: str = "noisy/model",
    source: str = "human",
) -> RunConfig:
    """The config of a finetuning in ROOT/NAME-run, from the model ROOT/START on the shards of ROOT/data/SOURCE.

    ITM of a filter (task retrieval) also sees altered captions: web texts often have one wrong word or relation.
    """
    trains_filter = task == "retrieval"
    altered, rate = (FILTER_ALTERED, 3e-3) if trains_filter else (0, 2e-3)
    return RunConfig(
        task=task,
        output=str(root / f"{name}-run"),
        start_from=str(root / start),
        seed=seed,
        data=_data(root, [source]),
        objective=ObjectiveConfig(queue_size=2048, alpha_ramp_epochs=1.0, altered_texts=altered),
        optim=OptimConfig("muon", learning_rate=rate, warmup_steps=20, decay="cosine", floor=0.0, clip_norm=1.0),
        batch_size=sizes.filter_batch_size if trains_filter else sizes.batch_size,
        steps=sizes.filter_steps if trains_filter else sizes.captioner_steps,
        checkpoint_every=500,
        keep_checkpoints=1,
    )


def finetune(root: Path, name: str, config: RunConfig) -> None:
    """Run or resume a finetuning unless it is done, and copy its model to ROOT/NAME."""
    if (root / name).exists():
        return
    train_once(config)
    with writing_folder(root / name) as temporary:
        shutil.copytree(Path(config.output) / "model", temporary, dirs_exist_ok=True)


def train_once(config: RunConfig) -> None:
    """Run or resume a training unless its model exists."""
    if not (Path(config.output) / "model").exists():
        train(config, resume=Path(config.output).exists())


def capfilt_config(root: Path, rules: str, seed: int) -> CapFiltConfig:
    """The config of CapFilt on the web shards: captions by nucleus sampling, and texts selected by `rules`."""
    return CapFiltConfig(
        shards=shards_of(root, "web"),
        human=shards_of(root, "human"),
        captioner=str(root / "captioner"),
        filter=str(root / "filter"),
        output=str(root / "data" / "cleaned"),
        decoding=NUCLEUS,
        rules=rules,
        batch_size=128,
        seed=seed,
    )


def clean(root: Path, config: CapFiltConfig) -> None:
    """Run CapFilt unless it is done, and keep its counts in ROOT/capfilt.json."""
    counts = root / "capfilt.json"
    if not counts.exists():
        remove(Path(config.output))  # an interrupted call may have left shards without counts
        write_json(counts, run_capfilt(config))


def score_model(root: Path, name: str) -> dict[str, float]:
    """Retrieval and captioning scores of a pretrained model on the held-out scenes, kept in ROOT/NAME/scores.json."""
    path = root / name / "scores.json"
    if path.exists():
        return json.loads(path.read_text())
    model, held_out = optimise_for_cpu(load_model(root / name / "model")), shards_of(root, "held-out")
    scores = {
        **evaluate_retrieval(model, held_out, rerank=16).metrics,
        **evaluate_captioning(model, held_out, scorers=[exact_caption_share]).metrics,
    }
    write_json(path, scores)
    return scores
