"""Attention on scenes: how much of a word's Grad-CAM lies in the known box of the object that it names."""

import random
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vlp.data.image_decoding import decode_image
from vlp.data.shards import iterate_samples
from vlp.demo.scene_captions import COLOUR_OF, SHAPE_OF, describe
from vlp.demo.scenes import Scene, object_box, write_annotated_scenes
from vlp.model import Model
from vlp.model.attention import WordMaps, word_maps

KINDS = {"colour": COLOUR_OF, "shape": SHAPE_OF}
Box = tuple[float, float, float, float]  # left, top, right and bottom, as fractions of the image side


class NamedShare(NamedTuple):
    """The map of a word and the box of its object."""

    share: float  # of the map that lies in the box
    chance: float  # the share of the image that the box fills
    most: float  # the largest possible share, that of a map on a single cell
    strength: float  # the sum of the map


def make_attention_scenes(folder: Path, count: int, image_size: int, seed: str) -> None:
    """Write scenes with a caption and the boxes of their objects, which differ in color and in shape."""

    def annotate(scene: Scene, rng: random.Random) -> dict:
        objects = [{**thing, "box": object_box(scene, number)} for number, thing in enumerate(scene.objects)]
        return {"captions": [describe(scene.objects, scene.relation, rng)], "truth": {"objects": objects}}

    def is_unambiguous(scene: Scene) -> bool:
        return all(len({thing[kind] for thing in scene.objects}) == len(scene.objects) for kind in KINDS)

    write_annotated_scenes(str(folder), count, annotate, image_size, seed=seed, accept=is_unambiguous)


def score_attention(model: Model, folder: Path, layer: int = 0) -> dict[str, float]:
    """How well Grad-CAM finds the objects that words name.

    Args:
        layer: as in `word_maps`.

    Returns:
        For words of colors and of shapes: `KIND_share`, the mean share of a word's map that lies in the box of its
        object; `KIND_chance`, the mean share of the image that the box fills, which is what an even map reaches;
        `KIND_ratio`, the first divided by the second; `KIND_strength`, the mean sum of a map; `KIND_weighted_ratio`,
        the ratio where each word counts by its strength. `ratio` is the lower `KIND_ratio`. `most` is the ratio of
        maps that lie in the one cell that suits best. `itm` is the mean probability of "match".
    """
    samples = list(iterate_samples(str(folder / "*.tar")))
    texts = [sample.captions[0] for sample in samples]
    found = word_maps(model, [decode_image(sample.image) for sample in samples], texts, layer)
    rows: dict[str, list[NamedShare]] = defaultdict(list)
    for one, sample in zip(found, samples, strict=True):
        for kind in KINDS:
            rows[kind] += named_shares(one, sample.info["truth"]["objects"], kind)
    scores: dict[str, float] = {}
    for kind, values in rows.items():
        share, chance, most, strength = torch.tensor(values).T.double()
        scores |= {f"{kind}_share": share.mean().item(), f"{kind}_chance": chance.mean().item()}
        scores |= {f"{kind}_ratio": (share.mean() / chance.mean()).item(), f"{kind}_strength": strength.mean().item()}
        scores[f"{kind}_weighted_ratio"] = ((share * strength).sum() / (chance * strength).sum()).item()
        scores["most"] = (most.mean() / chance.mean()).item()
    itm = sum(one.itm for one in found) / len(found)
    return {"ratio": min(scores["colour_ratio"], scores["shape_ratio"]), **scores, "itm": itm, "images": len(found)}


def named_shares(maps: WordMaps, objects: list[dict], kind: str) -> list[NamedShare]:
    """How much of the map of each word of a kind lies in the box of the object that it names.

    Args:
        objects: each with its `box`, its color and its shape.
        kind: "colour" or "shape".
    """
    found = []
    for word, values in zip(maps.words, maps.maps, strict=True):
        if word in KINDS[kind]:
            (thing,) = (one for one in objects if one[kind] == KINDS[kind][word])
            cover = box_cover(thing["box"], *values.shape)
            share = (values * cover).sum() / values.sum().clamp(min=1e-30)  # 0 if the map is empty
            found.append(NamedShare(share.item(), cover.mean().item(), cover.max().item(), values.sum().item()))
    return found


def box_cover(box: Box, rows: int, columns: int) -> Tensor:
    """The share of each cell of a grid over the image that a box covers: float32 [rows, columns].

    The value of a cell counts as spread evenly over it, so a cell that a box cuts counts in part.
    """
    left, top, right, bottom = box
    return _overlap(top, bottom, rows)[:, None] * _overlap(left, right, columns)


def _overlap(low: float, high: float, cells: int) -> Tensor:
    """The share of each of `cells` equal parts of 0..1 that lies between `low` and `high`."""
    edges = torch.linspace(0, 1, cells + 1)
    return (edges[1:].clamp(max=high) - edges[:-1].clamp(min=low)).clamp(min=0) * cells
