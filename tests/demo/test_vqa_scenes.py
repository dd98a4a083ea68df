"""Questions about scenes: their answers are true, and reading only the question does not tell them."""

import random
from collections import Counter, defaultdict

from vlp.demo.scene_captions import COLOURS, SHAPES, SIZES
from vlp.demo.scenes import make_scene
from vlp.demo.vqa_scenes import annotate_questions


def meaning(word: str, table: dict) -> str:
    return next(value for value, words in table.items() if word in words)


def test_answers_are_true_and_balanced():
    answers: dict[str, Counter] = defaultdict(Counter)
    numbers = set()
    for seed in range(3000):
        rng = random.Random(seed)
        scene = make_scene(rng)
        questions = annotate_questions(scene, rng)["questions"]
        assert questions and len({tuple(one["answers"]) for one in questions}) <= len(questions)
        for one in questions:
            kind, (answer,) = one["question_type"], set(one["answers"])
            numbers.add(one["question_id"])
            answers[kind][answer] += 1
            words = one["question"].rstrip("?").split()
            if kind == "color":
                shape = meaning(words[-1], SHAPES)
                assert [thing["colour"] for thing in scene.objects if thing["shape"] == shape] == [answer]
            if kind == "shape":
                colour = meaning(words[-2], COLOURS)
                assert [thing["shape"] for thing in scene.objects if thing["colour"] == colour] == [answer]
            if kind == "count":
                size = meaning(words[-1], SIZES)
                there = sum(thing["size"] == size for thing in scene.objects)
                assert ("none", "one", "two")[there] == answer
            if kind == "exists":
                colour, shape = meaning(words[-2], COLOURS), meaning(words[-1], SHAPES)
                there = any((thing["colour"], thing["shape"]) == (colour, shape) for thing in scene.objects)
                assert there == (answer == "yes")
    assert len(numbers) == sum(sum(counts.values()) for counts in answers.values())
    for kind, most in (("color", 0.16), ("shape", 0.16), ("count", 0.38), ("exists", 0.54), ("place", 0.54)):
        assert max(answers[kind].values()) / sum(answers[kind].values()) < most, kind
