"""The statistics of score tables, each number against plain Python over the same rows."""

import hashlib
import math
import random
import re
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlp.data.score_tables import Scored, table_path, write_table
from vlp.errors import WorkError
from vlp.report import score_statistics as statistics
from vlp.report.score_statistics import BINS, SCORES, SOURCES, open_tables

WORDS = ("a", "dog", "Dog.", "on", "the", "beach,", '"sun"', "it's", "(new)", "¿qué?", "...", "#tag", "b-c")


def make_rows(rng, missing=()):
    """Rows with many equal scores, some null, NaN or infinite, and empty texts; two tables share most keys."""
    rows = []
    for image in range(rng.randrange(20, 50)):
        width, height = rng.choice(((0, 0), (30, 64), (64, 64), (300, 40), (7, 900)))
        for source in SOURCES:
            for number in range(rng.randrange(4)):
                text = rng.choice(("", " ", "\n")).join(rng.choices(WORDS, k=rng.randrange(8)))
                values = {name: rng.randrange(-20, 21) / 20 for name in SCORES} | {"itm": rng.randrange(21) / 20}
                for name in SCORES:
                    if name in missing or rng.random() < 0.2:
                        values[name] = rng.choice((None, math.nan, math.inf, -math.inf))
                tokens = rng.choice((None, 3, rng.randrange(200)))
                row = Scored(f"{image:04d}", source, text, **values, caption_id=number, tokens=tokens)
                row.width, row.height = width, height
                rows.append(row)
    rng.shuffle(rows)
    return rows


def finite(value):
    """A score as the tables store it, in double precision; None if it is not finite."""
    return None if value is None or not math.isfinite(value) else float(np.float32(value))


@pytest.fixture(scope="module", params=[(0, ()), (1, ("clip",)), (2, ("itm", "nll")), (3, SCORES)], ids=str)
def tables(request, tmp_path_factory):
    """A connection to three tables, and their rows with the table's path and the stored scores."""
    seed, missing = request.param
    rng, paths, rows, folder = random.Random(seed), [], [], tmp_path_factory.mktemp("tables")
    for number in range(3):
        shard = folder / f"{number}.tar"
        shard.touch()
        paths.append(table_path(str(shard)))
        own = make_rows(rng, missing)
        write_table(str(shard), own, {})
        for row in own:
            stored = vars(row) | {name: finite(getattr(row, name)) for name in SCORES}
            rows.append(SimpleNamespace(**stored, table=paths[-1], shard=shard.name))
    with open_tables(paths) as connection:
        yield SimpleNamespace(connection=connection, paths=paths, rows=rows, images=images_of(rows))


def what_of(row):
    """The fields by which a selected text is recognized."""
    return row.key, row.uid, row.source, row.text


def images_of(rows):
    """The rows of each image, by table and key."""
    images = defaultdict(list)
    for row in rows:
        images[row.table, row.key].append(row)
    return images


def rank_of(rows):
    return next((name for name in ("itm", "itc", "clip") if any(getattr(row, name) is not None for row in rows)), "itm")


def best_of(rows, source, rank):
    return max(
        (getattr(row, rank) for row in rows if row.source == source and getattr(row, rank) is not None), default=None
    )


def mean(values):
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def quantile(values, share):
    """A quantile, interpolated linearly."""
    values = sorted(values)
    place = (len(values) - 1) * share
    low, high = values[math.floor(place)], values[math.ceil(place)]
    return low + (high - low) * (place - math.floor(place))


def words_of(text):
    return re.findall(r'[^\s.,!?"()*#:;~]+', text.lower())


def check_histogram(found, values):
    """Compare a histogram with a plain loop over the values of each group."""
    assert set(found.counts) == {name for name, own in values.items() if own}
    for name, counts in found.counts.items():
        expected = [0] * len(counts)
        for value in values[name]:
            place = math.floor((value - found.low) / (found.high - found.low) * len(counts))
            expected[min(max(place, 0), len(counts) - 1)] += 1
        assert counts == expected
        assert sum(counts) == len(values[name])


def by_group(rows, value):
    return {
        source: [value(row) for row in rows if row.source == source and value(row) is not None] for source in SOURCES
    }


