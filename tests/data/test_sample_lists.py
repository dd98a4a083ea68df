"""Training on the listed samples of the original shards."""

import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlp.capfilt.run import score_shards
from vlp.capfilt.selection import select
from vlp.config import AugmentConfig, CapFiltConfig, DataConfig, SourceConfig
from vlp.data.examples import CaptionExamples
from vlp.data.index_writer import write_index
from vlp.data.indexed_loader import IndexedLoader
from vlp.data.sample_lists import PAIR, read_list, shard_uids, uid_numbers
from vlp.data.shard_index import expand_shards, index_shard
from vlp.data.shard_writer import ShardWriter
from vlp.data.shards import iterate_samples
from vlp.data.streamed_loader import StreamedLoader
from vlp.data.tokenizer import load_tokenizer
from vlp.errors import UserError


@pytest.fixture
def loader_of(tokenizer_folder):
    tokenizer = load_tokenizer(str(tokenizer_folder))

    def make(shards, keep="", rank=0, world=1, loader=IndexedLoader, **source):
        augment = AugmentConfig(crop_min=1.0, flip=False, operations=0)
        sources = [SourceConfig(str(shards), keep=str(keep), **source)]
        data = DataConfig(sources, workers=0, max_tokens=16, augment=augment)
        return loader(data, 32, CaptionExamples(tokenizer, 16), 4, rank, world, seed=5)

    return make


