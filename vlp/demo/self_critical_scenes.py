"""Self-critical training on scenes: five reference captions an image, as in COCO, whose truth tells what is exact."""

import random
from dataclasses import asdict, replace
from pathlib import Path

from vlp.config import RunConfig
from vlp.demo.scene_captions import describe
from vlp.demo.scenes import Scene, write_annotated_scenes
from vlp.demo.truth import exact_caption_share
from vlp.evaluation.captioning import evaluate_captioning
from vlp.model import Model

CAPTIONS = 5  # per image, in different words


def make_reference_scenes(folder: Path, count: int, image_size: int, seed: str) -> None:
    """Write shards of scenes with five correct captions each, and their truth."""

    def annotate(scene: Scene, rng: random.Random) -> dict:
        captions = [describe(scene.objects, scene.relation, rng) for _ in range(CAPTIONS)]
        return {"captions": captions, "truth": asdict(scene)}

    write_annotated_scenes(str(folder), count, annotate, image_size, seed=seed)


def self_critical_config(config: RunConfig) -> RunConfig:
    """The config of the training: a captioner's small steps on its own samples."""
    return replace(
        config,
        task="self_critical",
        optim=replace(config.optim, name="adamw", learning_rate=2e-4),
        steps=200,
        log_every=10,
    )


def score_captions_of_scenes(model: Model, folder: Path) -> dict[str, float]:
    """The metrics of captioning, and `caption_exact`: the share of captions that describe their scene exactly."""
    return evaluate_captioning(model, str(folder / "*.tar"), scorers=[exact_caption_share]).metrics
