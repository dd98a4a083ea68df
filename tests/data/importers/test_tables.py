"""Web-scale tables joined to shards: equal to a join in plain Python, used by rules and training, refused if wrong."""

import json
import random
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from vlp.capfilt.selection import select
from vlp.cli.main import app
from vlp.config import TextChoiceConfig
from vlp.data.importers import tables
from vlp.data.importers.tables import import_tables
from vlp.data.score_tables import SCHEMA, Scored, table_path, write_table
from vlp.data.shard_index import expand_shards, index_shard
from vlp.data.shard_writer import ShardWriter
from vlp.data.shards import iterate_samples
from vlp.data.text_choice import TextReader, check_choice
from vlp.errors import UserError

SHARDS, SAMPLES = 3, 5


def facts_of(number):
    return {"uid": f"{number:032x}", "url": f"http://a/{number}", "sha256": f"{number:064x}"}


@pytest.fixture
def shards(tmp_path, scenes):
    """Three shards of five samples whose JSON has uid, url and sha256; their pattern."""
    images = [sample.image for sample in iterate_samples(f"{scenes}/00000.tar")]
    with ShardWriter(tmp_path / "web", SAMPLES) as writer:
        for number in range(SHARDS * SAMPLES):
            writer.write(f"{number:09d}", images[number], "png", f"text {number}", facts_of(number))
    return f"{tmp_path}/web/*.tar"


def write_rows(tmp_path, rows, files=2):
    folder = tmp_path / "tables"
    folder.mkdir(exist_ok=True)
    names = list(rows[0])
    for number in range(files):
        part = rows[number::files]
        pq.write_table(pa.table({name: [row[name] for row in part] for name in names}), folder / f"{number}.parquet")
    return f"{folder}/*.parquet"


def read_rows(shards, name):
    return [pq.read_table(table_path(shard, name)).to_pylist() for shard in expand_shards(shards)]


def laion_coco(number):
    """A row in the layout of LAION-COCO."""
    captions = [f"made {number}", " ", f"other {number}", f"made {number}"]
    return {
        **{
            "URL": f"http://a/{number}",
            "TEXT": f"text {number}",
            "similarity": 0.3,
            "hash": number,
            "punsafe": number / 20,
        },
        **{"pwatermark": 0.1, "top_caption": captions[0], "all_captions": captions},
        "all_similarities": [0.5, 0.1, 0.25, 0.5],
    }


def test_laion_coco_by_url(shards, tmp_path):
    rows = [laion_coco(number) for number in (*range(1, 15), 99, 3)]
    rows[-1]["TEXT"] = "a second row of an image"
    counts = import_tables(write_rows(tmp_path, rows, files=1), shards, "laion")
    assert (counts.on, counts.rows, counts.rows_without_sample) == ("URL", 16, 1)
    assert (counts.samples, counts.samples_without_row, counts.samples_with_several_rows) == (15, 1, 1)
    assert counts.scores == ["similarity", "hash", "punsafe", "pwatermark"] and counts.texts == 14 * 3
    found = [row for rows in read_rows(shards, "laion") for row in rows]
    assert [row["key"] for row in found] == [f"{number:09d}" for number in range(1, 15) for _ in range(3)]
    assert [(row["source"], row["caption_id"], row["text"], row["clip"]) for row in found if row["hash"] == 3] == [
        ("web", 0, "text 3", np.float32(0.3)),
        ("synthetic", 0, "made 3", np.float32(0.5)),
        ("synthetic", 1, "other 3", np.float32(0.25)),
    ]
    assert all(row["uid"] == facts_of(row["hash"])["uid"] and row["punsafe"] == row["hash"] / 20 for row in found)


