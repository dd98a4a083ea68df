"""The index of many shards: equal to the shards' own, refused where it is outdated, continued after a kill."""

import gc
import itertools
import os
import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.processes import start_vlp
from vlp.cli.main import app
from vlp.config import AugmentConfig, DataConfig, SourceConfig
from vlp.data.data_index import open_index
from vlp.data.examples import CaptionExamples
from vlp.data.index_writer import cached_index, write_index
from vlp.data.indexed_loader import IndexedLoader
from vlp.data.shard_index import Keys, index_shard
from vlp.data.tokenizer import load_tokenizer
from vlp.errors import UserError, WorkError


@pytest.fixture
def shards(scenes, tmp_path, monkeypatch) -> Path:
    """The scenes, one of them cut off, and a file that is no shard; with an empty cache."""
    monkeypatch.setenv("VLP_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "shards"
    shutil.copytree(scenes, folder)
    cut = (folder / "00001.tar").read_bytes()
    image, _ = index_shard(str(folder / "00001.tar")).places(10)[0]
    (folder / "00001.tar").write_bytes(cut[: image + 10])
    (folder / "broken.tar").write_bytes(b"no shard" * 500)
    return folder


def listed(folder: Path) -> list[str]:
    return sorted(map(str, folder.glob("*.tar")))


def make_loader(tokenizer_folder, shards, index="", **settings):
    augment = AugmentConfig(crop_min=1.0, flip=False, operations=0)
    source = SourceConfig(f"{shards}/*.tar", index=str(index))
    data = DataConfig([source], max_tokens=16, augment=augment, **{"workers": 0, "max_bad_share": 0.2, **settings})
    return IndexedLoader(data, 32, CaptionExamples(load_tokenizer(str(tokenizer_folder)), 16), 4, seed=5)


def keys_of(loader, batches=30):
    return [batch.keys for batch in itertools.islice(loader, batches)]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_index_equals_the_indexes_of_its_shards(shards, tmp_path, workers, monkeypatch):
    monkeypatch.setattr("vlp.data.index_writer.SHARDS_PER_WORKER", 1)
    paths = listed(shards)
    write_index(paths, tmp_path / "index", workers)
    index = open_index(tmp_path / "index", paths)
    for number, path in enumerate(paths):
        ours, own = index.shard(number), index_shard(path)
        assert list(ours.keys) == list(own.keys) and ours.keys.arrow().to_pylist() == list(own.keys)
        assert (ours.members == own.members).all() and ours.stamp == own.stamp
        assert index.counts[number] == len(own.keys)
    bad = [one for path in paths for one in index_shard(path).bad]
    assert len(bad) == 2 and list(index.bad()) == bad
    some = open_index(tmp_path / "index", [paths[4], paths[2]])  # some of its shards, in another order
    assert list(some.shard(0).keys) == list(index_shard(paths[4]).keys) and not list(some.bad())
    copied = pickle.loads(pickle.dumps(index))
    assert list(copied.shard(3).keys) == list(index.shard(3).keys)


def test_training_sees_the_same_with_and_without_an_index_folder(shards, tmp_path, tokenizer_folder, monkeypatch):
    write_index(listed(shards), tmp_path / "index", 0)
    with_folder = keys_of(make_loader(tokenizer_folder, shards, tmp_path / "index"))
    assert keys_of(make_loader(tokenizer_folder, shards)) == with_folder
    monkeypatch.setattr("vlp.data.index_writer.index_shard", lambda path: pytest.fail("scanned again"))
    assert keys_of(make_loader(tokenizer_folder, shards, workers=2)) == with_folder  # from the cache
    moved = tmp_path / "moved"  # as on a machine that mounts the shards elsewhere
    shutil.move(shards, moved)
    assert keys_of(make_loader(tokenizer_folder, moved, tmp_path / "index")) == with_folder


def test_without_a_cache_the_index_is_temporary(shards, tmp_path, tokenizer_folder, monkeypatch):
    expected = keys_of(make_loader(tokenizer_folder, shards))
    (tmp_path / "file").touch()
    monkeypatch.setenv("VLP_CACHE", str(tmp_path / "file/cache"))
    index = cached_index(listed(shards))
    folder = index.folder
    assert folder.exists() and keys_of(make_loader(tokenizer_folder, shards)) == expected
    del index
    gc.collect()
    assert not folder.exists()


def test_a_shard_that_changes_is_indexed_again_or_refused(shards, tmp_path, tokenizer_folder, caplog):
    write_index(listed(shards), tmp_path / "index", 0)
    make_loader(tokenizer_folder, shards)
    (shards / "00001.tar").write_bytes((shards / "00002.tar").read_bytes())
    with pytest.raises(UserError, match=r"00001\.tar has changed since .* run `vlp data index` again"):
        make_loader(tokenizer_folder, shards, tmp_path / "index")
    with caplog.at_level("INFO", logger="vlp"):
        assert make_loader(tokenizer_folder, shards).epoch_size == 87
    assert "indexing 1 of 6 shards" in caplog.text
    write_index(listed(shards), tmp_path / "index", 0)  # in place of the outdated one
    assert make_loader(tokenizer_folder, shards, tmp_path / "index").epoch_size == 87
    shutil.copy(shards / "00002.tar", shards / "new.tar")
    with pytest.raises(UserError, match=r"does not have .*new\.tar; run `vlp data index` again"):
        make_loader(tokenizer_folder, shards, tmp_path / "index")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_changes_after_the_start_is_counted(shards, tokenizer_folder, workers):
    loader = make_loader(tokenizer_folder, shards, workers=workers, max_bad_share=0.9)
    data = (shards / "00000.tar").read_bytes()
    (shards / "00000.tar").write_bytes(data[:10240] + data)
    keys_of(loader, 17)
    assert loader.bad_counts["shard changed"] >= 15
    strict = make_loader(tokenizer_folder, shards, max_bad_share=0.05 + 2 / 60)
    (shards / "00002.tar").write_bytes(data)
    with pytest.raises(WorkError, match="shard changed"):
        keys_of(strict, 60)


def test_folders_that_are_no_index(shards, tmp_path):
    paths = listed(shards)
    with pytest.raises(UserError, match="There is no index"):
        open_index(tmp_path / "nowhere", paths)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with pytest.raises(UserError, match="is not an index"):
        write_index(paths, tmp_path / "mine", 0)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]
    with pytest.raises(UserError, match="cannot be read"):
        open_index(tmp_path / "mine", paths)
    for name in ("members.npy", "keys.npy", "shards.parquet", "index.json"):
        write_index(paths, tmp_path / "index", 0)
        whole = (tmp_path / "index" / name).read_bytes()
        for content in (b"", whole[: len(whole) // 2]):
            (tmp_path / "index" / name).write_bytes(content)
            with pytest.raises(UserError, match=r"cannot be read .* run `vlp data index` again"):
                open_index(tmp_path / "index", paths)


def test_an_index_that_is_replaced_while_it_is_read(shards, tmp_path):
    paths = listed(shards)
    write_index(paths, tmp_path / "index", 0)
    index, expected = open_index(tmp_path / "index", paths), list(index_shard(paths[3]).keys)
    write_index(paths[:2], tmp_path / "index", 0)
    assert list(index.shard(3).keys) == expected


def test_a_killed_worker_is_one_sentence(shards, tmp_path, monkeypatch):
    monkeypatch.setattr("vlp.data.index_writer.SHARDS_PER_WORKER", 1)
    monkeypatch.setattr("vlp.data.index_writer.index_shard", lambda path: os._exit(9))
    with pytest.raises(WorkError, match="was killed; rerun"):
        write_index(listed(shards), tmp_path / "index", 2)
    assert not (tmp_path / "index").exists() and not list(tmp_path.glob(".index*"))


def test_a_killed_build_continues(scenes, tmp_path, monkeypatch):
    monkeypatch.setenv("VLP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "many").mkdir()
    for number in range(300):
        shutil.copy(scenes / f"0000{number % 5}.tar", tmp_path / f"many/{number:04d}.tar")
    command = ["data", "index", f"{tmp_path}/many/*.tar", "--out", str(tmp_path / "index"), "--workers", "1"]
    (build,) = start_vlp(tmp_path / "printed", *command).processes
    deadline = time.monotonic() + 60
    while not (cached := _cached(tmp_path)) and time.monotonic() < deadline and build.is_alive():
        build.join(0.01)
    build.kill()
    build.join()
    assert cached and not (tmp_path / "index").exists()
    done = _cached(tmp_path)
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0 and '"samples": 5220' in result.output
    again = _cached(tmp_path)
    assert len(again) == 300 and done.items() <= again.items()  # what was done is not done again
    assert not [path for path in tmp_path.iterdir() if "scratch" in path.name]


def _cached(folder: Path) -> dict[Path, int]:
    """The finished entries of the cache, with the time of their last change."""
    files = [path for path in (folder / "cache").rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path: path.stat().st_mtime_ns for path in files}


def test_keys_are_strings_only_on_demand():
    keys = Keys.of(["a", "", "né", "日本"])
    assert (len(keys), keys[-1], keys[1:3], list(keys)) == (4, "日本", ["", "né"], ["a", "", "né", "日本"])
    assert keys == ["a", "", "né", "日本"] and keys.index("né") == 2
    assert keys.take(np.array([3, 0])) == ["日本", "a"]
    with pytest.raises(IndexError):
        keys[4]
    assert list(Keys.of([])) == [] and Keys.of([]).arrow().to_pylist() == []
