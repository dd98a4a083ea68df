"""Pairs of scenes with sentences that are true or false of them: NLVR2 on scenes, with the exact truth."""

import io
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from vlp.config import RunConfig
from vlp.data.shard_writer import ShardWriter
from vlp.data.shards import iterate_samples
from vlp.demo.scene_captions import COLOURS, SHAPES, SIZES
from vlp.demo.scenes import RADIUS, Scene, draw_scene, make_scene
from vlp.evaluation.nlvr2 import evaluate_nlvr2
from vlp.files import writing_shards
from vlp.model import Model

Pair = tuple[Scene, Scene]
Statement = tuple[Pair, str, bool]  # two scenes, a sentence about them, and whether it is true
SHARD_SIZE = 1000
MAX_TOKENS = 24
COMPARISONS: list[tuple[str, Callable[[int, int], bool]]] = [  # of the numbers of objects on the left and on the right
    ("more on the left than on the right", lambda left, right: left > right),
    ("more on the right than on the left", lambda left, right: left < right),
    ("as many on the left as on the right", lambda left, right: left == right),
]
TABLES = {"colour": COLOURS, "shape": SHAPES}


def both(rng: random.Random) -> Statement:
    """Both pictures have an object of a color or a shape. Where it is false, mostly one of them has."""
    attribute, value, name = _property(rng)
    label = rng.random() < 0.5
    one, other = (True, True) if label else rng.choice(((True, False), (False, True), (False, False)))
    pair = _scene_with(rng, attribute, value, one), _scene_with(rng, attribute, value, other)
    return pair, f"a {name} on the left and on the right", label


def exactly_one(rng: random.Random) -> Statement:
    """Exactly one picture has an object of a color or a shape."""
    attribute, value, name = _property(rng)
    label, first = rng.random() < 0.5, rng.random() < 0.5
    pair = _scene_with(rng, attribute, value, first), _scene_with(rng, attribute, value, first != label)
    return pair, f"a {name} on only one side", label


def side(rng: random.Random) -> Statement:
    """The left or the right picture has an object; where it is false, the other picture has it."""
    label, left = rng.random() < 0.5, rng.random() < 0.5
    while True:
        pair = make_scene(rng), make_scene(rng)
        thing = rng.choice(pair[0 if left == label else 1].objects)
        shown = [(one["colour"], one["shape"]) for one in pair[0 if left else 1].objects]
        if ((thing["colour"], thing["shape"]) in shown) == label:
            name = f"{thing['colour']} {thing['shape']}"
            return pair, f"a {name} on the {'left' if left else 'right'}", label


def count(rng: random.Random) -> Statement:
    """One picture has more shapes than the other, or both have as many."""
    sentence, holds = rng.choice(COMPARISONS)
    label = rng.random() < 0.5
    numbers = [(left, right) for left in (1, 2) for right in (1, 2) if holds(left, right) == label]
    left, right = rng.choice(numbers)
    return (_scene_of(rng, left), _scene_of(rng, right)), sentence, label


def size(rng: random.Random) -> Statement:
    """The only object of a shape in the left picture is larger than that in the right, smaller, or as large."""
    shape = rng.choice(list(SHAPES))
    relation = rng.choice(("larger than", "smaller than", "as large as"))
    label = rng.random() < 0.5
    sizes = [(left, right) for left in SIZES for right in SIZES if _compare(left, right, relation) == label]
    left, right = rng.choice(sizes)
    pair = _scene_with_one(rng, shape, left), _scene_with_one(rng, shape, right)
    return pair, f"the left {shape} is {relation} the right {shape}", label


KINDS = {"both": both, "exactly one": exactly_one, "side": side, "count": count, "size": size}


def make_nlvr2_scenes(folder: Path, number: int, image_size: int, seed: str) -> None:
    """Write shards of pairs, half of whose sentences are true; the same arguments give the same bytes.

    The JSON of a sample has `sentence`, `label`, `identifier`, `kind` (one of KINDS) and `truth`, the objects of both.

    Raises:
        UserError: the folder exists.
    """
    with writing_shards(str(folder)) as temporary, ShardWriter(temporary, SHARD_SIZE) as writer:
        for place in range(number):
            kind = list(KINDS)[place % len(KINDS)]
            pair, sentence, label = KINDS[kind](random.Random(f"pair {seed} {place}"))
            left, right = (_png(scene, image_size) for scene in pair)
            info = {"images": 2, "sentence": sentence, "label": label, "identifier": f"scenes-{place}-0-0"}
            info |= {"kind": kind, "truth": [scene.objects for scene in pair]}
            writer.write(f"{place:08d}", left, "png", None, info, {"right.png": right})


def nlvr2_config(config: RunConfig) -> RunConfig:
    """The config of finetuning on pairs, from that of another finetuning."""
    data = replace(config.data, max_tokens=MAX_TOKENS)
    optim = replace(config.optim, learning_rate=5e-4, warmup_steps=100)  # with 2e-3 most kinds stay at chance
    return replace(config, task="nlvr2", data=data, optim=optim, batch_size=128, steps=1700)


def score_nlvr2(model: Model, folder: Path) -> dict[str, float]:
    """The `accuracy` of a model on the scenes of a folder, and `accuracy KIND` for each of KINDS; 0 to 1."""
    shards = f"{folder}/*.tar"
    kinds = {sample.key: sample.info["kind"] for sample in iterate_samples(shards)}
    results = evaluate_nlvr2(model, shards)
    right: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for row in results.predictions:
        right[kinds[row["key"]]].append(row["right"])
    by_kind = {f"accuracy {kind}": sum(one) / len(one) for kind, one in right.items() if one}
    return {"accuracy": results.metrics["accuracy"], **by_kind}


def _property(rng: random.Random) -> tuple[str, str, str]:
    """An attribute, a value of it, and how a sentence names an object that has it after "a"."""
    attribute = rng.choice(list(TABLES))
    value = rng.choice(list(TABLES[attribute]))
    return attribute, value, value if attribute == "shape" else f"{value} one"


def _scene_with(rng: random.Random, attribute: str, value: str, has: bool) -> Scene:
    """A random scene that has an object with a value of an attribute, or has none."""
    scene = make_scene(rng)
    while any(thing[attribute] == value for thing in scene.objects) != has:
        scene = make_scene(rng)
    return scene


def _scene_of(rng: random.Random, objects: int) -> Scene:
    """A random scene with a number of objects."""
    scene = make_scene(rng)
    while len(scene.objects) != objects:
        scene = make_scene(rng)
    return scene


def _scene_with_one(rng: random.Random, shape: str, size: str) -> Scene:
    """A random scene with exactly one object of a shape, which has a size."""
    scene = make_scene(rng)
    while [thing["shape"] for thing in scene.objects].count(shape) != 1:
        scene = make_scene(rng)
    next(thing for thing in scene.objects if thing["shape"] == shape)["size"] = size
    return scene


def _compare(left: str, right: str, relation: str) -> bool:
    """Whether a relation of two sizes holds."""
    first, second = RADIUS[left], RADIUS[right]
    return {"larger than": first > second, "smaller than": first < second}.get(relation, first == second)


def _png(scene: Scene, size: int) -> bytes:
    data = io.BytesIO()
    draw_scene(scene, size).save(data, "PNG", compress_level=1)
    return data.getvalue()
