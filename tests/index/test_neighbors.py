"""Nearest neighbors: exact ones equal NumPy's, clustered ones find nearly all; growth extends segments."""

import numpy as np
import pytest

from vlp.index import neighbors
from vlp.index.manifest import IndexModel, Manifest
from vlp.index.neighbors import open_neighbors, update_neighbors
from vlp.index.opened import ImageIndex, Rows

WIDTH = 32


@pytest.fixture
def small(monkeypatch):
    for name, value in {"EXACT": 3000, "EXACT_SEGMENT": 1000, "CLUSTERED_SEGMENT": 4000, "BLOCK": 700}.items():
        monkeypatch.setattr(neighbors, name, value)


class Arrays:
    """Vectors in files of 900."""

    def __init__(self, vectors):
        self.all = vectors

    def vectors(self, part):
        return self.all[part * 900 : (part + 1) * 900]

    def gather(self, part, rows):
        return self.vectors(part)[rows]


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def make_vectors(count):
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((50, WIDTH))
    return unit(centers[rng.integers(0, 50, 9000)] + 0.5 * rng.standard_normal((9000, WIDTH)))[:count].astype(
        np.float16
    )


def grow(folder, manifest, count) -> ImageIndex:
    (folder / "neighbors").mkdir(exist_ok=True)
    vectors = make_vectors(count)
    manifest.rows = [len(vectors[start : start + 900]) for start in range(0, count, 900)]
    rows = Rows(Arrays(vectors), manifest.starts)
    update_neighbors(folder, manifest, rows.read, WIDTH, lambda stage, done: None)
    left_out = np.arange(0, count, 7)
    return ImageIndex("here", manifest, rows, open_neighbors(folder, manifest), left_out)


@pytest.mark.parametrize("wide", [64, 32])
def test_exact_up_to_a_limit_and_clustered_beyond(tmp_path, small, monkeypatch, wide):
    monkeypatch.setattr(neighbors, "WIDE", wide)
    manifest = Manifest(model=IndexModel(width=WIDTH))
    queries = unit(np.random.default_rng(1).standard_normal((20, WIDTH))).astype(np.float32)
    for count, files in ((2500, 3), (2700, 3), (3100, 1), (5000, 2), (5500, 2)):
        written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "neighbors").glob("*-0-*.faiss")}
        index = grow(tmp_path, manifest, count)
        assert len(manifest.neighbors) == files and bool(manifest.clusters) == (count > 3000)
        again = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "neighbors").glob("*-0-*.faiss")}
        assert all(again[name] == time for name, time in written.items())  # whole segments are kept
        right = queries @ make_vectors(count).astype(np.float32).T
        right[:, ::7] = -2  # left out
        agree = 0
        for query, scores in zip(queries, right, strict=True):
            found = index.search(query, 10)
            assert [one.score for one in found] == pytest.approx(scores[[one.number for one in found]], abs=1e-5)
            assert len(found) == 10 and sorted(found, key=lambda one: -one.score) == found
            agree += len({one.number for one in found} & set(np.argsort(-scores)[:10].tolist()))
        assert agree == 200 if count <= 3000 else agree >= 180
    assert manifest.trained == 3100


def test_many_left_out_images_do_not_shorten_the_results(tmp_path, small):
    index = grow(tmp_path, Manifest(model=IndexModel(width=WIDTH)), 1000)
    query = make_vectors(1)[0].astype(np.float32)
    order = np.argsort(-(make_vectors(1000).astype(np.float32) @ query))
    index._left_out = np.sort(order[:900])
    assert [one.number for one in index.search(query, 10)] == order[900:910].tolist()
