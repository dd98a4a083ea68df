"""Scenes with five references: all are exact, and captions are scored against them."""

from tiny_model import make_model

from vlp.data.shards import iterate_samples
from vlp.demo.scene_captions import caption_is_exact
from vlp.demo.self_critical_scenes import make_reference_scenes, score_captions_of_scenes


def test_the_references_of_scenes_are_exact_and_captions_are_scored(tmp_path):
    make_reference_scenes(tmp_path / "scenes", 6, 32, "self_critical test 0")
    samples = list(iterate_samples(str(tmp_path / "scenes" / "*.tar")))
    assert len(samples) == 6 and all(len(sample.captions) == 5 for sample in samples)
    assert all(caption_is_exact(text, sample.info["truth"]) for sample in samples for text in sample.captions)
    scores = score_captions_of_scenes(make_model(), tmp_path / "scenes")
    assert scores["images"] == 6 and 0 <= scores["caption_exact"] <= 1 and "CIDEr" in scores