LAYOUTS = {
    "datacomp": (
        "uid",
        lambda n: {
            **{"uid": f"{n:032x}", "url": "u", "text": f"text {n}", "original_width": 640, "original_height": 480},
            **{"clip_b32_similarity_score": 0.2, "clip_l14_similarity_score": 0.3, "face_bboxes": [[0.1, 0.2]]},
            "sha256": "of no sample",
        },
        [("web", "text 4", 0.3)],
        ["original_width", "original_height", "clip_b32_similarity_score", "clip_l14_similarity_score"],
    ),
    "coyo": (
        "url",
        lambda n: {
            **{"id": n, "url": f"http://a/{n}", "text": f"text {n}", "width": 640, "height": 480, "image_phash": "a"},
            **{"clip_similarity_vitb32": 0.1, "clip_similarity_vitl14": 0.2, "nsfw_score_opennsfw2": 0.01},
            **{"watermark_score": 0.5, "aesthetic_score_laion_v2": 5.0, "num_faces": 1},
        },
        [("web", "text 4", 0.2)],
        ["original_width", "nsfw_score_opennsfw2", "aesthetic_score_laion_v2", "num_faces", "image_phash"],
    ),
    "recap": (
        "sha256",
        lambda n: {
            **{"url": "u", "re_caption": f"a long text {n}", "org_caption": f"text {n}", "sha256": f"{n:064X}"},
            **{"key": "other", "re_clip_score": 0.4, "org_clip_score": 0.2, "re_length": 3, "org_length": 2},
        },
        [("web", "text 4", 0.2), ("synthetic", "a long text 4", 0.4)],
        ["re_length", "org_length"],
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_official_layouts(name, shards, tmp_path):
    on, row, texts, scores = LAYOUTS[name]
    counts = import_tables(write_rows(tmp_path, [row(number) for number in range(15)]), shards, name)
    assert (counts.on, counts.rows_without_sample, counts.samples_without_row) == (on, 0, 0)
    assert set(scores) <= set(counts.scores)
    found = [row for rows in read_rows(shards, name) for row in rows if row["key"] == "000000004"]
    expected = [(source, text, float(np.float32(clip))) for source, text, clip in texts]
    assert sorted((row["source"], row["text"], row["clip"]) for row in found) == sorted(expected)
    assert all(len(found) == len(texts) and row[score] is not None for row in found for score in scores)
    for shard in expand_shards(shards):
        check_choice(shard, TextChoiceConfig(table=name, score="clip", floor=0.1))
    reader, first = TextReader(), index_shard(expand_shards(shards)[0])
    read = reader.read(first, 4, TextChoiceConfig(table=name))
    assert sorted((text.source, text.text) for text in read) == sorted((source, text) for source, text, _ in texts)


@pytest.mark.parametrize("at_once", (1, 4, 50_000))
def test_any_join_equals_one_in_plain_python(at_once, shards, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROWS_AT_ONCE", at_once)
    rng = random.Random(at_once)
    for on in ("key", "uid", "sha256", "url"):
        rows = []
        for place in range(40):
            number = rng.randrange(30)
            name = {"key": f"{number:09d}", **facts_of(number)}[on]
            rows.append(
                {on: rng.choice((name, name, None)), "caption": rng.choice(("", f"row {place}")), "score": place}
            )
        counts = import_tables(write_rows(tmp_path, rows, files=1), shards, "any")
        by_name = {}
        for row in rows:
            by_name.setdefault(row[on], []).append(row)
        found, without, several = read_rows(shards, "any"), 0, 0
        for shard, read in zip(expand_shards(shards), found, strict=True):
            expected = []
            for sample in iterate_samples([shard]):
                joined = by_name.get({"key": sample.key, **sample.info}[on], [])
                without, several = without + (not joined), several + (len(joined) > 1)
                expected += [(sample.key, row["caption"], row["score"]) for row in joined[:1]]
            assert [(row["key"], row["text"], row["score"]) for row in read] == expected
        known = {f"{number:09d}" for number in range(15)} | {v for n in range(15) for v in facts_of(n).values()}
        assert counts.rows_without_sample == sum(row[on] not in known for row in rows)
        assert (counts.samples_without_row, counts.samples_with_several_rows) == (without, several)


def test_the_parquet_files_of_img2dataset_are_read_instead_of_the_samples(shards, tmp_path, monkeypatch):
    for number, shard in enumerate(expand_shards(shards)):
        numbers = [*range(number * SAMPLES, (number + 1) * SAMPLES)]
        rows = {"key": [f"{n:09d}" for n in [*numbers, 77]], "hash": [n * 2 for n in [*numbers, 77]], "uid": [None] * 6}
        pq.write_table(pa.table(rows), shard.replace(".tar", ".parquet"))
    monkeypatch.setattr(tables, "iterate_samples", lambda *_: iter(()))
    path = write_rows(tmp_path, [{"hash": 2 * number, "score": number} for number in range(15)])
    counts = import_tables(path, shards, "any", on="hash")
    assert (counts.samples_without_row, counts.rows_without_sample) == (0, 0)
    assert [row["score"] for rows in read_rows(shards, "any") for row in rows] == [*range(15)]


def test_rules_name_the_columns(shards, tmp_path):
    for shard in expand_shards(shards):
        write_table(shard, [Scored(one.key, "web", one.text, 0.9, 0.9) for one in iterate_samples([shard])], {})
    rows = [{**laion_coco(number), "NSFW": rows_word(number)} for number in range(12)]
    import_tables(write_rows(tmp_path, rows), shards, "laion")
    scores, laion = shards.replace(".tar", ".capfilt.parquet"), shards.replace(".tar", ".laion.parquet")

    def keys(rules, scores=scores):
        (tmp_path / "kept.parquet").unlink(missing_ok=True)
        select(scores, rules, table=str(tmp_path / "kept.parquet"), also={"laion": laion}, quiet=True)
        return [int(key) for key in pq.read_table(tmp_path / "kept.parquet")["key"].to_pylist()]

    assert keys("itm > 0.5 and laion.punsafe < 0.2") == [0, 1, 2, 3]
    assert keys("laion.NSFW == 'UNSURE' and laion.hash <= 4") == [1, 3]
    assert keys("not laion.punsafe < 0.2") == [*range(4, 15)]  # the last three have no row
    assert keys("laion.clip >= 0.3") == [*range(12)]  # columns of texts join by text
    assert keys("web(punsafe < 0.1) and hash > 0", laion) == [1]  # the table itself as score table
    with pytest.raises(UserError, match=r"no column laion\.pusnafe in rules; did you mean punsafe\?"):
        keys("laion.pusnafe < 0.1")


def test_columns_named_in_other_case_than_those_of_score_tables(shards, tmp_path):
    """LAION has WIDTH and HEIGHT, which SQL takes for width and height."""
    rows = [{"url": f"http://a/{n}", "WIDTH": n, "Nll": n / 2, "original_Nll": -n} for n in range(15)]
    counts = import_tables(write_rows(tmp_path, rows), shards, "laion")
    assert counts.scores == ["original_WIDTH", "original_original_Nll", "original_Nll"]
    found = [row for rows in read_rows(shards, "laion") for row in rows]
    assert [row["original_WIDTH"] for row in found] == [*range(15)] and not any(row["width"] for row in found)
    assert [row["original_original_Nll"] for row in found] == [n / 2 for n in range(15)]
    laion, kept = shards.replace(".tar", ".laion.parquet"), tmp_path / "kept.parquet"
    for shard in expand_shards(shards):
        write_table(shard, [Scored(one.key, "web", one.text, 0.9, 0.9) for one in iterate_samples([shard])], {})
    rules = "laion.original_WIDTH >= 12"
    select(shards.replace(".tar", ".capfilt.parquet"), rules, table=str(kept), also={"laion": laion}, quiet=True)
    assert [int(key) for key in pq.read_table(kept)["key"].to_pylist()] == [12, 13, 14]


def test_a_column_named_value_is_imported_like_any_other(shards, tmp_path):
    path = write_rows(tmp_path, [{"key": f"{number:09d}", "value": number} for number in range(15)])
    assert import_tables(path, shards, "any").samples_without_row == 0
    assert [row["value"] for rows in read_rows(shards, "any") for row in rows] == [*range(15)]


def test_rules_refuse_a_column_that_sql_would_take_for_another(shards, tmp_path):
    for shard in expand_shards(shards):
        write_table(shard, [Scored("a", "web", "a text", 0.9, 0.9, width=3)], {})
        path = table_path(shard)
        table = pq.read_table(path)
        pq.write_table(table.append_column("WIDTH", [[7]]), path)
    scores, kept = shards.replace(".tar", ".capfilt.parquet"), str(tmp_path / "kept.parquet")
    with pytest.raises(UserError, match="no column WIDTH in rules"):
        select(scores, "WIDTH == 7", table=kept, quiet=True)


def rows_word(number):
    return "UNSURE" if number % 2 else "UNLIKELY"


def test_a_join_by_keys_in_the_command(shards, tmp_path):
    path = write_rows(tmp_path, [{"key": f"{number:09d}", "alt": "x", "score": 1.5} for number in range(20)])
    arguments = [
        "data",
        "import",
        "tables",
        path,
        "--shards",
        shards,
        "--name",
        "mine",
        "--texts",
        "alt=human",
        "--json",
    ]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    counts = json.loads(result.output.splitlines()[-1])
    assert counts == {
        **{"on": "key", "rows": 20, "rows_without_sample": 5, "samples": 15, "samples_without_row": 0},
        **{"samples_with_several_rows": 0, "texts": 15, "scores": ["score"]},
    }
    assert {row["source"] for rows in read_rows(shards, "mine") for row in rows} == {"human"}


def test_wrong_tables_are_one_sentence(shards, tmp_path):
    good = [{"key": "000000001", "score": 1.0}]
    path = write_rows(tmp_path, good, files=1)
    first = tmp_path / "first.parquet"
    shutil.copy(tmp_path / "tables" / "0.parquet", first)

    def refused(words, table=path, **settings):
        with pytest.raises(UserError, match=words):
            import_tables(str(table), shards, **{"name": "any", **settings})

    for content, words in {
        b"": "looks like an empty file",
        b"URL\tTEXT\nhttp://a\tb": "looks like TSV",
        b'{"images": []}': "looks like JSON",
        b"\x93NUMPY": "looks like a NumPy array",
        (tmp_path / "web" / "00000.tar").read_bytes(): "looks like a tar",
    }.items():
        (tmp_path / "wrong").write_bytes(content)
        refused(words, tmp_path / "wrong")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "wrong")
    refused("none of the columns uid, sha256, key and url .*the columns are a", tmp_path / "wrong")
    pq.write_table(pa.table({"key": ["a"], "Score": [1.0], "score": [2.0]}), tmp_path / "wrong")
    refused(r"columns that SQL takes for the same \(Score, score\); rename all but one", tmp_path / "wrong")
    pq.write_table(pa.table({"image": [{"bytes": b"", "path": ""}]}), tmp_path / "wrong")
    refused("use `vlp data import hf`", tmp_path / "wrong")
    refused("no column 'b' to join on; its columns are key, score", on="b")
    refused("no column 'b' of texts", texts={"b": "web"})
    refused("Rules cannot use the name 'a-b'", name="a-b")
    pq.write_table(pa.table({"key": ["x", "y"], "score": [1.0, 2.0]}), first)
    refused("None of the 2 rows belongs to one of the 15 samples by key .such as x", first)
    shutil.copy(tmp_path / "wrong", tmp_path / "tables" / "1.parquet")
    refused("use `vlp data import hf`")
    pq.write_table(pa.table({"key": ["x"]}), tmp_path / "tables" / "1.parquet")
    refused(r"have different columns \(score\)")
    (tmp_path / "tables" / "1.parquet").unlink()
    shard = expand_shards(shards)[1]
    write_table(shard, [Scored("a", "web", "a", 0.5, 0.5)], {})
    refused("has a table capfilt of `vlp capfilt score`", name="capfilt")
    import_tables(path, shards, "any")
    refused("is a score table of vlp already", table_path(shard, "any"))
    assert pq.read_schema(table_path(shard, "any")).names == [*SCHEMA.names, "score"]
    assert {one.suffix for one in (tmp_path / "web").iterdir()} == {".tar", ".parquet"}
