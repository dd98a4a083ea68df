"""Dialogs about scenes: every answer is true, follows from image, caption and history, and stands among false ones."""

from dataclasses import replace

from vlp.data.shards import iterate_samples
from vlp.demo.scene_captions import COLOUR_OF, COLOURS, INVERSE, SHAPE_OF, SHAPES, SIZES
from vlp.demo.stages import QUICK, train_once
from vlp.demo.tasks import SCENE_TASKS, finetuning_config
from vlp.demo.visdial_scenes import PLACES, make_training_scenes, make_visdial_scenes
from vlp.model import load_model

COUNT = 60


def attribute(question: str) -> str:
    """What a question asks for."""
    for word, what in (("color", "colour"), ("shape", "shape"), ("or", "size"), ("where", "place")):
        if word in question.split():
            return what
    return "what" if question.startswith("what") else "yes or no"


def true_answer(truth: dict, thing: int, what: str, question: str) -> str:
    one = truth["objects"][thing]
    if what == "what":
        return f"{one['colour']} {one['shape']}"
    if what == "place":
        return PLACES[INVERSE[truth["relation"]] if thing else truth["relation"]]
    if what == "yes or no":
        return "yes" if question.split()[-1] in one.values() else "no"
    return one[what]


def test_every_answer_is_true(tmp_path):
    make_visdial_scenes(tmp_path / "scenes", COUNT, 32, "one")
    samples = list(iterate_samples(f"{tmp_path}/scenes/*.tar"))
    assert len(samples) == COUNT
    answers = []
    for sample in samples:
        truth, words = sample.info["truth"], sample.info["caption"].split()
        name = (COLOUR_OF[words[-2]], SHAPE_OF[words[-1]])
        (first,) = [n for n, one in enumerate(truth["objects"]) if (one["colour"], one["shape"]) == name]
        asked, focus = "", first
        assert len(sample.info["dialog"]) == 4
        for one in sample.info["dialog"]:
            question = one["question"]
            if "the other" in question:
                focus = 1 - first
            elif f"the {words[-2]} {words[-1]}" in question:
                focus = first
            what = asked if question.startswith("and the ") else attribute(question)
            assert what
            assert one["answer"] == true_answer(truth, focus, what, question), (sample.info, question)
            asked = "" if what == "yes or no" else what
            answers.append(one["answer"])
    assert {"yes", "no", "left", "right", "above", "below", *SIZES} <= set(answers)
    assert 15 < sum(one["question"].startswith("and the ") for s in samples for one in s.info["dialog"]) < 120


def test_several_false_options_are_of_the_right_kind(tmp_path):
    make_visdial_scenes(tmp_path / "scenes", COUNT, 32, "two")
    for sample in iterate_samples(f"{tmp_path}/scenes/*.tar"):
        for one in sample.info["dialog"]:
            options, answer = one["options"], one["answer"]
            assert len(set(options)) == 20 and options[one["gt_index"]] == answer
            alike = [option for option in options if option != answer and kind(option) == kind(answer)]
            expected = {"size": 1, "yes or no": 1, "place": 3}.get(kind(answer), 5)
            assert len(alike) >= expected, (answer, options)


def kind(answer: str) -> str:
    if len(answer.split()) == 2:
        return "what"
    kinds = {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "place": PLACES.values(), "yes or no": ("yes", "no")}
    return next(name for name, values in kinds.items() if answer in values)


def test_training_scenes_have_fewer_options(tmp_path):
    make_training_scenes(tmp_path / "scenes", 5, 32, "three")
    for sample in iterate_samples(f"{tmp_path}/scenes/*.tar"):
        for one in sample.info["dialog"]:
            assert len(set(one["options"])) == 8 and one["options"][one["gt_index"]] == one["answer"]


def test_scenes_depend_on_the_seed_alone_and_the_history_can_be_left_out(tmp_path):
    for name, seed, history in (("a", "x", True), ("b", "x", True), ("c", "y", True), ("d", "x", False)):
        make_visdial_scenes(tmp_path / name, 5, 32, seed, history=history)
    infos = {name: [one.info for one in iterate_samples(f"{tmp_path}/{name}/*.tar")] for name in "abcd"}
    assert infos["a"] == infos["b"] != infos["c"]
    for whole, single in zip(infos["a"], infos["d"], strict=True):
        (one,) = single["dialog"]
        assert one in whole["dialog"] and single["caption"] == whole["caption"]


def test_the_entry_of_the_demo_trains_and_scores(models, tmp_path):
    task = SCENE_TASKS["visdial"]
    for split in ("train", "test"):
        task.make_data(tmp_path / "data" / f"visdial-{split}", 8, 32, split)
    config = finetuning_config(tmp_path, task, task.config, QUICK, 0)
    data = replace(config.data, max_tokens=32, workers=0)
    train_once(replace(config, start_from=models[1], data=data, batch_size=4, steps=2))
    metrics = task.evaluate(load_model(tmp_path / "visdial-run" / "model"), tmp_path / "data" / "visdial-test")
    assert (metrics["images"], metrics["rounds"], metrics["skipped"]) == (8, 32, 0)
    assert 0 <= metrics[task.metric] <= metrics["r5"] <= metrics["r10"] <= 1
