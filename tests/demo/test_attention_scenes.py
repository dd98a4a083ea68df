"""Attention on scenes: boxes fit the drawn objects, and shares of maps are those of pixels."""

import random

import numpy as np
import pytest
import torch

from tests.tiny_model import make_model
from vlp.data.image_decoding import decode_image
from vlp.data.shards import iterate_samples
from vlp.demo.attention_scenes import box_cover, make_attention_scenes, named_shares, score_attention
from vlp.demo.scene_captions import SHAPES, read_caption
from vlp.demo.scenes import BACKGROUNDS, Scene, draw_scene, object_box
from vlp.model.attention import WordMaps, word_maps


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", ["large", "small"])
def test_boxes_fit_the_drawn_shapes(shape, size):
    thing = {"shape": shape, "colour": "black", "size": size}
    scene = Scene([dict(thing, shape="circle"), thing], None, [(0.2, 0.2), (0.62, 0.55)], "pink")
    alone = Scene([thing], None, [(0.62, 0.55)], "pink")
    painted = (np.array(draw_scene(alone, 500)) != BACKGROUNDS["pink"]).any(-1)
    rows, columns = np.where(painted.any(1))[0], np.where(painted.any(0))[0]
    edges = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / 500
    assert np.abs(edges - object_box(scene, 1)).max() < 0.005


def test_the_cover_of_a_box_is_that_of_its_pixels():
    rng = random.Random(0)
    for _ in range(20):
        left, right = sorted(rng.sample(range(61), 2))
        top, bottom = sorted(rng.sample(range(61), 2))
        pixels = torch.zeros(60, 60)
        pixels[top:bottom, left:right] = 1
        expected = pixels.view(3, 20, 5, 12).mean(dim=(1, 3))
        cover = box_cover((left / 60, top / 60, right / 60, bottom / 60), 3, 5)
        torch.testing.assert_close(cover, expected, atol=1e-5, rtol=0)


def test_shares_of_even_full_and_empty_maps():
    box = (0.25, 0.5, 0.5, 1.0)  # two cells of 4 x 4, an eighth of the image
    maps = torch.ones(4, 4, 4)
    maps[1] = box_cover(box, 4, 4)
    maps[2] = 0
    words = WordMaps("a red red crimson", 0.5, ["red", "red", "crimson", "a"], maps, *maps[:3])
    objects = [{"colour": "blue", "shape": "star", "box": (0, 0, 1, 1)}, {"colour": "red", "shape": "bar", "box": box}]
    found = torch.tensor(named_shares(words, objects, "colour"))
    assert found.tolist() == [[0.125, 0.125, 1, 16], [1, 0.125, 1, 2], [0, 0.125, 1, 0]]
    assert named_shares(words, objects, "shape") == []


def test_scores_of_written_scenes(tmp_path):
    make_attention_scenes(tmp_path / "scenes", 40, 32, "one")
    samples = list(iterate_samples(f"{tmp_path}/scenes/*.tar"))
    for sample in samples:
        objects = sample.info["truth"]["objects"]
        assert read_caption(sample.captions[0])
        for kind in ("colour", "shape"):
            assert len({one[kind] for one in objects}) == len(objects)
    model = make_model()
    scores = score_attention(model, tmp_path / "scenes", layer=1)
    assert scores["images"] == 40 and 0 < scores["itm"] < 1
    assert scores["ratio"] == min(scores["colour_ratio"], scores["shape_ratio"]) < scores["most"]
    assert scores["shape_chance"] == pytest.approx(scores["colour_chance"], rel=0.05)  # long texts lose words
    shares = []
    for sample in samples:
        (one,) = word_maps(model, decode_image(sample.image), sample.captions[0], layer=1)
        shares += [found.share for found in named_shares(one, sample.info["truth"]["objects"], "shape")]
    assert scores["shape_share"] == pytest.approx(sum(shares) / len(shares), rel=1e-3)
