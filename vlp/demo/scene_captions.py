"""Texts of synthetic scenes: correct captions from templates, wrong web texts, and a parser for captions."""

import random

SHAPES = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "cross": ("cross", "plus"),
    "ring": ("ring", "hoop"),
    "diamond": ("diamond", "rhombus"),
    "bar": ("bar", "strip"),
}
COLOURS = {
    "red": ("red", "crimson"),
    "green": ("green",),
    "blue": ("blue",),
    "yellow": ("yellow",),
    "purple": ("purple", "violet"),
    "orange": ("orange",),
    "black": ("black",),
    "white": ("white",),
}
SIZES = {"large": ("large", "big"), "small": ("small", "little")}
RELATIONS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
}
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
OPENINGS = ("", "", "there is ", "we see ")
WRONG_KINDS = ("other caption", "changed attribute", "file name", "advert")
WRONG_WEIGHTS = (0.35, 0.35, 0.15, 0.15)
ADVERTS = (
    "buy now and save big on all orders",
    "free shipping on everything this week",
    "best price guaranteed click here",
    "sign up today for our newsletter",
    "limited offer while stocks last",
    "download the app for more deals",
    "new arrivals in our online shop",
    "contact us for a custom quote",
)
# Words without information about the scene. A caption with any other unknown word is not exact.
FILLERS = frozenset(["a", "the", "there", "is", "of", "we", "see", "to"])


def _words(table: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """From each synonym to its meaning."""
    return {synonym: meaning for meaning, synonyms in table.items() for synonym in synonyms}


SHAPE_OF, COLOUR_OF, SIZE_OF = _words(SHAPES), _words(COLOURS), _words(SIZES)
RELATION_OF = {
    "left": "left of",
    "right": "right of",
    "above": "above",
    "over": "above",
    "below": "below",
    "under": "below",
    "beneath": "below",
}


def describe(objects: list[dict], relation: str | None, rng: random.Random) -> str:
    """A correct caption.

    Args:
        objects: one or two of {"shape", "colour", "size"}.
        relation: position of the first object relative to the second; None if there is only one.
    """
    opening = rng.choice(OPENINGS)
    if relation is None:
        return f"{opening}a {_name(objects[0], rng)}"
    first, second = objects
    if rng.random() < 0.5:
        first, second, relation = second, first, INVERSE[relation]
    verb = rng.choice(("", "is ")) if not opening else ""
    return f"{opening}a {_name(first, rng)} {verb}{rng.choice(RELATIONS[relation])} a {_name(second, rng)}"


def wrong_text(kind: str, objects: list[dict], relation: str | None, other: str, rng: random.Random) -> str:
    """A web text that does not describe the scene; `other` is the caption of another scene."""
    if kind == "other caption":
        return other
    if kind == "file name":
        stem = rng.choice(("img", "dsc", "photo", "screenshot", "pic"))
        return f"{stem}_{rng.randrange(10_000):04d}.{rng.choice(('jpg', 'png'))}"
    if kind == "advert":
        return rng.choice(ADVERTS)
    changed = [dict(thing) for thing in objects]
    tables = {"colour": COLOURS, "shape": SHAPES, "size": SIZES}
    # Each attribute and the relation are equally likely to be changed.
    attributes = [(thing, attribute) for thing in changed for attribute in tables]
    number = rng.randrange(len(attributes) + (relation is not None))
    if relation is not None and number == len(attributes):
        return describe(changed, INVERSE[relation], rng)
    thing, attribute = attributes[number]
    table = tables[attribute]
    thing[attribute] = rng.choice([value for value in table if value != thing[attribute]])
    return describe(changed, relation, rng)


def read_caption(text: str) -> tuple[list[dict], str | None] | None:
    """Parse a caption into its objects, in the order of the text, and their relation; None if it cannot be parsed."""
    objects, relation, colour, size = [], None, None, None
    for word in text.lower().replace(".", " ").replace(",", " ").split():
        if word in SIZE_OF and size is None:
            size = SIZE_OF[word]
        elif word in COLOUR_OF and colour is None:
            colour = COLOUR_OF[word]
        elif word in SHAPE_OF and colour is not None:
            objects.append({"shape": SHAPE_OF[word], "colour": colour, "size": size})
            colour = size = None
        elif word in RELATION_OF and relation is None and len(objects) == 1:
            relation = RELATION_OF[word]
        elif word not in FILLERS:
            return None
    complete = colour is None and size is None and len(objects) == (2 if relation else 1)
    return (objects, relation) if complete else None


def caption_is_exact(text: str, truth: dict) -> bool:
    """Whether a caption names all objects of a scene with the correct shapes, colors and relation.

    Sizes may be missing but must not be wrong.

    Args:
        truth: the field `truth` of a scene's JSON.
    """
    parsed = read_caption(text)
    if parsed is None:
        return False
    objects, relation = parsed
    if relation is not None and truth["relation"] == INVERSE[relation]:
        objects, relation = objects[::-1], INVERSE[relation]
    if relation != truth["relation"] or len(objects) != len(truth["objects"]):
        return False
    return all(_agrees(one, true) for one, true in zip(objects, truth["objects"], strict=True))


def _agrees(named: dict, true: dict) -> bool:
    size = named["size"] in (None, true["size"])
    return size and named["shape"] == true["shape"] and named["colour"] == true["colour"]


def _name(thing: dict, rng: random.Random) -> str:
    size = rng.choice(SIZES[thing["size"]])
    colour = rng.choice(COLOURS[thing["colour"]])
    return f"{size} {colour} {rng.choice(SHAPES[thing['shape']])}"
