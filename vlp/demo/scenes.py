"""Synthetic scenes: images of colored shapes, correct and wrong texts, and the ground truth."""

import hashlib
import io
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw

from vlp.data.shard_writer import ShardWriter
from vlp.demo.scene_captions import (
    COLOURS,
    SHAPES,
    SIZES,
    WRONG_KINDS,
    WRONG_WEIGHTS,
    describe,
    wrong_text,
)
from vlp.errors import UserError
from vlp.files import writing_shards

PAINT = {
    "red": (220, 30, 30),
    "green": (30, 150, 50),
    "blue": (40, 70, 220),
    "yellow": (245, 215, 40),
    "purple": (135, 45, 165),
    "orange": (245, 135, 25),
    "black": (15, 15, 15),
    "white": (250, 250, 250),
}
BACKGROUNDS = {"grey": (150, 150, 150), "pink": (238, 180, 195), "sky": (165, 205, 235), "sand": (205, 185, 145)}
RADIUS = {"large": 0.21, "small": 0.11}  # fraction of the image side
# How far each shape reaches from its center to the left, up, right and down, in radii.
REACH = {
    "square": (0.85, 0.85, 0.85, 0.85),
    "bar": (1, 0.35, 1, 0.35),
    "diamond": (0.75, 1, 0.75, 1),
    "triangle": (1, 1, 1, 0.8),
    "star": (math.cos(math.pi / 10), 1, math.cos(math.pi / 10), math.cos(math.pi / 5)),
}
ONE_OBJECT = 0.15  # share of scenes with a single object


@dataclass
class Scene:
    """One or two objects {"shape", "colour", "size"} and their positions.

    Attributes:
        relation: position of the first object relative to the second; None if there is only one.
        places: x and y of each object's center, as fractions of the image side.
    """

    objects: list[dict]
    relation: str | None
    places: list[tuple[float, float]]
    background: str


def make_scene(rng: random.Random) -> Scene:
    """A random scene."""
    count = 1 if rng.random() < ONE_OBJECT else 2
    objects = [
        {"shape": rng.choice(list(SHAPES)), "colour": rng.choice(list(COLOURS)), "size": rng.choice(list(SIZES))}
        for _ in range(count)
    ]
    background = rng.choice(list(BACKGROUNDS))
    if count == 1:
        return Scene(objects, None, [(rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7))], background)
    relation = rng.choice(("left of", "above"))
    near, far = rng.uniform(0.22, 0.28), rng.uniform(0.72, 0.78)
    across = rng.uniform(0.4, 0.6), rng.uniform(0.4, 0.6)
    places = [(near, across[0]), (far, across[1])]
    if relation == "above":
        places = [(y, x) for x, y in places]
    return Scene(objects, relation, places, background)


def draw_scene(scene: Scene, size: int) -> Image.Image:
    """An RGB image of `size` x `size` pixels."""
    image = Image.new("RGB", (size, size), BACKGROUNDS[scene.background])
    canvas = ImageDraw.Draw(image)
    for thing, (x, y) in zip(scene.objects, scene.places, strict=True):
        _draw_shape(canvas, thing["shape"], x * size, y * size, RADIUS[thing["size"]] * size, PAINT[thing["colour"]])
    return image


def object_box(scene: Scene, number: int) -> tuple[float, float, float, float]:
    """The box around an object of a scene: left, top, right and bottom as fractions of the image side."""
    thing, (x, y) = scene.objects[number], scene.places[number]
    radius = RADIUS[thing["size"]]
    left, up, right, down = (radius * reach for reach in REACH.get(thing["shape"], (1, 1, 1, 1)))
    return x - left, y - up, x + right, y + down


def make_sample(number: int, split: str, wrong: float, size: int, seed: int) -> tuple[bytes, str, dict]:
    """PNG bytes, text and JSON metadata of a sample; the same arguments give the same sample."""
    rng = random.Random(f"scene {seed} {number}")
    scene = make_scene(rng)
    text, kind = describe(scene.objects, scene.relation, rng), None
    if split == "web" and rng.random() < wrong:
        (kind,) = rng.choices(WRONG_KINDS, WRONG_WEIGHTS)
        other = make_scene(rng)
        while other.objects == scene.objects:
            other = make_scene(rng)
        text = wrong_text(kind, scene.objects, scene.relation, describe(other.objects, other.relation, rng), rng)
    truth = {
        "objects": scene.objects,
        "relation": scene.relation,
        "background": scene.background,
        "text_right": kind is None,
        "wrong_kind": kind,
    }
    uid = hashlib.sha256(f"scene-{seed}-{number}".encode()).hexdigest()[:32]  # as long as DataComp's
    facts = {"uid": uid, "width": size, "height": size, "truth": truth}
    return encode_png(draw_scene(scene, size)), text, facts


