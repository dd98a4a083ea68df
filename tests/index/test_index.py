"""The kept index: against plain embeddings, over growth, kills and several processes; bad input."""

import io
import json
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from tiny_model import make_images, make_model
from typer.testing import CliRunner

from tests.processes import finish, run_ranks, start
from vlp.capfilt.export import export
from vlp.cli.main import app
from vlp.data.bad_samples import BadSamples
from vlp.data.cache import file_stamp
from vlp.data.shard_writer import ShardWriter
from vlp.errors import UserError, WorkError
from vlp.index import build, neighbors, open_index, units
from vlp.index.build import build_index
from vlp.index.manifest import only_writer
from vlp.index.parts import BadImage
from vlp.index.pixels import decode
from vlp.index.places import Item, Place
from vlp.index.plan import Known, make_plan
from vlp.index.search import Query, search, search_index
from vlp.model import load_model

QUERY = "a red circle above a square"


def save(folder: Path, numbers: range, seed_of: int = 0) -> None:
    pictures = make_images(60)
    for number in numbers:
        Image.fromarray(pictures[number + seed_of].permute(1, 2, 0).numpy()).save(folder / f"{number:02d}.png")


@pytest.fixture
def photos(tmp_path):
    """A folder with twelve images, one of them in a subfolder, and a broken one."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    save(folder, range(12))
    (folder / "07.png").rename(folder / "more" / "07.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture
def small_units(monkeypatch):
    monkeypatch.setattr(units, "LARGEST", 5)
    monkeypatch.setattr(units, "SMALLEST", 5)


def write_shard(folder: Path, numbers: range) -> None:
    with ShardWriter(str(folder)) as writer:
        for number in numbers:
            data = io.BytesIO()
            Image.fromarray(make_images(60)[number].permute(1, 2, 0).numpy()).save(data, "PNG")
            writer.write(f"k{number}", data.getvalue(), "png", f"text {number}", {})


def cosines(model, paths) -> np.ndarray:
    return (model.embed_images(paths) @ model.embed_texts(QUERY)[0]).numpy()


def found_by_key(index, model) -> dict[str, float]:
    found = index.search(model.embed_texts(QUERY)[0], 1000)
    return {index.key(one.number): one.score for one in found}


def test_an_index_finds_what_plain_embeddings_find(photos, tmp_path, small_units, caplog):
    model = make_model()
    counts = build_index(model, str(photos), str(tmp_path / "index"), "tiny", batch_size=4)
    assert (counts.images, counts.embedded, counts.bad) == (12, 12, {"image undecodable": 1})
    assert "broken.jpg: image undecodable" in caplog.text
    index = open_index(tmp_path / "index")
    paths = sorted(photos.rglob("[0-9]*.png"))
    right = cosines(model, paths)
    found = index.search(model.embed_texts(QUERY)[0], 5)
    assert [index.row(one.number).place.path for one in found] == [str(paths[row]) for row in np.argsort(-right)[:5]]
    assert [one.score for one in found] == pytest.approx(np.sort(right)[::-1][:5], abs=1e-3)
    assert {index.key(number) for number in range(12)} == {str(path.relative_to(photos)) for path in paths}
    first = index.row(0)
    assert np.array_equal(index.image(0), Image.open(first.place.path))
    assert Image.open(io.BytesIO(index.thumbnail(0))).size == (first.width, first.height) == (32, 32)
    assert len(list((tmp_path / "index" / "parts").glob("*.arrow"))) == 3  # packed, not a file for each image
    with pytest.raises(UserError, match="has images 0 to 11, not 12"):
        index.key(12)
    with pytest.raises(UserError, match=r"searches for \[16\] values, not \[3\]"):
        index.search(np.zeros(3, np.float32), 1)


def test_it_grows_by_new_and_changed_images_only(photos, tmp_path, small_units, monkeypatch, caplog):
    model, folder = make_model(), str(tmp_path / "index")
    build_index(model, str(photos), folder)
    before = open_index(folder)
    encoded, real = [], model.encode_images
    monkeypatch.setattr(model, "encode_images", lambda images: encoded.append(len(images)) or real(images))
    assert build_index(model, str(photos), folder).embedded == 0 and not encoded
    save(photos, range(12, 15))
    save(photos, range(3, 4), seed_of=40)
    os.utime(photos / "03.png", ns=(1, 1))
    (photos / "05.png").unlink()
    counts = build_index(model, str(photos), folder)
    assert sum(encoded) == counts.embedded == 4
    assert (counts.images, counts.changed, counts.disappeared, sum(counts.bad.values())) == (14, 1, 1, 1)
    assert f"changed: {photos}/03.png" in caplog.text and f"disappeared: {photos}/05.png" in caplog.text
    index = open_index(folder)
    paths = sorted(photos.rglob("[0-9]*.png"))
    right = {str(path.relative_to(photos)): one for path, one in zip(paths, cosines(model, paths), strict=True)}
    assert found_by_key(index, model) == pytest.approx(right, abs=1e-3) and len(index) == 14
    assert [index.key(number) for number in range(12)] == [before.key(number) for number in range(12)]
    assert len(found_by_key(before, model)) == 12  # a reader keeps what it has opened
    shutil.copy(photos / "00.png", photos / "05.png")
    assert build_index(model, str(photos), folder).images == 15
    photos.rename(tmp_path / "unmounted")
    photos.mkdir()
    with pytest.raises(UserError, match="has no image any more, and the index has 15; check that it is mounted"):
        build_index(model, str(photos), folder)


def _killed(model: str, photos: str, folder: str) -> None:
    """Index the photos, and die before the third part is written."""
    units.LARGEST = units.SMALLEST = 5
    written, real = [], build.write_part

    def write_part(*given):
        if len(written) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        written.append(real(*given))

    build.write_part = write_part
    build_index(load_model(model, precision="fp32"), photos, folder)


def test_a_killed_run_is_continued(photos, models, tmp_path, small_units, monkeypatch):
    folder = str(tmp_path / "index")
    assert finish(start(_killed, models[1], str(photos), folder)) == [-signal.SIGKILL]
    model = load_model(models[1], precision="fp32")
    with pytest.raises(UserError, match="is not finished; rerun the `vlp index` that wrote it"):
        open_index(folder)
    with pytest.raises(UserError, match="interrupted index of another model"):
        build_index(make_model(), str(photos), folder)
    encoded, real = [], model.encode_images
    monkeypatch.setattr(model, "encode_images", lambda images: encoded.append(len(images)) or real(images))
    save(photos, range(2, 3), seed_of=30)  # changed after its part was written
    assert build_index(model, str(photos), folder).images == 12
    assert sum(encoded) == 12 - 10 + 1
    monkeypatch.undo()
    build_index(model, str(photos), str(tmp_path / "whole"))
    whole = found_by_key(open_index(tmp_path / "whole"), model)
    assert found_by_key(open_index(folder), model) == pytest.approx(whole, abs=1e-3)


def _process(rank: int, place: str, photos: str, model: str) -> None:
    units.LARGEST = units.SMALLEST = 2
    dist.init_process_group("gloo", init_method=f"file://{place}/meet", rank=rank, world_size=2)
    counts = build_index(load_model(model, precision="fp32"), photos, f"{place}/index")
    Path(place, f"{rank}.json").write_text(json.dumps(vars(counts)))
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_equal_one(photos, models, tmp_path):
    run_ranks(_process, str(tmp_path), str(photos), models[1])
    model = load_model(models[1], precision="fp32")
    one = build_index(model, str(photos), str(tmp_path / "one"))
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)] == [vars(one)] * 2
    both = [found_by_key(open_index(tmp_path / name), model) for name in ("index", "one")]
    assert both[0] == pytest.approx(both[1], abs=1e-4)


def test_shards_with_captions_that_change_and_disappear(tmp_path, small_units, caplog):
    model, folder = make_model(), str(tmp_path / "index")
    write_shard(tmp_path / "a", range(7))
    write_shard(tmp_path / "b", range(7, 10))
    shutil.move(tmp_path / "b" / "00000.tar", tmp_path / "a" / "00001.tar")
    assert build_index(model, [f"{tmp_path}/a/00000.tar"], folder).images == 7
    assert build_index(model, [f"{tmp_path}/a/00001.tar"], folder).images == 10  # others are kept
    index = open_index(folder)
    rows = [index.row(number) for number in range(10)]
    assert {row.place.key: row.caption for row in rows} == {f"k{number}": f"text {number}" for number in range(10)}
    for number in (0, 9):
        right = make_images(60)[int(index.key(number)[1:])].permute(1, 2, 0).numpy()
        assert np.array_equal(index.image(number), right)
    (tmp_path / "a" / "00001.tar").unlink()
    write_shard(tmp_path / "c", range(20, 23))
    shutil.move(tmp_path / "c" / "00000.tar", tmp_path / "a" / "00000.tar")
    with pytest.raises(UserError, match=r"cannot be read \(shard changed\); run `vlp index` again"):
        index.image(0)
    write_shard(tmp_path / "d", range(30, 32))
    assert build_index(model, [f"{tmp_path}/d/*.tar"], folder).disappeared == 0  # of shards elsewhere nothing is said
    counts = build_index(model, [f"{tmp_path}/a/*.tar"], folder)
    assert (counts.images, counts.changed, counts.disappeared) == (5, 1, 1)
    assert set(found_by_key(open_index(folder), model)) == {"k20", "k21", "k22", "k30", "k31"}


def test_shards_in_a_bucket_are_indexed_as_local_ones(s3, tmp_path):
    model = make_model()
    write_shard(tmp_path / "shards", range(6))
    url = s3.upload(tmp_path / "shards", "shards")
    build_index(model, f"{tmp_path}/shards/*.tar", str(tmp_path / "local"))
    assert build_index(model, f"{url}/*.tar", str(tmp_path / "remote")).images == 6
    assert build_index(model, f"{url}/*.tar", str(tmp_path / "remote")).embedded == 0
    local, remote = (open_index(tmp_path / name) for name in ("local", "remote"))
    assert found_by_key(remote, model) == found_by_key(local, model)
    assert np.array_equal(remote.image(4), local.image(4)) and remote.row(4).place.path == f"{url}/00000.tar"
    assert search_index(model, remote, QUERY, top=3, rerank=3)[0].itm is not None
    s3.files.rm(f"{url}/00000.tar")
    with pytest.raises(UserError, match="cannot be read"):
        remote.image(4)


def test_hits_equal_those_of_a_search_without_an_index(photos, tmp_path, caplog):
    model, folder = make_model(), str(tmp_path / "index")
    build_index(model, str(photos), folder)
    index = open_index(folder)
    for rerank in (0, 4):
        plain = search(model, str(photos), QUERY, top=6, rerank=rerank)
        kept = search_index(model, index, QUERY, top=6, rerank=rerank, batch_size=3)
        assert [hit.name for hit in kept] == [hit.name for hit in plain]
        assert [hit.itm for hit in kept] == pytest.approx([hit.itm for hit in plain], abs=1e-4)
    asked = Query(image=str(photos / "04.png"))
    for hits in (search_index(model, index, asked, 3), search(model, str(photos), asked, 3)):
        assert hits[0].name == str(photos / "04.png") and hits[0].itc == pytest.approx(1, abs=1e-3)
    with pytest.raises(UserError, match="Re-ranking by ITM needs a text"):
        search_index(model, index, asked, rerank=3)
    best = search_index(model, index, QUERY, top=6, rerank=4)
    Path(best[0].name).unlink()
    Path(best[1].name).write_bytes(b"broken since")
    after = search_index(model, index, QUERY, top=6, rerank=4)
    assert not {hit.name for hit in after} & {best[0].name, best[1].name}
    assert f"{best[0].name}: missing file" in caplog.text and f"{best[1].name}: image undecodable" in caplog.text


def test_the_bad_images_of_many_shards_are_read_once(tmp_path):
    class Counted(set):
        readings = 0

        def __iter__(self):
            self.readings += 1
            return super().__iter__()

    for number in range(5):
        write_shard(tmp_path / str(number), range(3))
    shards = [f"{tmp_path}/{number}/00000.tar" for number in range(5)]
    known = Known(bad=Counted(BadImage(path, "k1", file_stamp(path), "image undecodable") for path in shards[:4]))
    known.bad.add(BadImage(shards[4], "k2", "another stamp", "image undecodable"))
    plan = make_plan(shards, known, BadSamples(1.0))
    assert [unit.rows.tolist() for unit in plan.units] == [[0, 2]] * 4 + [[0, 1, 2]]
    assert known.bad.readings == 1 and {one.path for one in plan.bad} == {*shards[:4]}


def test_another_model_is_refused(photos, tmp_path):
    folder = str(tmp_path / "index")
    build_index(make_model(), str(photos), folder, "first")
    other = make_model(seed=1)
    for work in (lambda: build_index(other, str(photos), folder), lambda: search_index(other, open_index(folder), "a")):
        with pytest.raises(UserError, match=f"{folder} was made with another model, first; take that model"):
            work()
    with only_writer(tmp_path / "index"), pytest.raises(WorkError, match="Another run writes the index"):
        build_index(make_model(), str(photos), folder)
    (tmp_path / "index" / "index.json").write_text('{"format": "vlp-index-9"}')
    with pytest.raises(UserError, match="has the format vlp-index-9"):
        open_index(folder)
    with pytest.raises(UserError, match=f"{photos} exists already and is no index"):
        build_index(make_model(), str(photos), str(photos))
    write_shard(tmp_path / "shards", range(2))
    with pytest.raises(UserError, match=f"no image or video to index in .*; name its shards as '{tmp_path}/shards/"):
        build_index(make_model(), str(tmp_path / "shards"), str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_a_damaged_index_and_names_that_are_not_utf8(photos, tmp_path, caplog):
    model, folder = make_model(), tmp_path / "index"
    (photos / os.fsdecode(b"caf\xe9.png")).write_bytes((photos / "00.png").read_bytes())
    assert build_index(model, str(photos), str(folder)).bad == {"image undecodable": 1, "name not UTF-8": 1}
    (nearest,), (part,) = (folder / "neighbors").iterdir(), (folder / "parts").glob("*.arrow")
    for path, says in ((nearest, "cannot be read; write the index again"), (part, "of an index cannot be read")):
        whole = path.read_bytes()
        path.write_bytes(whole[:200])
        with pytest.raises(UserError, match=says):
            open_index(folder).key(0)
        path.write_bytes(whole)
    assert open_index(folder).key(0) == "00.png"


def test_a_folder_of_clip_retrieval_is_read_where_it_is(tmp_path, models):
    write_shard(tmp_path / "shards", range(9))
    export(f"{tmp_path}/shards/*.tar", models[1], "clip-retrieval", str(tmp_path / "embeddings"), quiet=True)
    model = load_model(models[1], precision="fp32")
    build_index(None, str(tmp_path / "embeddings"), str(tmp_path / "index"))
    assert not list((tmp_path / "index" / "parts").iterdir())
    right = cosines(model, list(make_images(60)[:9]))
    for folder in ("embeddings", "index"):
        index = open_index(tmp_path / folder)
        found = found_by_key(index, model)
        assert found == pytest.approx({f"k{row}": one for row, one in enumerate(right)}, abs=2e-2)
        assert index.row(2).caption == "text 2" and index.thumbnail(2)
        assert np.array_equal(index.image(2), make_images(60)[2].permute(1, 2, 0).numpy())
        assert search_index(model, index, QUERY, top=2, rerank=3)[0].itm is not None
    metadata = next((tmp_path / "embeddings" / "metadata").glob("*.parquet"))
    pq.write_table(pq.read_table(metadata, columns=["image_path", "caption"]), metadata)  # as clip-retrieval has it
    hits = search_index(model, open_index(tmp_path / "embeddings"), QUERY, top=9)
    assert sorted(hit.name for hit in hits) == [f"k{number}" for number in range(9)] and hits[0].itm is None
    vectors = np.load(next((tmp_path / "embeddings" / "img_emb").glob("*.npy")))
    np.save(tmp_path / "embeddings" / "img_emb" / "img_emb_1.npy", vectors)
    with pytest.raises(UserError, match="has changed; run `vlp index"):
        open_index(tmp_path / "index")
    assert build_index(None, str(tmp_path / "embeddings"), str(tmp_path / "index")).images == 18


def test_thumbnails_do_not_depend_on_the_size_of_the_model_s_images(tmp_path):
    data = io.BytesIO()
    Image.new("RGB", (1000, 600), "red").save(data, "JPEG")
    one = decode(Item(Place("", "a.jpg", ""), data.getvalue()), 32, 8, thumbnail=True)
    picture = Image.open(io.BytesIO(one.thumbnail))
    assert picture.size == (192, 115) and one.pixels.shape == (1, 3, 32, 32)
    assert np.abs(np.asarray(picture).mean((0, 1)) - [254, 0, 0]).max() < 3


def test_a_clustered_index_scores_with_the_vectors_of_its_parts(photos, tmp_path, small_units, monkeypatch):
    model = make_model()
    build_index(model, str(photos), str(tmp_path / "exact"))
    monkeypatch.setattr(neighbors, "EXACT", 5)
    build_index(model, str(photos), str(tmp_path / "clustered"))
    exact, clustered = (open_index(tmp_path / name) for name in ("exact", "clustered"))
    query = model.embed_texts(QUERY)[0]
    assert clustered.search(query, 12) == [
        (number, pytest.approx(score, abs=1e-5)) for number, score in exact.search(query, 12)
    ]


def test_threads_share_an_index(photos, tmp_path, small_units):
    model = make_model()
    build_index(model, str(photos), str(tmp_path / "index"))
    index, queries = open_index(tmp_path / "index"), torch.nn.functional.normalize(torch.randn(40, 16), dim=1)
    alone = [index.search(query, 5) for query in queries]
    fresh = open_index(tmp_path / "index")
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda query: fresh.search(query, 5), queries)) == alone
        assert list(pool.map(fresh.thumbnail, [*range(12)] * 5)) == [index.thumbnail(row) for row in [*range(12)] * 5]


def test_the_commands(photos, models, tmp_path):
    def run(*arguments):
        result = CliRunner().invoke(app, [*map(str, arguments)])
        assert result.exit_code == 0, result.output
        return result.stdout.splitlines()

    index = tmp_path / "index"
    assert json.loads(run("index", photos, index, "--model", models[1], "--json")[-1])["images"] == 12
    save(photos, range(20, 21))
    assert json.loads(run("index", photos, index, "--json")[-1])["embedded"] == 1  # the model is known
    hits = json.loads(run("search", "--index", index, "--query", QUERY, "--top", 3, "--json")[-1])
    assert len(hits) == 3 and hits[0]["itm"] is not None and hits[0]["number"] in range(13)
    (line,) = run("search", models[1], "--index", index, "--image", photos / "02.png", "--top", 1)
    assert line == f"1.000  {photos}/02.png"