def samples_of(loader) -> list[tuple[str, bytes]]:
    """Key and pixels of an epoch's samples, sorted."""
    batches = itertools.islice(loader, -(-loader.epoch_size // 4))
    rows = [
        (key, image.numpy().tobytes()) for batch in batches for key, image in zip(batch.keys, batch.images, strict=True)
    ]
    return sorted(rows[: loader.epoch_size])


@pytest.fixture
def shards(tmp_path, web_scenes) -> Path:
    """Shards with DataComp's uids, or with uids that are the hashes of images."""
    folder = tmp_path / "web"
    with ShardWriter(folder, 20) as writer:
        for number, sample in enumerate(iterate_samples(f"{web_scenes}/*.tar")):
            uid = {"uid": hashlib.md5(sample.key.encode()).hexdigest()} if number % 3 else {}
            writer.write(sample.key, sample.image, "png", sample.text, uid)
    return folder


@pytest.mark.parametrize("form", ["uids", "table"])
@pytest.mark.parametrize("tables", ["kept", "removed"])
def test_a_selection_trains_on_the_samples_of_its_copied_shards(
    shards, tmp_path, models, loader_of, form, tables, monkeypatch
):
    monkeypatch.setenv("VLP_CACHE", str(tmp_path / "cache"))
    score_shards(CapFiltConfig(shards=f"{shards}/*.tar", filter=models[1]))
    found = [f"{shards}/*.capfilt.parquet"]
    half = f"itm >= {_median(shards)}"
    select(found, half, output=str(tmp_path / "copied"), quiet=True)
    keep = tmp_path / {"uids": "kept.npy", "table": "kept.parquet"}[form]
    select(found, half, quiet=True, **{form: str(keep)})
    if tables == "removed":
        for path in shards.glob("*.parquet"):
            path.unlink()
    copied, listed = loader_of(tmp_path / "copied/*.tar"), loader_of(shards / "*.tar", keep)
    assert 0 < listed.epoch_size == copied.epoch_size < 60
    assert samples_of(listed) == samples_of(copied)
    halves = [loader_of(shards / "*.tar", keep, rank, 2) for rank in range(2)]
    whole = loader_of(shards / "*.tar", keep)
    for one, *parts in zip(*(itertools.islice(loader, 9) for loader in (whole, *halves)), strict=True):
        assert one.keys == parts[0].keys + parts[1].keys


def _median(shards: Path) -> float:
    return float(np.median(np.concatenate([pq.read_table(path)["itm"] for path in shards.glob("*.parquet")])))


@pytest.mark.parametrize("form", ["uids", "txt"])
def test_streamed_reading_takes_the_samples_of_a_list(shards, tmp_path, models, loader_of, form):
    score_shards(CapFiltConfig(shards=f"{shards}/*.tar", filter=models[1]))
    half, keep = f"itm >= {_median(shards)}", tmp_path / {"uids": "kept.npy", "txt": "kept.txt"}[form]
    if form == "uids":
        select([f"{shards}/*.capfilt.parquet"], half, quiet=True, uids=str(keep))
    else:
        keep.write_text(
            "\n".join(sample.key for number, sample in enumerate(iterate_samples(f"{shards}/*.tar")) if number % 2)
        )
    write_index(expand_shards(f"{shards}/*.tar"), tmp_path / "index", workers=0)
    indexed = loader_of(shards / "*.tar", keep)
    streamed = loader_of(shards / "*.tar", keep, loader=StreamedLoader, index=str(tmp_path / "index"))
    assert streamed.epoch_size == indexed.epoch_size < 60
    expected = dict(samples_of(indexed))
    seen = dict(pair for _ in range(4) for pair in samples_of(streamed))  # streams drift by a pass at most
    assert seen == expected


@pytest.mark.parametrize("with_shard", [False, True])
def test_keys_are_listed_with_and_without_their_shard(scenes, tmp_path, loader_of, with_shard):
    wanted = [("00001", "00000023"), ("00004.tar", "00000081"), ("00000", "00000003")]
    lines = [f"{shard}/{key}" if with_shard else key for shard, key in wanted]
    if with_shard:
        lines.append("00002/00000001")  # this key is in another shard
    (tmp_path / "keep.txt").write_text("\n".join(lines) + "\n\n")
    loader = loader_of(scenes / "*.tar", tmp_path / "keep.txt")
    assert [key for key, _ in samples_of(loader)] == sorted(key for _, key in wanted)


def test_uids_come_from_a_neighbour_the_json_or_the_image(scenes, tmp_path, monkeypatch):
    monkeypatch.setenv("VLP_CACHE", str(tmp_path / "cache"))
    first, second, *_ = iterate_samples(f"{scenes}/*.tar")
    with ShardWriter(tmp_path / "s") as writer:
        writer.write("a", first.image, "png", "x", {"uid": "ab" * 16})
        writer.write("b", second.image, "png", "x", {})
        writer.write("c", first.image, "png", "x", {"uid": "not hexadecimal"})
    index = index_shard(str(tmp_path / "s/00000.tar"))
    expected = ["ab" * 16, hashlib.sha256(second.image).hexdigest(), "not hexadecimal"]
    assert (shard_uids(index) == uid_numbers(expected)).all()
    monkeypatch.setenv("VLP_CACHE", str(tmp_path / "other"))
    pq.write_table(pa.table({"uid": ["cd" * 16, None], "key": ["b", "x"]}), tmp_path / "s/00000.parquet")
    assert (shard_uids(index) == uid_numbers(["ab" * 16, "cd" * 16, "not hexadecimal"])).all()
    monkeypatch.setattr("vlp.data.sample_lists._compute_uids", lambda *_: pytest.fail("computed again"))
    assert shard_uids(index).shape == (3, 2)


def test_long_lists_of_keys_are_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("vlp.data.sample_lists.AT_ONCE", 3)
    keys = [f"{number:08d}" for number in range(11)]
    (tmp_path / "keep.txt").write_text("\n".join(keys))
    chosen = read_list(str(tmp_path / "keep.txt"))
    assert len(chosen.pairs) == 11 and chosen.listed("s", keys, None).all()


@pytest.mark.parametrize("sort", [True, False])
def test_the_search_equals_a_set(tmp_path, sort):
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 40, (500, 2)).astype(np.uint64)  # many with equal first halves
    numbers[::2] += np.uint64(2**63)
    pairs = np.array([tuple(pair) for pair in numbers.tolist()], dtype=PAIR)
    np.save(tmp_path / "list.npy", np.sort(pairs) if sort else pairs)
    chosen = read_list(str(tmp_path / "list.npy"))
    wanted = np.concatenate([numbers[:100], rng.integers(0, 40, (900, 2)).astype(np.uint64)])
    known = set(map(tuple, numbers.tolist()))
    assert chosen.listed("s", [""] * 1000, wanted).tolist() == [tuple(one) in known for one in wanted.tolist()]


def test_lists_that_cannot_be_used(tmp_path, scenes, loader_of):
    np.save(tmp_path / "floats.npy", np.zeros(3))
    np.save(tmp_path / "none.npy", np.zeros(0, dtype=PAIR))
    np.save(tmp_path / "other.npy", np.zeros(2, dtype=PAIR))
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "words.txt").write_text("nobody\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xfd")
    pq.write_table(pa.table({"url": ["x"]}), tmp_path / "columns.parquet")
    (tmp_path / "broken.parquet").write_text("PAR1")
    (tmp_path / "list.json").write_text(json.dumps([]))
    cases = {
        "floats.npy": "not u8,u8",
        "none.npy": "is empty",
        "other.npy": "none of the 87 samples is among the 2 uids",
        "broken.npy": "cannot be read",
        "words.txt": "none of the 87 samples is among the 1 keys",
        "bytes.txt": "cannot be read",
        "columns.parquet": "no column named key or uid",
        "broken.parquet": "cannot be read",
        "list.json": "unknown kind",
        "missing.npy": "There is no list",
    }
    for name, words in cases.items():
        with pytest.raises(UserError, match=words):
            loader_of(scenes / "*.tar", tmp_path / name)
