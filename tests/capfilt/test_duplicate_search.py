"""The search for duplicates, against a plain loop over all pairs, on random embeddings and on those of photos."""

import io
import random

import faiss
import numpy as np
import pytest
from PIL import Image

from tests.flickr8k import FOLDER
from vlp.capfilt import duplicate_search
from vlp.capfilt.clustered_vectors import EXHAUSTIVE, PROBES, cluster_count, cluster_vectors
from vlp.capfilt.duplicate_search import AGAINST, CAPTION, NEAR, search_duplicates
from vlp.log import Progress

PHOTOS = FOLDER / "images"
ABOVE = 0.95


def clustered(vectors, file, clusters=1, probes=PROBES, ranks=None, seed=0):
    ranks = np.arange(len(vectors)) if ranks is None else ranks
    blocks = lambda: iter(np.array_split(vectors, 7))  # noqa: E731
    return cluster_vectors(blocks, ranks, vectors.shape[1], clusters, probes, seed, file, quiet=True)


def search(vectors, tmp_path, tests=0, captions=None, clusters=1, probes=PROBES, above=ABOVE, seed=0):
    with open(tmp_path / "vectors", "w+b") as file, Progress("images", quiet=True) as progress:
        grouped = None if vectors is None else clustered(vectors, file, clusters, probes, seed=seed)
        count = len(captions) if vectors is None else len(vectors)
        return search_duplicates(count, tests, grouped, captions, above, progress)


def normalised(vectors):
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float16)


def planted(images, width=24, seed=0, near=0.3):
    """Embeddings around a few centres, of which a share is a slightly or strongly changed copy of an earlier one."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(20, width))[rng.integers(20, size=images)] + rng.normal(size=(images, width))
    for place in np.flatnonzero(rng.random(images) < near):
        if place:
            noise = rng.normal(size=width) * rng.choice((0.05, 0.3, 0.6))
            vectors[place] = vectors[rng.integers(place)] + noise
    return normalised(vectors)


def plain_search(vectors, tests, captions, above):
    """The definition of `search_duplicates`, image by image: pairs of the image that is duplicated and the kind."""
    exact = vectors.astype(np.float32)
    found, kept = {}, []
    for image in range(tests, len(exact)):
        for kind, others in ((AGAINST, list(range(tests))), (NEAR, kept)):
            cosines = exact[others] @ exact[image] if others else np.empty(0)
            same = [other for other in others if captions[image] >= 0 and captions[other] == captions[image]]
            if len(cosines) and cosines.max() >= np.float32(above):
                found[image] = (others[int(cosines.argmax())], kind)
            elif same:
                found[image] = (same[0], AGAINST if kind == AGAINST else CAPTION)
            if image in found:
                break
        else:
            kept.append(image)
    return found


def as_dict(found):
    return {int(place): (int(found.of[place]), int(found.kind[place])) for place in np.flatnonzero(found.kind)}


@pytest.mark.parametrize("clusters", [1, 13])
@pytest.mark.parametrize("block, pairs", [(10_000, 8_000_000), (97, 20), (1, 20)])
def test_the_search_equals_a_plain_loop(clusters, block, pairs, tmp_path, monkeypatch):
    """With as many probes as clusters nothing is missed, also where blocks have too many pairs and are halved."""
    monkeypatch.setattr(duplicate_search, "BLOCK", block)
    monkeypatch.setattr(duplicate_search, "SMALLEST_BLOCK", 4)
    monkeypatch.setattr(duplicate_search, "MOST_PAIRS", pairs)
    monkeypatch.setattr(duplicate_search, "MOST_ROWS", 50)
    monkeypatch.setattr(duplicate_search, "MOST_COSINES", 400)
    vectors, rng = planted(700), np.random.default_rng(5)
    captions = np.where(rng.random(700) < 0.5, rng.integers(200, size=700), -1)
    for tests, given in ((0, None), (60, None), (60, captions), (0, captions)):
        found = search(vectors, tmp_path, tests, given, clusters, probes=clusters)
        expected = plain_search(vectors, tests, np.full(700, -1) if given is None else given, ABOVE)
        assert as_dict(found) == expected
        kinds = {kind for _, kind in expected.values()}
        assert kinds == {NEAR} | ({AGAINST} if tests else set()) | ({CAPTION} if given is not None else set())
        near = np.flatnonzero(found.kind == NEAR)
        cosines = (vectors[near].astype(np.float32) * vectors[found.of[near]].astype(np.float32)).sum(1)
        assert found.cosine[near] == pytest.approx(cosines, abs=1e-5)
        assert np.isnan(found.cosine[found.kind == CAPTION]).all()


def test_captions_alone_need_no_embeddings(tmp_path):
    captions = np.array([3, 0, -1, 0, 3, -1, 1, 0])
    assert as_dict(search(None, tmp_path, 1, captions)) == {4: (0, AGAINST), 3: (1, CAPTION), 7: (1, CAPTION)}


def test_a_large_group_of_copies_needs_no_memory_for_its_pairs(tmp_path):
    """An image of which half of the set are near copies, such as a placeholder, has only one that is kept."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(12_000, 16))
    vectors[::2] = vectors[0] + rng.normal(size=(6_000, 16)) * 0.01
    found = search(normalised(vectors), tmp_path, clusters=20)
    copies = found.of[2::2] == 0
    assert copies.all()