def test_counts_and_means_by_source(tables):
    expected = {}
    for source in SOURCES:
        rows = [row for row in tables.rows if row.source == source]
        means = {name: mean(getattr(row, name) for row in rows) for name in (*SCORES, "tokens")}
        images = sum(any(row.source == source for row in own) for own in tables.images.values())
        expected[source] = {"texts": len(rows), **means, "images": images}
    found = statistics.by_source(tables.connection)
    assert list(found) == list(SOURCES)
    for source in SOURCES:
        assert found[source] == pytest.approx(expected[source])


def test_histograms_of_scores(tables):
    assert statistics.ranking(tables.connection) == rank_of(tables.rows)
    for name in SCORES:
        values = by_group(tables.rows, lambda row, name=name: getattr(row, name))
        everything = [one for own in values.values() for one in own]
        for ends in ((), (0.0, 1.0), (-0.3, 0.15)):
            found = statistics.histogram(tables.connection, name, *ends)
            assert (found is None) == (not everything)
            if found:
                low, high = ends or (quantile(everything, share) for share in (0.001, 0.999))
                assert (found.low, found.high) == pytest.approx((low, high))
                assert {len(counts) for counts in found.counts.values()} == {BINS}
                check_histogram(found, values)


def test_integers_get_bins_of_integer_width(tables):
    words = f"len({statistics.WORDS})"
    for name, value in (("tokens", lambda row: row.tokens), (words, lambda row: len(words_of(row.text)))):
        found, values = statistics.histogram(tables.connection, name), by_group(tables.rows, value)
        check_histogram(found, values)
        everything = [one for own in values.values() for one in own]
        bins = len(found.counts["web"])
        width = (found.high - found.low) / bins
        assert width == int(width) and bins <= BINS
        assert found.low == math.floor(quantile(everything, 0.001))
        assert 0 <= found.high - 1 - quantile(everything, 0.999) <= width


def test_histograms_and_sizes_of_images(tables):
    sizes = [(own[0].width, own[0].height) for own in tables.images.values() if own[0].width and own[0].height]
    found = statistics.image_histogram(tables.connection, "least(width, height)")
    check_histogram(found, {"images": [min(size) for size in sizes]})
    found = statistics.image_histogram(tables.connection, "log2(width / height)", -2.05, 2.05)
    check_histogram(found, {"images": [math.log2(width / height) for width, height in sizes]})
    counted = Counter(f"{width}×{height}" for width, height in sizes)
    expected = sorted(counted, key=lambda size: (-counted[size], size))
    assert statistics.frequent_sizes(tables.connection) == [(size, counted[size] / len(sizes)) for size in expected]


def test_texts_kept_by_thresholds(tables):
    for name in ("itm", "itc", "clip"):
        found = statistics.kept_by_threshold(tables.connection, name)
        values = by_group(tables.rows, lambda row, name=name: getattr(row, name))
        everything = [one for own in values.values() for one in own]
        if not everything:
            assert found is None
            continue
        ends = (0, 1) if name == "itm" else (-1, 1)  # as scores go in twentieths
        assert found.thresholds == pytest.approx(np.linspace(*ends, BINS + 1), abs=1e-4)
        for source in SOURCES:
            expected = [sum(value >= threshold for value in values[source]) for threshold in found.thresholds]
            assert found.counts[source] == expected
            assert found.counts[source][0] == len(values[source])


def test_synthetic_texts_compared_with_web_texts(tables):
    rank, pairs = rank_of(tables.rows), []
    for rows in tables.images.values():
        web, synthetic = best_of(rows, "web", rank), best_of(rows, "synthetic", rank)
        if web is not None and synthetic is not None:
            pairs.append((synthetic, web))
    expected = {
        "images": len(pairs),
        "better": mean(synthetic > web for synthetic, web in pairs),
        "equal": mean(synthetic == web for synthetic, web in pairs),
        "difference": mean(synthetic - web for synthetic, web in pairs),
    }
    assert statistics.synthetic_against_web(tables.connection) == pytest.approx(expected)


