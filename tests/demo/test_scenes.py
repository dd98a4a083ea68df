"""Synthetic scenes: deterministic, with correct ground truth and the requested share of wrong texts."""

import random
import re
from collections import Counter

import pytest

from vlp.data.image_decoding import decode_image
from vlp.data.shards import iterate_samples
from vlp.demo.scene_captions import INVERSE, WRONG_KINDS, caption_is_exact, describe, read_caption
from vlp.demo.scenes import make_sample, make_scene, write_scenes
from vlp.errors import UserError


def test_captions_of_a_human_split_agree_with_the_truth():
    for number in range(300):
        _, text, facts = make_sample(number, "human", 0.4, 32, seed=3)
        assert facts["truth"]["text_right"]
        assert caption_is_exact(text, facts["truth"])


def test_a_web_split_has_the_requested_share_of_wrong_texts_of_all_kinds():
    facts = [make_sample(number, "web", 0.4, 16, seed=3) for number in range(2000)]
    kinds = Counter(info["truth"]["wrong_kind"] for _, _, info in facts)
    assert abs(1 - kinds[None] / 2000 - 0.4) < 0.04
    assert set(kinds) == {None, *WRONG_KINDS}
    for _, text, info in facts:
        assert caption_is_exact(text, info["truth"]) == info["truth"]["text_right"]


def test_uids_are_those_of_lists_and_of_datacomp():
    uids = {make_sample(number, "human", 0.0, 16, seed)[2]["uid"] for number in range(20) for seed in (0, 1)}
    assert len(uids) == 40 and all(re.fullmatch("[0-9a-f]{32}", uid) for uid in uids)


def test_captions_of_any_wording_are_parsed_correctly():
    rng = random.Random(0)
    for _ in range(500):
        scene = make_scene(rng)
        text = describe(scene.objects, scene.relation, rng)
        objects, relation = read_caption(text)
        if relation not in (None, scene.relation):
            objects, relation = objects[::-1], INVERSE[relation]
        assert (objects, relation) == (scene.objects, scene.relation)


@pytest.mark.parametrize(
    ("text", "exact"),
    [
        ("a large red circle left of a small blue star", True),
        ("we see a little blue star to the right of a big red disc", True),
        ("a red circle left of a blue star", True),  # sizes are optional
        ("a large red circle right of a small blue star", False),
        ("a large red circle", False),
        ("a large red circle left of a large blue star", False),
        ("a large red circle left of a small blue star and a dog", False),
        ("a large red circle left of a small blue", False),
        ("", False),
    ],
)
def test_exact_captions(text, exact):
    objects = [
        {"shape": "circle", "colour": "red", "size": "large"},
        {"shape": "star", "colour": "blue", "size": "small"},
    ]
    assert caption_is_exact(text, {"objects": objects, "relation": "left of"}) is exact


def test_the_image_shows_the_objects_at_their_places():
    from vlp.demo.scenes import PAINT, draw_scene

    rng = random.Random(1)
    for _ in range(100):
        scene = make_scene(rng)
        image = draw_scene(scene, 64)
        for thing, (x, y) in zip(scene.objects, scene.places, strict=True):
            if thing["shape"] != "ring":
                assert image.getpixel((round(x * 64), round(y * 64))) == PAINT[thing["colour"]]
        if scene.relation:
            (x1, y1), (x2, y2) = scene.places
            assert x1 < x2 if scene.relation == "left of" else y1 < y2


def test_a_seed_gives_the_same_bytes(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_scenes(str(tmp_path / name), 12, "web", 0.5, 32, 5, seed)
    assert [path.name for path in sorted((tmp_path / "a").iterdir())] == ["00000.tar", "00001.tar", "00002.tar"]
    for name in ("00000.tar", "00002.tar"):
        first = (tmp_path / "a" / name).read_bytes()
        assert first == (tmp_path / "b" / name).read_bytes()
        assert first != (tmp_path / "c" / name).read_bytes()
    sample = next(iterate_samples(str(tmp_path / "a/*.tar")))
    assert decode_image(sample.image).size == (32, 32)


def test_wrong_arguments_are_refused(tmp_path):
    (tmp_path / "there").write_text("x")
    for arguments in (("x", 5, "both"), ("x", 5, "web", 2.0), ("x", 0), ("there", 5)):
        with pytest.raises(UserError):
            write_scenes(str(tmp_path / arguments[0]), *arguments[1:])
