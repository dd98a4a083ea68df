"""CapFilt on a real S3 server: the same tables as on disk, and whole outputs in the bucket."""

import hashlib
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.processes import run_code
from tests.scoring import score_shards
from vlp.capfilt.run import run_capfilt
from vlp.capfilt.selection import select
from vlp.config import CapFiltConfig, DataConfig, SamplingOverrides, SourceConfig, TextChoiceConfig
from vlp.data.examples import CaptionExamples
from vlp.data.loader import training_loader
from vlp.data.score_tables import METADATA, open_table, read_table, table_path, table_settings
from vlp.data.shard_index import expand_shards, index_shard
from vlp.data.shards import iterate_samples
from vlp.data.text_choice import TextReader, check_choice
from vlp.data.tokenizer import load_tokenizer
from vlp.errors import UserError
from vlp.report.capfilt_page import write_capfilt_report

DECODING = SamplingOverrides(max_length=10, min_length=3)
HERE = ("path", "shard", "about")  # what tables of equal shards in different places record


@pytest.fixture(scope="module")
def scored(web_scenes, models, tmp_path_factory) -> Path:
    """A folder of scored shards."""
    folder = tmp_path_factory.mktemp("scored") / "web"
    shutil.copytree(web_scenes, folder)
    score_shards(f"{folder}/*.tar", *models, DECODING, precision="fp32")
    return folder


def same_tables(remote: str, local: Path) -> None:
    """Check that all tables of a folder or bucket equal the local ones, apart from where their shards are."""
    names = [path.name for path in sorted(local.glob("*.capfilt.parquet"))]
    assert names == ["00000.capfilt.parquet", "00001.capfilt.parquet", "00002.capfilt.parquet"]
    for name in names:
        with open_table(f"{remote}/{name}") as file:
            assert file.read().equals(pq.read_table(local / name))
        own, other = (table_settings(f"{folder}/{name}") for folder in (remote, local))
        assert own and other
        assert {key: own[key] for key in own if key not in HERE} == {k: other[k] for k in other if k not in HERE}


@pytest.fixture
def web(s3, web_scenes) -> str:
    """The address of the shards of `scored`, without tables."""
    return s3.upload(web_scenes, "web")


