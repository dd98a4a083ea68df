"""Questions about synthetic scenes, whose answers are known: colors, shapes, counts, and yes or no.

Answers are balanced: whoever reads only the question is right in one of eight cases about colors and shapes, in one of
three about counts, and in one of two about yes or no.
"""

import random
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from vlp.config import DecodingOverrides, RunConfig
from vlp.demo.scene_captions import COLOURS, INVERSE, SHAPES, SIZES
from vlp.demo.scenes import Scene, write_annotated_scenes
from vlp.evaluation.vqa import evaluate_vqa
from vlp.model import Model

STEPS = 400
QUESTIONS = 7  # most of a scene
ANNOTATORS = 10  # as in VQA; here they agree
NUMBERS = ("none", "one", "two")  # the tokenizer of the scenes has no digits
ANSWER_TYPES = {"color": "other", "shape": "other", "count": "number", "exists": "yes/no", "place": "yes/no"}


def make_vqa_scenes(folder: Path, count: int, image_size: int, seed: str) -> None:
    """Write shards of scenes with the questions that `annotate_questions` asks."""
    write_annotated_scenes(str(folder), count, annotate_questions, image_size, seed=seed)


def annotate_questions(scene: Scene, rng: random.Random) -> dict:
    """The JSON of a scene's sample, in the form of `vlp data import vqa`."""
    asked = [*_attributes(scene, rng), *_count(scene, rng), _exists(scene, rng), *_place(scene, rng)]
    first = rng.getrandbits(40) << 4  # question ids must differ between scenes
    questions = [
        {
            "question": f"{question}?",
            "question_id": first + number,
            "answers": [answer] * ANNOTATORS,
            "question_type": kind,
            "answer_type": ANSWER_TYPES[kind],
        }
        for number, (kind, question, answer) in enumerate(asked)
    ]
    return {"questions": questions}


def finetuning(config: RunConfig) -> RunConfig:
    """The finetuning on scenes from that of another task: all questions of an image share a visit."""
    return replace(
        config,
        task="vqa",
        data=replace(config.data, texts_per_image=QUESTIONS),
        optim=replace(config.optim, warmup_steps=100),
        decoding=DecodingOverrides(beams=1),
        batch_size=64,
        steps=STEPS,
    )


def score_vqa(model: Model, folder: Path) -> dict[str, float]:
    """The metrics of `evaluate_vqa`, and the accuracy of each kind of question."""
    results = evaluate_vqa(model, str(folder / "*.tar"))
    kinds: dict[str, list[float]] = defaultdict(list)
    for row in results.predictions:
        kinds[row["question_type"]].append(row["score"])
    return {**results.metrics, **{f"accuracy_{kind}": sum(found) / len(found) for kind, found in kinds.items()}}


def _attributes(scene: Scene, rng: random.Random) -> list[tuple[str, str, str]]:
    """The colors of objects that are known by their shapes, and the shapes of those known by their colors."""
    found = []
    for kind, words, asked, known in (("color", SHAPES, "colour", "shape"), ("shape", COLOURS, "shape", "colour")):
        values = [thing[known] for thing in scene.objects]
        for thing in (one for one in scene.objects if values.count(one[known]) == 1):
            name = rng.choice(words[thing[known]])
            question = f"what color is the {name}" if kind == "color" else f"what shape is the {name} one"
            found.append((kind, question, thing[asked]))
    return found


def _count(scene: Scene, rng: random.Random) -> list[tuple[str, str, str]]:
    """How many objects have a size. One is more frequent than none and two, so half of it is left out."""
    size = rng.choice(list(SIZES))
    number = sum(thing["size"] == size for thing in scene.objects)
    if len(scene.objects) == 1 or (number == 1 and rng.random() < 0.5):
        return []
    return [("count", f"how many are {rng.choice(SIZES[size])}", NUMBERS[number])]


def _exists(scene: Scene, rng: random.Random) -> tuple[str, str, str]:
    """Whether there is an object of a color and a shape; a wrong one shares a color or shape with one that is there."""
    thing = dict(rng.choice(scene.objects))
    there = [(one["colour"], one["shape"]) for one in scene.objects]
    yes = rng.random() < 0.5
    while not yes and (thing["colour"], thing["shape"]) in there:
        change, values = rng.choice((("colour", COLOURS), ("shape", SHAPES)))
        thing[change] = rng.choice(list(values))
    return "exists", f"is there a {_name(thing, rng)}", "yes" if yes else "no"


def _place(scene: Scene, rng: random.Random) -> list[tuple[str, str, str]]:
    """Whether the first object is on a side of the second one; in half of the scenes, since it is learned first."""
    if scene.relation is None or scene.objects[0]["colour"] == scene.objects[1]["colour"] or rng.random() < 0.5:
        return []
    yes = rng.random() < 0.5
    relation = scene.relation if yes else INVERSE[scene.relation]
    first, second = (_name(thing, rng) for thing in scene.objects)
    return [("place", f"is the {first} {relation} the {second}", "yes" if yes else "no")]


def _name(thing: dict, rng: random.Random) -> str:
    return f"{rng.choice(COLOURS[thing['colour']])} {rng.choice(SHAPES[thing['shape']])}"
