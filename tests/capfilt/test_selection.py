"""`select`: its three outputs, what it refuses before it writes, and what a kill or a full disk leaves behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.processes import run_code
from vlp import files
from vlp.capfilt import selection, uids
from vlp.capfilt.selection import select
from vlp.data.score_tables import METADATA, Scored, table_path, write_table
from vlp.data.shard_index import expand_shards
from vlp.data.shard_writer import ShardWriter
from vlp.data.shards import iterate_samples, read_members
from vlp.errors import FullDiskError, UserError


@pytest.fixture
def scored(tmp_path, web_scenes):
    """A folder of scored shards with two texts per image and hexadecimal uids; some images occur twice."""
    folder = shutil.copytree(web_scenes, tmp_path / "web")
    for number, shard in enumerate(expand_shards(str(folder / "*.tar"))):
        rows = []
        for place, sample in enumerate(iterate_samples([shard])):
            uid = f"{(place * 0x9E3779B97F4A7C15F39CC0605CEDC834 + number % 2) % 2**128:032x}" + "0" * (32 * number)
            rows.append(Scored(sample.key, "web", sample.text, place / 20, 0.0, uid))
            rows.append(Scored(sample.key, "synthetic", "a made one", 0.9 - place / 20, 0.0, uid, width=place))
        write_table(shard, rows, {})
    return folder


def tables_of(folder):
    return str(folder / "*.capfilt.parquet")


def rows_of(folder):
    return [
        {**row, "shard": shard}
        for shard in expand_shards(str(folder / "*.tar"))
        for row in pq.read_table(table_path(shard)).to_pylist()
    ]


def test_a_uid_list_is_sorted_and_has_each_image_once(scored, tmp_path, monkeypatch):
    monkeypatch.setattr(uids, "PAIRS_AT_ONCE", 7)
    counts = select(tables_of(scored), "itm >= 0.7", uids=str(tmp_path / "uids.npy"))
    expected = sorted({row["uid"][:32] for row in rows_of(scored) if row["itm"] >= 0.7})
    found = np.load(tmp_path / "uids.npy")
    assert found.dtype == np.dtype("u8,u8")
    assert [f"{high:016x}{low:016x}" for high, low in found.tolist()] == expected
    assert len(expected) < counts.images  # some images are in two shards


def test_an_empty_uid_list_and_uids_that_are_not_hexadecimal(scored, tmp_path):
    select(tables_of(scored), "itm > 2", uids=str(tmp_path / "none.npy"))
    assert np.load(tmp_path / "none.npy").shape == (0,)
    shard = expand_shards(str(scored / "*.tar"))[1]
    write_table(shard, [Scored("a", "web", "a text", 0.9, 0.0, uid="scene-1-0")], {})
    with pytest.raises(UserError, match="uid 'scene-1-0' does not begin with 32 hexadecimal digits"):
        select(tables_of(scored), "itm >= 0", uids=str(tmp_path / "uids.npy"))
    assert {path.name for path in tmp_path.iterdir()} == {"web", "none.npy"}


def test_a_table_has_the_selected_rows_with_their_shards(scored, tmp_path):
    select(tables_of(scored), "itm >= 0.5 or width == 3", table=str(tmp_path / "kept.parquet"))
    expected = [row for row in rows_of(scored) if row["itm"] >= 0.5 or row["width"] == 3]
    assert pq.read_table(tmp_path / "kept.parquet").to_pylist() == expected


def test_a_folder_named_like_a_column_does_not_replace_the_column(scored, tmp_path):
    named = scored.rename(tmp_path / "source=cc12m")
    select(tables_of(named), "web(itm >= 0.5)", table=str(tmp_path / "kept.parquet"))
    expected = [row for row in rows_of(named) if row["source"] == "web" and row["itm"] >= 0.5]
    assert expected and pq.read_table(tmp_path / "kept.parquet").to_pylist() == expected


@pytest.mark.parametrize("form", ["output", "uids", "table"])
def test_rules_on_a_score_that_no_text_has_are_refused(scored, tmp_path, form):
    target = str(tmp_path / "kept")
    for rules in ("clip >= 0.2", "itm >= 0 and best(1, clip)", "top(clip, 0.5)"):
        with pytest.raises(
            UserError, match="No text has a value of clip; score the shards with a CLIP filter, or leave"
        ):
            select(tables_of(scored), rules, **{form: target})
    for shard in expand_shards(str(scored / "*.tar")):
        write_table(shard, [Scored("a", "web", "a text", 0.5, 0.5)], {}, name="other")
    also = {"other": str(scored / "*.other.parquet")}
    with pytest.raises(UserError, match=r"No text has a value of other\.nll; score the shards with a captioner, or"):
        select(tables_of(scored), "other.nll < 3", also=also, **{form: target})
    assert {path.name for path in tmp_path.iterdir()} == {"web"}
    select(tables_of(scored), "clip >= 0.2 or itm >= 0.5", **{form: target})  # something is selected
    assert Path(target).exists()


def test_a_folder_stands_for_its_score_tables(scored, tmp_path):
    folder = shutil.copytree(scored, tmp_path / "we[b] 2")
    write_table(expand_shards(str(scored / "*.tar"))[0].replace(str(scored), str(folder)), [], {}, name="other")
    for name, given in (("glob", tables_of(scored)), ("folder", f"{folder}/")):
        select(given, "itm >= 0.5", table=str(tmp_path / f"{name}.parquet"))
    glob, whole = (pq.read_table(tmp_path / f"{name}.parquet").drop(["shard"]) for name in ("glob", "folder"))
    assert whole == glob and len(whole)
    with pytest.raises(UserError, match=r"No score table matches '.*/empty/\*\.capfilt\.parquet'"):
        (tmp_path / "empty").mkdir()
        select(str(tmp_path / "empty"), "itm >= 0.5", table=str(tmp_path / "kept"))


def test_rules_use_the_columns_of_other_tables(scored, tmp_path):
    for shard in expand_shards(str(scored / "*.tar")):
        rows = [Scored(**row) for row in pq.read_table(table_path(shard)).to_pylist()]
        for row in rows:
            row.itm = 0.9 if int(row.key) % 3 == 0 else 0.1
        write_table(shard, rows[::-1], {}, name="other")
    target, glob = str(tmp_path / "kept.parquet"), str(scored / "*.other.parquet")
    command = ["capfilt", "select", "(itm + other.itm) / 2 >= 0.7", "--scores", tables_of(scored)]
    run_command(*command, "--also", f"other={glob}", "--table", target)
    kept = {(row["shard"], row["key"], row["source"]) for row in pq.read_table(target).to_pylist()}
    assert kept == {
        (row["shard"], row["key"], row["source"])
        for row in rows_of(scored)
        if (row["itm"] + float(np.float32(0.9 if int(row["key"]) % 3 == 0 else 0.1))) / 2 >= 0.7
    }
    with pytest.raises(UserError, match="No table given as other belongs to a shard"):
        elsewhere = shutil.copytree(scored, tmp_path / "elsewhere")
        select(tables_of(elsewhere), "other.itm > 0", table=str(tmp_path / "x"), also={"other": [glob]})


def test_human_texts_keep_their_source_and_samples_their_members(tmp_path):
    info = {"captions": [{"text": "said", "source": "human", "by": 3}], "license": "CC0", "deep": {"a": [1]}}
    with ShardWriter(str(tmp_path / "in")) as writer:
        writer.write("a", b"image", "jpg", "old", info, {"cls": b"7", "mask.png": b"mask"})
    shard = str(tmp_path / "in/00000.tar")
    rows = [Scored("a", "human", "said", 0.9, 0.0), Scored("a", "synthetic", "made", 0.8, 0.0)]
    write_table(shard, rows, {})
    select(table_path(shard), "best(1)", str(tmp_path / "out"))
    ((key, members),) = read_members(str(tmp_path / "out/00000.tar"))
    chosen = {"captions": [{"text": "said", "source": "human"}]}
    assert (key, json.loads(members.pop("json"))) == ("a", {**info, **chosen})
    assert members == {"jpg": b"image", "txt": b"said", "cls": b"7", "mask.png": b"mask"}


def test_wrong_calls_are_refused_before_anything_is_written(scored, tmp_path):
    first, second, third = expand_shards(str(scored / "*.tar"))
    target = str(tmp_path / "out")
    for wrong in ({}, {"output": target, "uids": target}, {"uids": target, "human": first}):
        with pytest.raises(UserError, match="Give exactly one output"):
            select(tables_of(scored), "itm > 0", **wrong)
    os.rename(second, tmp_path / "away.tar")
    with pytest.raises(UserError, match=r"00001\.tar, which is missing"):
        select(tables_of(scored), "itm > 0", target)
    select(tables_of(scored), "itm > 0", table=str(tmp_path / "kept.parquet"))  # needs no shards
    os.rename(tmp_path / "away.tar", second)
    content = bytearray(Path(third).read_bytes())
    content[600] ^= 1
    Path(third).write_bytes(content)  # the size is the same
    for form in ("output", "uids", "table"):
        with pytest.raises(UserError, match=r"00002\.tar was changed after it was scored"):
            select(tables_of(scored), "itm > 0", **{form: target})
    path = Path(table_path(third))
    old = pq.read_table(path)
    said = json.loads(old.schema.metadata[METADATA.encode()])
    pq.write_table(old.replace_schema_metadata({METADATA: json.dumps({**said, "version": "1"})}), path)
    with pytest.raises(UserError, match="has format version 1, not 2; score its shard again"):
        select(tables_of(scored), "itm > 0", target)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="is not a score table"):
        select(tables_of(scored), "itm > 0", target)
    assert {one.name for one in tmp_path.iterdir()} == {"web", "kept.parquet"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("form", ("output", "uids", "table"))
def test_a_full_disk_ends_with_one_sentence(scored, tmp_path, form, monkeypatch):
    result = files.temporary_path(tmp_path / "out")

    name = {"output": "_write_shards", "uids": "write_uids", "table": "_write_table"}[form]
    write = getattr(selection, name)

    def start(*rest):  # called when the temporary paths exist
        os.symlink("/dev/full", files.temporary_path(result / "00000.tar") if form == "output" else result)
        write(*rest)

    monkeypatch.setattr(selection, name, start)
    monkeypatch.setattr(files, "remove_leftovers", lambda path: None)
    with pytest.raises(FullDiskError, match=r"out(/00000\.tar)? cannot be written: no space left on device"):
        select(tables_of(scored), "itm >= 0", **{form: str(tmp_path / "out")})
    assert {one.name for one in tmp_path.iterdir()} == {"web"}


def run_command(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "vlp", *map(str, arguments)]
    subprocess.run(command, check=True, env=environment, capture_output=True)


def test_a_killed_call_is_repeated_whole(scored, tmp_path):
    whole = tmp_path / "whole"
    select(tables_of(scored), "itm >= 0.5", str(whole))
    code = (
        "import os, signal, sys; from vlp.capfilt import selection as s; write = s._write_sample\n"
        "def die(writer, key, *rest):\n"
        "    write(writer, key, *rest)\n"
        "    if writer.number == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
        "s._write_sample = die; s.select(sys.argv[1], 'itm >= 0.5', sys.argv[2])"
    )
    killed = run_code(code, tables_of(scored), tmp_path / "out")
    assert killed.returncode == -signal.SIGKILL
    (half,) = tmp_path.glob(".out.tmp-*")
    assert (half / "00000.tar").exists() and not (tmp_path / "out").exists()
    select(tables_of(scored), "itm >= 0.5", str(tmp_path / "out"))
    assert {one.name for one in tmp_path.iterdir()} == {"web", "whole", "out"}
    for shard in expand_shards(str(whole / "*.tar")):
        assert (tmp_path / "out" / os.path.basename(shard)).read_bytes() == Path(shard).read_bytes()
