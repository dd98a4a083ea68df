"""Dialogs about synthetic scenes: a caption that tells a part, and questions whose pronouns need the history.

The caption names one of two objects. "the other" is always the second one, "it" is the object that the dialog spoke of
last, and "and the other" asks the last question again.
"""

import random
from dataclasses import dataclass, replace
from pathlib import Path

from vlp.config import RunConfig
from vlp.demo.scene_captions import COLOURS, INVERSE, OPENINGS, SHAPES, SIZES
from vlp.demo.scenes import Scene, write_annotated_scenes
from vlp.evaluation.visdial import evaluate_visdial
from vlp.model import Model

ROUNDS = 4
OPTIONS, TRAINING_OPTIONS = 20, 8  # of each round; in training most false ones should be hard
SAME_KIND = 5  # of the false options at most so many are of the true one's kind
VALUES = {"colour": list(COLOURS), "shape": list(SHAPES), "size": list(SIZES)}
PLACES = {"left of": "left", "right of": "right", "above": "above", "below": "below"}
QUESTIONS = {
    "colour": "what color is {}",
    "shape": "what shape is {}",
    "size": "is {} large or small",
    "what": "what is {}",
    "place": "where is {}",
}
KINDS = (
    *VALUES.values(),
    list(PLACES.values()),
    ["yes", "no"],
    [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES],
)
POOL = [answer for kind in KINDS for answer in kind]


@dataclass
class Talk:
    """A dialog so far.

    Attributes:
        first, name: the number of the object in the caption, and its name there.
        focus: the number of the object that "it" means.
        asked: what the last question asked for, a key of `QUESTIONS`; "" before the first and after a yes/no question.
        known: pairs (object, what) that were asked, or that the caption tells.
    """

    scene: Scene
    first: int
    name: str
    focus: int
    asked: str
    known: set[tuple[int, str]]


def make_dialog(scene: Scene, rng: random.Random, count: int = OPTIONS) -> tuple[str, list[dict]]:
    """A caption and a dialog as VisDial's importer writes it, about a scene with two objects that differ.

    Args:
        count: of the options of each round.
    """
    first = rng.randrange(2)
    thing = scene.objects[first]
    name = f"{rng.choice(COLOURS[thing['colour']])} {rng.choice(SHAPES[thing['shape']])}"
    talk = Talk(scene, first, name, first, "", {(first, "colour"), (first, "shape"), (first, "what")})
    rounds = []
    while len(rounds) < ROUNDS:
        question, answer = _ask(talk, rng)
        options = _options(answer, count, rng)
        rounds.append({"question": question, "answer": answer, "options": options, "gt_index": options.index(answer)})
    return f"{rng.choice(OPENINGS)}a {name}", rounds


def make_visdial_scenes(
    folder: Path, count: int, image_size: int, seed: str, options: int = OPTIONS, history: bool = True
) -> None:
    """Write shards of scenes with a dialog each.

    Args:
        options: of each round.
        history: False keeps one round of each dialog, without those before it. This shows what the history is worth.
    """

    def annotate(scene: Scene, rng: random.Random) -> dict:
        caption, rounds = make_dialog(scene, rng, options)
        truth = {"objects": scene.objects, "relation": scene.relation}
        return {"caption": caption, "dialog": rounds if history else [rng.choice(rounds)], "truth": truth}

    write_annotated_scenes(str(folder), count, annotate, image_size, seed=seed, accept=_can_talk)


def make_training_scenes(folder: Path, count: int, image_size: int, seed: str) -> None:
    """Write shards of scenes for training, with fewer options, most of which are of the kind of the true one."""
    make_visdial_scenes(folder, count, image_size, seed, TRAINING_OPTIONS)


def visdial_config(config: RunConfig) -> RunConfig:
    """The config of a finetuning on these scenes, from that of another task."""
    data = replace(config.data, max_tokens=64, texts_per_image=ROUNDS, false_answers=2)
    optim = replace(config.optim, warmup_steps=100)
    return replace(config, task="visdial", data=data, optim=optim, batch_size=64, steps=500)


def score_visdial(model: Model, folder: Path) -> dict[str, float]:
    """The metrics of `evaluate_visdial`."""
    return evaluate_visdial(model, str(folder / "*.tar")).metrics


def _can_talk(scene: Scene) -> bool:
    """Whether a scene has two objects that a caption can tell apart."""
    return scene.relation is not None and _name(scene, 0) != _name(scene, 1)


def _ask(talk: Talk, rng: random.Random) -> tuple[str, str]:
    """The next question and its answer; `talk` is brought up to date."""
    there = 1 - talk.focus
    name = f"the {talk.name}" if there == talk.first else "the other"
    choices = [("it", what) for what in QUESTIONS if (talk.focus, what) not in talk.known]
    choices += [(name, what) for what in QUESTIONS if (there, what) not in talk.known]
    if talk.asked and (there, talk.asked) not in talk.known:
        choices += 6 * [(f"and {name}", talk.asked)]
    choices += 2 * [("it", "yes or no")] if choices else [("it", "yes or no")]
    whom, what = rng.choice(choices)
    if whom != "it":
        talk.focus = there
    if what == "yes or no":
        talk.asked = ""
        return _yes_or_no(talk, rng)
    talk.asked = what
    talk.known.add((talk.focus, what))
    question = whom if whom.startswith("and ") else QUESTIONS[what].format(whom)
    return question, _answer(talk.scene, talk.focus, what)


def _yes_or_no(talk: Talk, rng: random.Random) -> tuple[str, str]:
    """A question about a value of the object that the dialog spoke of last; half of them are true of it."""
    what = rng.choice(list(VALUES))
    true = talk.scene.objects[talk.focus][what]
    value = true if rng.random() < 0.5 else rng.choice([one for one in VALUES[what] if one != true])
    article = "a " if what == "shape" else ""
    return f"is it {article}{value}", "yes" if value == true else "no"


def _answer(scene: Scene, number: int, what: str) -> str:
    """The true answer to a question about an object."""
    if what == "what":
        return _name(scene, number)
    if what == "place":
        relation = str(scene.relation)
        return PLACES[relation if number == 0 else INVERSE[relation]]
    return scene.objects[number][what]


def _name(scene: Scene, number: int) -> str:
    return f"{scene.objects[number]['colour']} {scene.objects[number]['shape']}"


def _options(answer: str, count: int, rng: random.Random) -> list[str]:
    """The true answer among false ones, in random order; some of these are of its kind."""
    kind = next(kind for kind in KINDS if answer in kind)
    alike = [one for one in kind if one != answer]
    words = set(answer.split())
    near = [one for one in alike if words & set(one.split())]  # share the color or the shape
    false = rng.sample(near or alike, min(len(near or alike), SAME_KIND))
    rest = [one for one in POOL if one != answer and one not in false]
    options = [answer, *false, *rng.sample(rest, count - 1 - len(false))]
    rng.shuffle(options)
    return options
