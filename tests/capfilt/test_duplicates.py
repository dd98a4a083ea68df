"""Duplicates, against a plain loop over all pairs of images."""

import hashlib
import io
import math
import random
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny_model import make_clip, make_model

from vlp.capfilt import duplicate_search, duplicates, match_images
from vlp.capfilt.duplicates import find_duplicates
from vlp.capfilt.selection import select
from vlp.data.image_decoding import decode_image
from vlp.data.score_tables import Scored, table_path, write_table
from vlp.data.shard_index import expand_shards
from vlp.data.shard_writer import ShardWriter
from vlp.data.shards import iterate_samples
from vlp.errors import UserError, WorkError

ABOVE = 0.98


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model and its folder."""
    made, folder = make_model(), tmp_path_factory.mktemp("models") / "model"
    made.save(folder)
    return made, str(folder)


def picture(rng, close_to=None):
    """A PNG of noise, or a slightly or strongly changed copy of one."""
    if close_to is None:
        pixels = np.clip(rng.normal(rng.uniform(0, 255, 3), 60, (32, 32, 3)), 0, 255)
    else:
        pixels = np.asarray(Image.open(io.BytesIO(close_to)), float)
        pixels = np.clip(pixels + rng.normal(0, rng.choice((2, 10, 30)), pixels.shape), 0, 255)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_images(folder, images, shard_size):
    with ShardWriter(str(folder), shard_size) as writer:
        for number, image in enumerate(images):
            writer.write(f"{number:04d}", image, "png", "a text", {})
    return str(folder / "*.tar")


@pytest.fixture
def sets(tmp_path):
    """Patterns of a set of four shards and of an evaluation set, with many similar images and some damaged ones."""
    rng, draw = np.random.default_rng(1), random.Random(1)
    tests = [picture(rng) for _ in range(12)]
    images = []
    for _ in range(110):
        kind = draw.random()
        if kind < 0.1:
            images.append(draw.choice(tests))
        elif kind < 0.2:
            images.append(picture(rng, draw.choice(tests)))
        elif kind < 0.35 and images:
            images.append(draw.choice(images))
        elif kind < 0.6 and images:
            images.append(picture(rng, draw.choice(images)))
        else:
            images.append(picture(rng))
    images[50] = images[50][:60]
    return write_images(tmp_path / "web", images, 30), write_images(tmp_path / "tests", [*tests, tests[3]], 7)


def plain_duplicates(model, shards, tests, above, by="images", order=None):
    """The duplicates by a loop over all pairs, {shard#key: (of, kind, cosine)}, and the cosine closest to the cut.

    `order` sorts the samples of the set; they are kept in this order.
    """

    def read(pattern, sort=None):
        good = [one for one in iterate_samples(pattern) if len(one.image) > 60]
        good = sorted(good, key=sort) if sort else good
        vectors = model.embed_images([decode_image(one.image, model.image_size) for one in good]).numpy()
        vectors = vectors.astype(np.float16).astype(np.float32)  # as they are stored
        names = [f"{one.shard}#{one.key}" for one in good]
        digests = [
            hashlib.sha256(one.image).digest() if by != "captions" else name
            for one, name in zip(good, names, strict=True)
        ]
        captions = [re.sub("[^a-z0-9]+", " ", one.text.lower()).strip() if by != "images" else "" for one in good]
        return list(zip(names, digests, vectors, captions, strict=True))

    against, closest = (read(tests) if tests else []), 1.0
    stays, found, first = [], {}, {}
    for name, digest, vector, caption in read(shards, order):
        best = {}
        for kind, others in (("against", against), ("near", stays)):
            cosines = [float(vector @ other[2]) if by != "captions" else -1 for other in others]
            closest = min([closest, *(abs(cosine - above) for cosine in cosines)])
            same = [other[0] for other in others if caption and other[3] == caption]
            if cosines and max(cosines) >= above:
                best[kind] = (others[int(np.argmax(cosines))][0], kind, max(cosines))
            elif same:
                best[kind] = (same[0], "caption" if kind == "near" else kind, None)
        if equal := [other[0] for other in against if other[1] == digest]:
            found[name] = (equal[0], "against", 1.0)
        elif digest in first:
            found[name] = found.get(first[digest], (first[digest], "exact", 1.0))
        elif best:
            found[name] = best.get("against") or best["near"]
        else:
            stays.append((name, digest, vector, caption))
        first.setdefault(digest, name)
    return found, closest


def read_tables(pattern):
    return {
        f"{shard}#{row['key']}": (row["duplicate_of"], row["kind"], row["cosine"])
        for shard in expand_shards(pattern)
        for row in pq.read_table(table_path(shard, "duplicates")).to_pylist()
    }


WORDS = ("a red boat", "A red boat.", "two  dogs", "", "...", "Two dogs!", "a cat", "a 'cat'")


@pytest.fixture
def varied(tmp_path):
    """Patterns of a set and an evaluation set of pictures of many sizes and a few captions, with scores; and those."""
    rng, draw = np.random.default_rng(2), random.Random(2)
    images = []
    for _ in range(60):
        if images and draw.random() < 0.5:
            image = draw.choice(images)
            if draw.random() < 0.7:
                file, side = io.BytesIO(), draw.choice((32, 48, 64))
                Image.open(io.BytesIO(image)).resize((side, side + 4), Image.Resampling.NEAREST).save(file, "PNG")
                image = file.getvalue()
            images.append(image)
        else:
            images.append(picture(rng))
    with ShardWriter(str(tmp_path / "web"), 25) as writer:
        for number, image in enumerate(images):
            writer.write(f"{number:04d}", image, "png", draw.choice(WORDS) if number % 3 else f"only {number}", {})
    with ShardWriter(str(tmp_path / "tests"), 25) as writer:
        for number, image in enumerate([images[3], picture(rng)]):
            writer.write(f"{number:04d}", image, "png", WORDS[-1], {})
    scores = {}
    for shard in expand_shards(str(tmp_path / "web" / "*.tar")):
        rows = []
        for sample in iterate_samples(shard):
            for caption_id in range(draw.randrange(3)):  # some images have no row
                itm = draw.choice((None, 0.25, 0.5, draw.random()))
                rows.append(Scored(sample.key, "web", "a text", itm, 0.0, caption_id=caption_id))
                if itm is not None:
                    name = f"{shard}#{sample.key}"
                    scores[name] = max(scores.get(name, -1.0), itm)
        write_table(shard, rows, {})
    return str(tmp_path / "web" / "*.tar"), str(tmp_path / "tests" / "*.tar"), scores


@pytest.mark.parametrize("by", ["images", "captions", "both"])
@pytest.mark.parametrize("keep", ["first", "largest", "best:itm"])
def test_the_image_that_is_kept_is_the_first_by_the_rule(varied, model, by, keep):
    shards, tests, scores = varied
    orders = {
        "first": None,
        "largest": lambda one: -math.prod(decode_image(one.image).size),
        "best:itm": lambda one: -np.float32(scores.get(f"{one.shard}#{one.key}", -math.inf)),
    }
    expected, closest = plain_duplicates(model[0], shards, tests, ABOVE, by, orders[keep])
    assert closest > 1e-5 or by == "captions"
    filter = model[1] if by != "captions" else ""
    counts = find_duplicates(shards, filter, tests, ABOVE, precision="fp32", by=by, keep=keep, quiet=True)
    found = read_tables(shards)
    assert {name: one[:2] for name, one in found.items()} == {name: one[:2] for name, one in expected.items()}
    assert [one[2] is None for one in found.values()] == [expected[name][2] is None for name in found]
    for kind, wanted in (("exact", by != "captions"), ("near", by != "captions"), ("caption", by != "images")):
        assert (getattr(counts, kind) > 0) == wanted, kind
    assert counts.against > 0


@pytest.mark.parametrize("block, with_tests", [(4096, True), (7, True), (7, False), (1, True)])
def test_duplicates_equal_those_of_a_plain_loop(sets, model, monkeypatch, block, with_tests):
    shards, tests = sets[0], sets[1] if with_tests else ""
    monkeypatch.setattr(duplicate_search, "BLOCK", block)
    monkeypatch.setattr(duplicate_search, "MOST_ROWS", block + 3)
    expected, closest = plain_duplicates(model[0], shards, tests, ABOVE)
    assert closest > 1e-5  # so that rounding decides nothing
    counts = find_duplicates(shards, model[1], tests, ABOVE, precision="fp32", quiet=True)
    found = read_tables(shards)
    assert {name: one[:2] for name, one in found.items()} == {name: one[:2] for name, one in expected.items()}
    assert all(one[2] == pytest.approx(expected[name][2], abs=1e-5) for name, one in found.items())
    kinds = [one[1] for one in expected.values()]
    assert (counts.images, counts.bad) == (109, {"image undecodable": 1})
    assert counts.exact == kinds.count("exact") > 5
    assert counts.near == kinds.count("near") > 5
    assert counts.against == kinds.count("against")
    assert (counts.against > 10) == with_tests


def test_embeddings_are_reused_unless_the_shard_changed(sets, model, monkeypatch):
    shards, tests = sets
    first = find_duplicates(shards, model[1], tests, ABOVE, quiet=True)
    changed, *others = expand_shards(shards)
    before = {path: Path(table_path(path, "embeddings")).stat().st_mtime_ns for path in [changed, *others]}
    again = find_duplicates(shards, model[1], tests, 0.9, quiet=True)
    assert again.near + again.against > first.near + first.against
    with open(changed, "ab") as file:
        file.write(bytes(512))
    find_duplicates(shards, model[1], tests, 0.9, quiet=True)
    after = {path: Path(table_path(path, "embeddings")).stat().st_mtime_ns for path in [changed, *others]}
    assert [path for path in before if before[path] != after[path]] == [changed]


def test_rules_leave_duplicates_out(sets, model, tmp_path):
    shards, tests = sets
    find_duplicates(shards, model[1], tests, ABOVE, quiet=True)
    names = []
    for shard in expand_shards(shards):
        samples = list(iterate_samples(shard))
        write_table(shard, [Scored(one.key, "web", one.text, 0.9, 0.0) for one in samples], {})
        names += [f"{shard}#{one.key}" for one in samples]
    tables = [table_path(shard) for shard in expand_shards(shards)]
    select(tables, "not duplicate", table=str(tmp_path / "kept.parquet"), quiet=True)
    kept = [f"{row['shard']}#{row['key']}" for row in pq.read_table(tmp_path / "kept.parquet").to_pylist()]
    assert kept == [name for name in names if name not in read_tables(shards)]
    changed = expand_shards(shards)[1]
    with open(changed, "ab") as file:
        file.write(bytes(512))
    write_table(changed, [Scored("0030", "web", "a text", 0.9, 0.0)], {})  # scored again
    with pytest.raises(UserError, match="has changed since its duplicates were found"):
        select(tables, "not duplicate", table=str(tmp_path / "again.parquet"), quiet=True)


def test_images_are_compared_by_the_embeddings_of_a_clip_model(sets, tmp_path):
    make_clip().save(tmp_path / "clip")
    shards, _ = sets
    counts = find_duplicates(shards, str(tmp_path / "clip"), above=ABOVE, quiet=True)
    assert counts.images and counts.near


def test_wrong_calls(sets, model, monkeypatch):
    shards, _ = sets
    with pytest.raises(UserError, match=r"greater than 0 and at most 1, not 1\.5"):
        find_duplicates(shards, model[1], above=1.5)
    with pytest.raises(UserError, match="is in both --shards and --against"):
        find_duplicates(shards, model[1], expand_shards(shards)[1])
    with pytest.raises(UserError, match="give the folder of a BLIP or CLIP model as --model"):
        find_duplicates(shards)
    with pytest.raises(UserError, match="by must be images, captions or both, not 'bytes'"):
        find_duplicates(shards, model[1], by="bytes")
    for keep in ("best", "best:width", "last", "best:", "first:itm"):
        with pytest.raises(UserError, match="keep must be first, largest or best:SCORE with one of itm, itc, clip"):
            find_duplicates(shards, model[1], keep=keep)
    with pytest.raises(UserError, match="has no score table; run `vlp capfilt score` on it first"):
        find_duplicates(shards, model[1], keep="best:itm", quiet=True)
    with pytest.raises(UserError, match="not a model folder"):
        find_duplicates(shards, "nowhere")

    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(match_images.tempfile, "TemporaryFile", full)
    with pytest.raises(WorkError, match="No space left"):
        find_duplicates(shards, model[1], quiet=True)
    assert not Path(table_path(expand_shards(shards)[0], "duplicates")).exists()


def test_names_of_many_shards_are_one_array_that_may_exceed_two_gib():
    class Tables:
        def count(self, shards):
            return 3 * len(shards)

        def column(self, shard, name):
            return pa.array([f"{shard[0]}{number}" for number in range(3)])

    names = duplicates._names(["a.tar", "b.tar", "c.tar"], Tables(), np.array([1, 6, 8]))
    assert names.to_pylist() == ["a.tar#a1", "c.tar#c0", "c.tar#c2"]
    assert isinstance(names, pa.LargeStringArray)
