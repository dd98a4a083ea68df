"""Pairs of scenes: every sentence is as true as its label says, half of them are, and the shards are the same again."""

from collections import Counter

import pytest

from vlp.data.shards import iterate_samples
from vlp.demo.nlvr2_scenes import KINDS, make_nlvr2_scenes
from vlp.errors import UserError

COUNT = 600


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs") / "train"
    make_nlvr2_scenes(folder, COUNT, 32, "seed")
    return list(iterate_samples(f"{folder}/*.tar"))


def is_true(sentence: str, pictures: list[list[dict]]) -> bool:
    """The truth of a sentence, read word by word from the objects of both pictures."""
    words = sentence.split()
    has = [[word for thing in picture for word in (thing["colour"], thing["shape"])] for picture in pictures]
    if "many" in words or "more" in words:
        left, right = map(len, pictures)
        return left == right if "many" in words else left > right if words[3] == "left" else left < right
    if words[0] == "a":
        holders = sum(words[1] in one for one in has)
        if "only" in words:
            return holders == 1
        if "and" in words:
            return holders == 2
        here = pictures[words[-1] == "right"]
        return any([thing["colour"], thing["shape"]] == words[1:3] for thing in here)
    sizes = []
    for picture in pictures:
        (thing,) = [thing for thing in picture if thing["shape"] == words[2]]
        sizes.append({"small": 1, "large": 2}[thing["size"]])
    return {"larger": sizes[0] > sizes[1], "smaller": sizes[0] < sizes[1], "as": sizes[0] == sizes[1]}[words[4]]


def test_labels_are_the_truth_and_balanced_for_every_kind(samples):
    labels = Counter((sample.info["kind"], sample.info["label"]) for sample in samples)
    for sample in samples:
        assert is_true(sample.info["sentence"], sample.info["truth"]) == sample.info["label"], sample.info
    for kind in KINDS:
        assert labels[kind, True] + labels[kind, False] == COUNT // len(KINDS)
        assert labels[kind, True] == pytest.approx(COUNT // len(KINDS) / 2, abs=25)


def test_no_sentence_alone_tells_its_label(samples):
    """The most frequent label of each first words and last word is right little more often than chance."""
    by_words: dict[tuple, Counter] = {}
    for sample in samples:
        words = sample.info["sentence"].split()
        by_words.setdefault((words[0], words[-1], words[3]), Counter())[sample.info["label"]] += 1
    best = sum(max(counts.values()) for counts in by_words.values())
    assert best / COUNT < 0.6


def test_both_images_are_written_and_the_seed_decides_everything(samples, tmp_path):
    assert all(sample.right and sample.right != sample.image for sample in samples)
    assert len({sample.info["identifier"] for sample in samples}) == COUNT
    make_nlvr2_scenes(tmp_path / "again", 40, 32, "seed")
    make_nlvr2_scenes(tmp_path / "other", 40, 32, "another")
    assert [one.image for one in iterate_samples(f"{tmp_path}/again/*.tar")] == [one.image for one in samples[:40]]
    assert [one.image for one in iterate_samples(f"{tmp_path}/other/*.tar")] != [one.image for one in samples[:40]]
    with pytest.raises(UserError, match="exists"):
        make_nlvr2_scenes(tmp_path / "again", 1, 32, "seed")