def test_images_without_a_rank_take_no_part(tmp_path):
    vectors = planted(200)
    ranks = np.full(200, -1)
    some = np.random.default_rng(0).permutation(200)[:120]
    ranks[some] = np.arange(120)
    with open(tmp_path / "vectors", "w+b") as file:
        grouped = clustered(vectors, file, 5, ranks=ranks)
        assert sorted(grouped.ranks) == list(range(120))
        assert (grouped.read(grouped.rows) == vectors[some]).all()
        assert (grouped.nearest[grouped.ranks, 0] == np.repeat(np.arange(5), np.diff(grouped.starts))).all()


def test_recall_of_planted_neighbours(tmp_path):
    """Of the images that the exhaustive search finds, the clusters miss less than one in a hundred."""
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(60, 64))
    vectors = centres[rng.integers(60, size=9_000)] + 0.9 * rng.normal(size=(9_000, 64))
    copies = vectors[rng.integers(9_000, size=3_000)]
    vectors = normalised(np.concatenate([vectors, copies + 0.3 * rng.normal(size=copies.shape)]))
    exact, fast = search(vectors, tmp_path), search(vectors, tmp_path, clusters=300)
    assert (exact.kind == NEAR).sum() > 2_000
    assert (fast.kind[exact.kind == NEAR] == NEAR).mean() >= 0.99
    assert ((fast.kind == NEAR) <= (exact.kind == NEAR)).mean() > 0.999  # a missed image may keep another one out
    again = search(vectors, tmp_path, clusters=300)
    assert (again.of == fast.of).all() and (again.cosine == fast.cosine).all()


def changed_photos(count, rng):
    """Small RGB versions of photos, and of each a crop, a recompressed copy and a slightly rotated one."""
    for path in sorted(PHOTOS.glob("*.jpg"))[:count]:
        with Image.open(path) as picture:
            picture.draft("RGB", (160, 160))
            photo = picture.convert("RGB")
        width, height = photo.size
        left, top = rng.randint(0, width // 25), rng.randint(0, height // 25)
        recompressed = io.BytesIO()
        photo.save(recompressed, "JPEG", quality=rng.randint(20, 60))
        yield photo
        yield photo.crop((left, top, left + width * 24 // 25, top + height * 24 // 25))
        yield Image.open(recompressed)
        yield photo.rotate(rng.choice((-2, -1, 1, 2)), Image.Resampling.BICUBIC)


def photo_embeddings(count):
    """Embeddings of photos and changed copies, float16 [4 * count, 96].

    A random network gives all photos nearly the same embedding, so that every pair would be a duplicate. Whitened
    pixels spread the photos and keep changed copies near: 12 x 12 pixels, their 96 principal components divided by the
    square root of their deviations.
    """
    small = [
        np.asarray(photo.resize((12, 12), Image.Resampling.BOX)) for photo in changed_photos(count, random.Random(0))
    ]
    pixels = np.stack(small).reshape(len(small), -1).astype(np.float64)
    pixels -= pixels.mean(axis=0)
    _, deviations, components = np.linalg.svd(pixels, full_matrices=False)
    return normalised(pixels @ components[:96].T / np.sqrt(deviations[:96]))


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"{PHOTOS} is missing")
def test_recall_of_changed_copies_of_photos(tmp_path):
    vectors = photo_embeddings(800)
    exact, fast = search(vectors, tmp_path), search(vectors, tmp_path, clusters=200)
    by_kind = (exact.kind == NEAR).reshape(-1, 4).mean(axis=0)
    assert by_kind[0] < 0.1 and (by_kind[1:] > 0.5).all()  # few photos are alike, most changed copies are found
    assert (fast.kind[exact.kind == NEAR] == NEAR).mean() >= 0.99


def test_few_images_are_compared_exhaustively():
    assert cluster_count(EXHAUSTIVE) == 1
    assert [cluster_count(images) for images in (1_000_000, 4_000_000)] == [2828, 5657]


def test_clusters_come_from_faiss(tmp_path):
    """The nearest clusters are those of an exhaustive comparison with the centroids of k-means."""
    vectors = planted(2_000)
    with open(tmp_path / "vectors", "w+b") as file:
        grouped = clustered(vectors, file, 10, probes=3)
    kmeans = faiss.Kmeans(24, 10, niter=8, spherical=True, seed=0, min_points_per_centroid=1)
    kmeans.train(vectors[np.sort(np.random.default_rng(0).choice(2_000, 640, False, shuffle=False))].astype(np.float32))
    nearest = np.argsort(-(vectors.astype(np.float32) @ kmeans.centroids.T), axis=1)[:, :3]
    assert (grouped.nearest == nearest).mean() > 0.999
