"""Scenes with a single object and its class, the shape or the color, in CLIP_benchmark's layout."""

import random
from pathlib import Path

from vlp.data.class_names import NAMES_FILE, TEMPLATES_FILE
from vlp.data.labelled_images import open_labelled
from vlp.data.shard_writer import ShardWriter
from vlp.demo.scene_captions import COLOURS, SHAPES, SIZES
from vlp.demo.scenes import BACKGROUNDS, Scene, draw_scene, encode_png
from vlp.evaluation.classification import evaluate_classification
from vlp.files import write_text, writing_folder
from vlp.model import Model

RERANKED_TEXTS = 16  # of 128
CLASSES = {"shape": list(SHAPES), "colour": list(COLOURS)}
# Captions of scenes name size, color and shape. The templates leave no attribute out, as no caption does: the mean over
# all values of the others stands for "any".
TEMPLATES = {
    "shape": [f"a {size} {colour} {{c}}" for size in SIZES for colour in COLOURS],
    "colour": [f"a {size} {{c}} {shape}" for size in SIZES for shape in SHAPES],
}


def make_classification_scenes(folder: Path, count: int, image_size: int, seed: str) -> None:
    """Write scenes with a single object twice: FOLDER/shape and FOLDER/colour, named after what the class is."""
    with writing_folder(folder) as temporary:
        for attribute, names in CLASSES.items():
            with ShardWriter(temporary / attribute, count) as writer:
                for number in range(count):
                    scene = make_single_object(random.Random(f"class {seed} {number}"))
                    info = {"cls": names.index(scene.objects[0][attribute]), "truth": {"objects": scene.objects}}
                    writer.write(f"{number:08d}", encode_png(draw_scene(scene, image_size)), "png", None, info)
            for file, lines in ((NAMES_FILE, names), (TEMPLATES_FILE, TEMPLATES[attribute])):
                write_text(temporary / attribute / file, "".join(f"{line}\n" for line in lines))


def make_single_object(rng: random.Random) -> Scene:
    """A random scene with one object."""
    thing = {"shape": rng.choice(list(SHAPES)), "colour": rng.choice(list(COLOURS)), "size": rng.choice(list(SIZES))}
    place = (rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7))
    return Scene([thing], None, [place], rng.choice(list(BACKGROUNDS)))


def score_classification(model: Model, folder: Path) -> dict[str, float]:
    """Zero-shot accuracies: `shape_acc1` and `colour_acc1` after re-ranking by ITM, the same with `itc_` by ITC alone,
    and `acc1`, the lower of the first two."""
    scores: dict[str, float] = {}
    for attribute in CLASSES:
        data = open_labelled(str(folder / attribute))
        for prefix, rerank in (("", RERANKED_TEXTS), ("itc_", 0)):
            scores[f"{prefix}{attribute}_acc1"] = evaluate_classification(model, data, rerank=rerank).metrics["acc1"]
    return {"acc1": min(scores["shape_acc1"], scores["colour_acc1"]), **scores}
