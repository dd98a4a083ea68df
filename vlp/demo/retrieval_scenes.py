"""Retrieval on scenes: images with five captions each, as in COCO."""

import random
from pathlib import Path

from vlp.demo.scene_captions import describe
from vlp.demo.scenes import Scene, write_annotated_scenes
from vlp.evaluation.retrieval import evaluate_retrieval
from vlp.model import Model

CAPTIONS = 5  # per image, in different words


def make_retrieval_scenes(folder: Path, count: int, image_size: int, seed: str) -> None:
    """Write shards of scenes with five correct captions each."""

    def annotate(scene: Scene, rng: random.Random) -> dict:
        return {"captions": [describe(scene.objects, scene.relation, rng) for _ in range(CAPTIONS)]}

    write_annotated_scenes(str(folder), count, annotate, image_size, seed=seed)


def score_retrieval(model: Model, folder: Path) -> dict[str, float]:
    """The metrics of `evaluate_retrieval` and `rerank_gain`, what re-ranking by ITM adds to the mean R@1 of ITC."""
    scores = evaluate_retrieval(model, str(folder / "*.tar"), rerank=16).metrics
    gain = sum(scores[name] - scores[f"itc_{name}"] for name in ("i2t_r1", "t2i_r1")) / 2
    return {**scores, "rerank_gain": gain}