def encode_png(image: Image.Image) -> bytes:
    """A PNG file of an image."""
    png = io.BytesIO()
    image.save(png, "PNG", compress_level=1)
    return png.getvalue()


def write_scenes(
    output: str,
    count: int,
    split: Literal["human", "web"] = "human",
    wrong: float = 0.4,
    image_size: int = 64,
    shard_size: int = 1000,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write shards of scenes.

    Args:
        split: in "human" all captions are correct; in "web" a share of `wrong` of the texts is wrong.
        progress: called with the number of samples just written.

    Raises:
        UserError: an argument is out of range or the output exists.
    """
    if split not in ("human", "web"):
        raise UserError(f"split must be human or web, not {split!r}.")
    if not 0 <= wrong <= 1:
        raise UserError(f"wrong must be a share between 0 and 1, not {wrong}.")
    if count < 1 or shard_size < 1 or image_size < 16:
        raise UserError("Scenes need at least one sample, one sample per shard and 16 pixels.")
    with writing_shards(output) as temporary, ShardWriter(temporary, shard_size) as writer:
        for number in range(count):
            image, text, facts = make_sample(number, split, wrong, image_size, seed)
            writer.write(f"{number:08d}", image, "png", text, facts)
            if progress:
                progress(1)


def write_annotated_scenes(
    output: str,
    count: int,
    annotate: Callable[[Scene, random.Random], dict],
    image_size: int = 64,
    shard_size: int = 1000,
    seed: str = "0",
    accept: Callable[[Scene], bool] | None = None,
) -> None:
    """Write shards of scenes with the annotations of a task.

    Args:
        annotate: the JSON of a scene's sample; the generator decides everything that is random.
        seed: any text, such as the task and the split; another text gives other scenes.
        accept: tells whether a scene suits the task; another one is drawn until one does. None: all do.
    """
    with writing_shards(output) as temporary, ShardWriter(temporary, shard_size) as writer:
        for number in range(count):
            rng = random.Random(f"scene {seed} {number}")
            scene = make_scene(rng)
            while accept is not None and not accept(scene):
                scene = make_scene(rng)
            facts = annotate(scene, rng)
            writer.write(f"{number:08d}", encode_png(draw_scene(scene, image_size)), "png", None, facts)


def _draw_shape(canvas: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float, paint: tuple) -> None:
    if shape == "circle":
        canvas.ellipse((x - r, y - r, x + r, y + r), fill=paint)
    elif shape == "ring":
        canvas.ellipse((x - r, y - r, x + r, y + r), outline=paint, width=max(2, round(r * 0.38)))
    elif shape == "square":
        canvas.rectangle((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), fill=paint)
    elif shape == "bar":
        canvas.rectangle((x - r, y - 0.35 * r, x + r, y + 0.35 * r), fill=paint)
    elif shape == "cross":
        canvas.rectangle((x - r, y - 0.3 * r, x + r, y + 0.3 * r), fill=paint)
        canvas.rectangle((x - 0.3 * r, y - r, x + 0.3 * r, y + r), fill=paint)
    elif shape == "diamond":
        canvas.polygon([(x, y - r), (x + 0.75 * r, y), (x, y + r), (x - 0.75 * r, y)], fill=paint)
    elif shape == "triangle":
        canvas.polygon([(x, y - r), (x + r, y + 0.8 * r), (x - r, y + 0.8 * r)], fill=paint)
    else:  # star
        corners = [(r if i % 2 == 0 else 0.42 * r, math.pi * (i / 5 - 0.5)) for i in range(10)]
        canvas.polygon(
            [(x + length * math.cos(turn), y + length * math.sin(turn)) for length, turn in corners], fill=paint
        )