@pytest.mark.parametrize("seed", (0, 7))
def test_deciles_and_their_sample_images(tables, seed):
    rank, best = rank_of(tables.rows), {}
    for image, rows in tables.images.items():
        own = (best_of(rows, source, rank) for source in ("web", "human", "synthetic"))
        score = next((one for one in own if one is not None), None)
        if score is not None:
            best[image] = score
    tenths = defaultdict(list)
    edges = [quantile(best.values(), step / 10) for step in range(1, 10)] if best else []
    for image, score in best.items():
        tenths[sum(score >= edge for edge in edges)].append(image)

    def drawn_by(image):
        return hashlib.md5(f"{seed} {Path(image[0]).name} {image[1]}".encode()).hexdigest()

    found = statistics.deciles(tables.connection, 3, seed)
    assert len(found) == len(tenths)
    for decile, (_, images) in zip(found, sorted(tenths.items()), strict=True):
        scores = [best[image] for image in images]
        assert (decile.low, decile.high) == (min(scores), max(scores))
        assert decile.drawn == sorted(images, key=drawn_by)[:3]


def test_texts_of_images_and_whether_they_are_selected(tables, tmp_path):
    rng = random.Random(5)
    # Half are told with their shard, in another folder, and half without, which means the image in every shard.
    told = sorted({(row.shard, *what_of(row)) for row in tables.rows if rng.random() < 0.2})
    told = [row if place % 2 else ("", *row[1:]) for place, row in enumerate(told)]
    columns = [list(column) for column in zip(*told, strict=True)]
    columns[0] = [name and f"else/{name}" for name in columns[0]]
    rows = pa.table(columns, names=["shard", "key", "uid", "source", "text"])
    pq.write_table(rows.slice(0, 15), tmp_path / "kept.parquet")
    statistics.add_selected(tables.connection, str(tmp_path / "kept.parquet"))
    statistics.add_selected(tables.connection, rows.slice(15))
    kept = {id(row): bool({("", *what_of(row)), (row.shard, *what_of(row))} & set(told)) for row in tables.rows}
    expected = {
        "images": (sum(any(kept[id(row)] for row in own) for own in tables.images.values()), len(tables.images))
    }
    for source in SOURCES:
        own = [kept[id(row)] for row in tables.rows if row.source == source]
        expected[source] = (sum(own), len(own))
    assert statistics.kept_by_selection(tables.connection) == expected

    images = [*rng.sample(list(tables.images), 10), (tables.paths[0], "gone")]
    names = ("source", "text", *SCORES, "tokens")
    for image, found in statistics.texts_of(tables.connection, images).items():
        order = sorted(tables.images.get(image, []), key=lambda row: row.caption_id)
        order.sort(key=lambda row: row.source, reverse=True)
        assert found == [{name: getattr(row, name) for name in names} | {"kept": kept[id(row)]} for row in order]


def test_repetition(tables):
    found = statistics.repetition(tables.connection, 0)
    grams = {
        (source, n): Counter(
            " ".join(words[place : place + n])
            for words in (words_of(row.text) for row in tables.rows if row.source == source)
            for place in range(len(words) - n + 1)
        )
        for source in SOURCES
        for n in range(1, 5)
    }
    assert found.sampled == dict(Counter(row.source for row in tables.rows))
    for source in SOURCES:
        expected = [len(grams[source, n]) / grams[source, n].total() for n in range(1, 5)]
        assert found.distinct[source] == pytest.approx(expected)
    captions = Counter(" ".join(words_of(row.text)) for row in tables.rows if row.source == "synthetic")
    for listed, counted in ((found.captions, captions), (found.fourgrams, grams["synthetic", 4])):
        most = sorted(counted.items(), key=lambda pair: (-pair[1], pair[0]))[: statistics.TOP]
        assert [gram for gram, _ in listed] == [gram for gram, _ in most]
        assert [share for _, share in listed] == pytest.approx([count / counted.total() for _, count in most])


def write_one(folder, rows, name="0.tar"):
    (folder / name).touch()
    write_table(str(folder / name), rows, {})
    return table_path(str(folder / name))


def test_tables_without_rows(tmp_path):
    with open_tables([write_one(tmp_path, [])]) as connection:
        assert statistics.by_source(connection) == {}
        assert statistics.histogram(connection, "itm") is statistics.kept_by_threshold(connection, "itm") is None
        assert statistics.image_histogram(connection, "width") is None
        assert statistics.synthetic_against_web(connection)["images"] == 0
        assert statistics.deciles(connection, 3, 0) == statistics.frequent_sizes(connection) == []
        assert statistics.kept_by_selection(connection) == {"images": (0, 0)}
        assert statistics.texts_of(connection, []) == {}
        assert statistics.repetition(connection, 0) == statistics.Repetition({}, [], [], {})