def test_remote_shards_are_scored_as_local_ones(s3, web, scored, models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    counts = score_shards(f"{web}/*.tar", *models, DECODING, precision="fp32")
    assert (counts.shards, counts.images) == (3, 60)
    same_tables(web, scored)
    again = score_shards(f"{web}/*.tar", *models, DECODING, precision="fp32")
    assert (again.shards, again.skipped_shards) == (0, 3)
    score_shards(f"{web}/*.tar", *models, DECODING, precision="fp32", tables=str(tmp_path / "tables"))
    same_tables(str(tmp_path / "tables"), scored)
    one = f"{web}/00001.tar"
    s3.files.pipe_file(one, s3.files.cat_file(one) + bytes(512))  # another file with the same samples
    with pytest.raises(UserError, match=r"web/00001\.tar was changed after it was scored; score it again"):
        select(f"{web}/*.capfilt.parquet", output=str(tmp_path / "out"), quiet=True)
    assert score_shards(f"{web}/*.tar", *models, DECODING, precision="fp32").shards == 1


def test_remote_tables_are_selected_as_local_ones(s3, scored, tmp_path):
    shutil.copytree(scored, tmp_path / "web")
    for path in (tmp_path / "web").glob("*.parquet"):
        table = pq.read_table(path)
        uids = pa.array([hashlib.sha256(f"{path.name} {key}".encode()).hexdigest() for key in table["key"].to_pylist()])
        pq.write_table(table.set_column(1, "uid", uids), path)
    web, rules = s3.upload(tmp_path / "web", "web"), "itm >= 0.3 and best(1)"
    tables = f"{web}/*.capfilt.parquet"  # they record the local shards, and are next to the remote ones
    local = f"{tmp_path}/web/*.capfilt.parquet"
    for name, bucket in (("out", f"{s3.url}/out"), ("uids", f"{s3.url}/kept.npy"), ("table", f"{s3.url}/kept.parquet")):
        form = "output" if name == "out" else name
        here = str(tmp_path / {"out": "out", "uids": "kept.npy", "table": "kept.parquet"}[name])
        assert select(tables, rules, quiet=True, **{form: bucket}) == select(local, rules, quiet=True, **{form: here})
    assert s3.names("out") == ["out/00000.tar", "out/00001.tar", "out/00002.tar", "out/_SUCCESS"]
    for shard in expand_shards(f"{tmp_path}/out/*.tar"):
        assert s3.files.cat_file(f"{s3.url}/out/{Path(shard).name}") == Path(shard).read_bytes()
    assert s3.files.cat_file(f"{s3.url}/kept.npy") == (tmp_path / "kept.npy").read_bytes()
    assert np.load(tmp_path / "kept.npy").size
    with open_table(f"{s3.url}/kept.parquet") as file:
        remote, kept = file.read(), pq.read_table(tmp_path / "kept.parquet")
    assert remote.drop(["shard"]).equals(kept.drop(["shard"]))
    assert set(remote["shard"].to_pylist()) == set(expand_shards(f"{web}/*.tar"))
    with pytest.raises(UserError, match="out exists already; choose another name or remove it"):
        select(tables, rules, f"{s3.url}/out", quiet=True)


def test_the_report_of_remote_tables_is_that_of_local_ones(s3, scored, tmp_path):
    web = s3.upload(scored, "web")
    write_capfilt_report(f"{scored}/*.capfilt.parquet", str(tmp_path / "local.html"))
    write_capfilt_report(f"{web}/*.capfilt.parquet", f"{s3.url}/page.html")
    assert s3.files.cat_file(f"{s3.url}/page.html") == (tmp_path / "local.html").read_bytes()


def test_a_whole_run_in_a_bucket(s3, web, models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = CapFiltConfig(
        shards=f"{web}/*.tar",
        captioner=models[0],
        filter=models[1],
        tables=f"{s3.url}/tables",
        output=f"{s3.url}/new",
        decoding=DECODING,
        rules="itm >= 0",
    )
    result = run_capfilt(config)
    assert result["selected"]["images"] == 60
    shards = [f"new/0000{number}.tar" for number in range(3)]
    assert s3.names("new") == [*shards, "new/_SUCCESS", "new/report.html"]
    assert s3.names("web") == [f"web/0000{number}.tar" for number in range(3)]
    assert "60 of 60 images" in " ".join(s3.files.cat_file(f"{s3.url}/new/report.html").decode().split())
    assert len(list(iterate_samples(f"{s3.url}/new/*.tar"))) == 60
    with pytest.raises(UserError, match="new exists already"):
        run_capfilt(config)
    s3.files.rm(f"{s3.url}/new", recursive=True)
    assert run_capfilt(config)["scored"]["skipped_shards"] == 3


def test_a_killed_selection_leaves_nothing_that_looks_complete(s3, scored, tmp_path):
    code = (
        "import os, signal, sys; from vlp.capfilt import selection as s; write = s._write_sample\n"
        "def die(writer, key, *rest):\n"
        "    write(writer, key, *rest)\n"
        "    if writer.number == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
        "s._write_sample = die; s.select(sys.argv[1], 'itm >= 0', sys.argv[2])"
    )
    tables, out = f"{scored}/*.capfilt.parquet", f"{s3.url}/out"
    killed = run_code(f"import tempfile; tempfile.tempdir = {str(tmp_path)!r}\n{code}", tables, out)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert s3.names() == ["out/00000.tar", "out/_STARTED"]
    select(tables, "itm >= 0", out, quiet=True)
    assert s3.names() == ["out/00000.tar", "out/00001.tar", "out/00002.tar", "out/_SUCCESS"]


def test_training_reads_tables_in_a_folder_or_bucket(s3, scored, tmp_path):
    shutil.copytree(scored, tmp_path / "shards", ignore=shutil.ignore_patterns("*.parquet"))
    tables = tmp_path / "tables"
    tables.mkdir()
    for path in scored.glob("*.parquet"):
        shutil.copy(path, tables)
    shard = str(tmp_path / "shards" / "00001.tar")
    index, expected = index_shard(shard), read_table(str(scored / "00001.tar")).to_pylist()
    for folder in (str(tables), s3.upload(tables, "tables")):
        choice = TextChoiceConfig(tables=folder)
        check_choice(shard, choice)
        found = [text.text for row in range(20) for text in TextReader().read(index, row, choice)]
        assert found == [row["text"] for row in expected]
    with pytest.raises(UserError, match=r"00001\.tar has no score table .*/none/00001\.capfilt\.parquet; run"):
        check_choice(shard, TextChoiceConfig(tables=f"{s3.url}/none"))


def test_training_names_images_that_are_not_scored(scored, tokenizer_folder, tmp_path):
    shutil.copytree(scored, tmp_path / "web")
    for path in (tmp_path / "web").glob("*.parquet"):
        table = pq.read_table(path)
        keys = table["key"].unique().to_pylist()[:5]  # of 20
        pq.write_table(table.filter(pc.invert(pc.is_in(table["key"], value_set=pa.array(keys)))), path)
    sources = [SourceConfig(f"{tmp_path}/web/*.tar", texts=TextChoiceConfig())]
    tokenizer = load_tokenizer(str(tokenizer_folder))
    loader = training_loader(DataConfig(sources, workers=0), 32, CaptionExamples(tokenizer), 8)
    assert loader.filtered_counts == {"not scored": 15}
    streamed = training_loader(
        DataConfig(sources, "streamed", workers=0, shuffle_buffer=20), 32, CaptionExamples(tokenizer), 8
    )
    for _ in zip(range(8), streamed, strict=False):
        pass
    assert set(streamed.filtered_counts) == {"not scored"}


def test_tables_that_two_shards_would_share(scored, models, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(scored / "00000.tar", tmp_path / name / "0.tar")
    settings = {"tables": str(tmp_path / "tables"), "precision": "fp32"}
    with pytest.raises(UserError, match=r"a/0\.tar and .*b/0\.tar would share the score table .*tables/0\.capfilt"):
        score_shards(f"{tmp_path}/[ab]/0.tar", *models, DECODING, **settings)
    score_shards(f"{tmp_path}/a/0.tar", *models, DECODING, **settings)
    with pytest.raises(UserError, match=r"is the score table of .*a/0\.tar, not of .*b/0\.tar; set"):
        score_shards(f"{tmp_path}/b/0.tar", *models, DECODING, **settings)
    shutil.move(tmp_path / "a", tmp_path / "c")  # a data set that was moved keeps its tables
    assert score_shards(f"{tmp_path}/c/0.tar", *models, DECODING, **settings).skipped_shards == 1


def test_a_table_in_a_folder_of_its_own_finds_its_shard(scored, tmp_path):
    tables = tmp_path / "tables"
    tables.mkdir()
    for path in scored.glob("*.parquet"):
        shutil.copy(path, tables)
    select(f"{tables}/*.capfilt.parquet", "itm >= 0", str(tmp_path / "out"), quiet=True)
    assert len(list(iterate_samples(f"{tmp_path}/out/*.tar"))) == 60
    old = pq.read_table(tables / "00000.capfilt.parquet")
    facts = json.loads(old.schema.metadata[METADATA.encode()])
    del facts["path"]  # as in tables of earlier versions
    pq.write_table(old.replace_schema_metadata({METADATA: json.dumps(facts)}), tables / "00000.capfilt.parquet")
    shutil.copy(scored / "00000.tar", tables)
    select(f"{tables}/00000.capfilt.parquet", "itm >= 0", table=str(tmp_path / "kept.parquet"), quiet=True)
    assert set(pq.read_table(tmp_path / "kept.parquet")["shard"].to_pylist()) == {str(tables / "00000.tar")}


def test_remote_errors_are_one_sentence(s3, web, models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="No score table matches 's3://"):
        select(f"{web}/*.capfilt.parquet", output=f"{s3.url}/out", quiet=True)
    with pytest.raises(UserError, match=r"https://host/0\.capfilt\.parquet cannot be written; set tables"):
        score_shards("https://host/0.tar", *models, DECODING)
    assert table_path("https://host/0.tar?token=1", "mine", "s3://b/t/") == "s3://b/t/0.mine.parquet"
    assert s3.names() == [f"web/0000{number}.tar" for number in range(3)]