def test_equal_values_and_texts_shorter_than_an_n_gram(tmp_path):
    rows = [Scored(str(number), "web", "one two", 0.25, 0.5) for number in range(5)]
    with open_tables([write_one(tmp_path, rows)]) as connection:
        found = statistics.histogram(connection, "itc")
        assert (found.low, found.high, found.counts) == (0.5, 1.5, {"web": [5] + [0] * (BINS - 1)})
        assert statistics.kept_by_threshold(connection, "itc").counts == {"web": [5] * (BINS + 1)}
        assert [(one.low, one.high, len(one.drawn)) for one in statistics.deciles(connection, 3, 0)] == [
            (0.25, 0.25, 3)
        ]
        found = statistics.repetition(connection, 0)
        assert found.distinct == {"web": [0.2, 0.2, None, None]}
        assert found.captions == found.fourgrams == []


def test_sampling_of_many_texts(tmp_path, monkeypatch):
    """Quantiles and n-grams use a sample of the texts, counts use all; another seed samples other texts."""
    monkeypatch.setattr(statistics, "SAMPLE", 300)
    monkeypatch.setattr(statistics, "FOR_QUANTILES", 500)
    rng = random.Random(0)
    rows = [Scored(str(n), "web", f"text {n}", rng.random(), -rng.random()) for n in range(4000)]
    rows += [Scored(str(n), "human", f"text {n}", rng.random(), None) for n in range(200)]
    with open_tables([write_one(tmp_path, rows)]) as connection:
        (left_out,) = connection.execute("SELECT key FROM texts WHERE NOT few(key)").fetchone()
    rows[int(left_out)].clip = 0.3  # a score that no text has from which quantiles are taken
    path, sampled = write_one(tmp_path, rows), set()
    for seed in (0, 1):
        with open_tables([path]) as connection:
            found = statistics.histogram(connection, "itc")
            assert (found.low, found.high) == pytest.approx((-1, 0), abs=0.05)
            assert sum(found.counts["web"]) == 4000
            assert sum(statistics.histogram(connection, "clip").counts["web"]) == 1
            assert [sum(own) for own in statistics.histogram(connection, "itm", 0, 1).counts.values()] == [4000, 200]
            found = statistics.deciles(connection, 2, seed)
            assert [one.high for one in found] == pytest.approx([step / 10 for step in range(1, 11)], abs=0.08)
            counts = statistics.repetition(connection, seed).sampled
            assert 240 < counts["web"] < 360 and counts["human"] == 200
            sampled.add(str(connection.execute("FROM sampled WHERE source = 'web' ORDER BY ALL").fetchall()))
    assert len(sampled) == 2


def test_names_with_wildcards_and_folders_named_like_a_column(tmp_path):
    folder = tmp_path / "source=human"
    folder.mkdir()
    path = write_one(folder, [Scored("a", "web", "one", 0.5, 0.0)], "a[1]*.tar")
    write_one(folder, [Scored("a", "web", "other", 0.5, 0.0)], "a1b.tar")
    selected = str(folder / "kept[1]*.parquet")
    pq.write_table(pq.read_table(path).append_column("shard", [["web/a[1]*.tar"]]), selected)
    with open_tables([path]) as connection:
        statistics.add_selected(connection, selected)
        assert connection.execute("SELECT filename, source, text FROM texts").fetchall() == [(path, "web", "one")]
        assert statistics.kept_by_selection(connection) == {"images": (1, 1), "web": (1, 1)}


def test_a_folder_for_temporary_files_with_an_apostrophe(tmp_path, monkeypatch):
    (tmp_path / "Ann's").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "Ann's"))
    with open_tables([write_one(tmp_path, [Scored("a", "web", "one", 0.5, 0.0)])]) as connection:
        assert statistics.by_source(connection)["web"]["texts"] == 1


def test_a_damaged_table_is_named(tmp_path):
    path = Path(write_one(tmp_path, [Scored(str(n), "web", f"text {n * n}", n / 500, 0.0) for n in range(500)]))
    content = bytearray(path.read_bytes())
    content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)
    path.write_bytes(content)
    with (
        pytest.raises(WorkError, match=r"/0\.capfilt\.parquet cannot be read: ") as error,
        open_tables([str(path)]) as one,
    ):
        statistics.repetition(one, 0)
    assert "\n" not in str(error.value)
