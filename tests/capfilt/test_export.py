"""Exports, read as clip-retrieval and DataComp's tools read them."""

import glob
import hashlib
import io
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny_model import make_model
from typer.testing import CliRunner

from vlp.capfilt.duplicates import find_duplicates
from vlp.capfilt.export import export
from vlp.cli.main import app
from vlp.data.image_decoding import decode_image
from vlp.data.sample_lists import uid_numbers
from vlp.data.score_tables import Scored, write_table
from vlp.data.shard_index import expand_shards
from vlp.data.shard_writer import ShardWriter
from vlp.data.shards import iterate_samples
from vlp.errors import UserError

TEXTS = ["a red circle", None, "A blue square!", "a star above the circle", "a white shape"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model and its folder."""
    made, folder = make_model(), tmp_path_factory.mktemp("models") / "model"
    made.save(folder)
    return made, str(folder)


def write_shards(folder, texts, shards=11, size=5):
    rng = np.random.default_rng(0)
    with ShardWriter(str(folder), size) as writer:
        for number in range(shards * size):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (40, 32 + number, 3), np.uint8)).save(file, "PNG")
            info = {"uid": f"{number:032x}"} if number % 2 else {"url": f"https://example.org/{number}"}
            data = b"broken" if number == 7 else file.getvalue()
            writer.write(f"k{number:03d}", data, "png", texts[number % len(texts)], info)
    return str(folder / "*.tar")


@pytest.fixture
def shards(tmp_path):
    return write_shards(tmp_path / "web", TEXTS)


def expected_rows(pattern, model):
    """The usable samples, and the embeddings of images and texts, float32; zeros without a text."""
    samples = [one for one in iterate_samples(pattern) if one.image != b"broken"]
    images = model.embed_images([decode_image(one.image) for one in samples]).numpy()
    texts = np.zeros_like(images)
    for row, sample in enumerate(samples):
        if sample.captions:
            texts[row] = model.embed_texts(sample.captions[0]).numpy()
    return samples, images, texts


def uid_of(sample):
    return sample.info.get("uid") or hashlib.sha256(sample.image).hexdigest()


def score(pattern):
    """Write score tables without some texts, and return itm by key."""
    scores = {}
    for shard in expand_shards(pattern):
        rows = []
        for number, sample in enumerate(iterate_samples(shard)):
            rows.append(Scored(sample.key, "synthetic", "another text", 0.1, 0.2))
            if number != 3 and sample.captions:
                scores[sample.key] = np.float32(number / 7)
                rows.append(Scored(sample.key, "web", sample.captions[0], number / 7, None))
                rows.append(Scored(sample.key, "web", sample.captions[0], 0.9, None, caption_id=1))
        write_table(shard, rows, {})
    return scores


def read_clip_retrieval(folder, kind):
    """The rows of a folder, in the order in which clip-retrieval and autofaiss read its files."""
    return np.concatenate([np.load(path, allow_pickle=False) for path in sorted(glob.glob(f"{folder}/{kind}/*.npy"))])


def test_clip_retrieval_reads_rows_that_belong_together(shards, model, tmp_path):
    scores = score(shards)
    folder = tmp_path / "out"
    counts = export(shards, model[1], "clip-retrieval", str(folder), "capfilt", precision="fp32", quiet=True)
    samples, images, texts = expected_rows(shards, model[0])
    assert (counts.images, counts.texts, counts.files, counts.bad) == (54, 43, 11, {"image undecodable": 1})
    names = [f"{number:02d}" for number in range(11)]
    assert sorted(path.name for path in (folder / "img_emb").iterdir()) == [f"img_emb_{name}.npy" for name in names]
    assert sorted(path.name for path in (folder / "text_emb").iterdir()) == [f"text_emb_{name}.npy" for name in names]
    for kind, expected in (("img_emb", images), ("text_emb", texts)):
        found = read_clip_retrieval(folder, kind)
        assert found.dtype == np.float16 and found.shape == expected.shape
        assert found == pytest.approx(expected, abs=1e-3)
    table = pq.read_table([str(folder / "metadata" / f"metadata_{name}.parquet") for name in names])
    assert table["image_path"].to_pylist() == table["key"].to_pylist() == [one.key for one in samples]
    assert table["caption"].to_pylist() == [one.captions[0] if one.captions else "" for one in samples]
    assert table["uid"].to_pylist() == [uid_of(one) for one in samples]
    assert table["url"].to_pylist() == [one.info.get("url") for one in samples]
    assert table["shard"].to_pylist() == [one.shard for one in samples]
    assert table["width"].to_pylist() == [decode_image(one.image).width for one in samples]
    assert table["itm"].to_pylist() == [scores.get(one.key) for one in samples]
    assert table["clip"].null_count == 54


def test_datacomp_reads_a_table_and_its_arrays(shards, model, tmp_path):
    scores, folder = score(shards), tmp_path / "out"
    arguments = ["capfilt", "export", "--shards", shards, "--model", model[1], "--layout", "datacomp"]
    options = ["--out", str(folder), "--scores", "capfilt", "--name", "l14", "--precision", "fp32", "--json"]
    result = CliRunner().invoke(app, [*arguments, *options])
    assert result.exit_code == 0 and json.loads(result.stdout.splitlines()[-1])["images"] == 54
    samples, images, texts = expected_rows(shards, model[0])
    stems = [path.split(".parquet")[0] for path in sorted(glob.glob(f"{folder}/*.parquet"))]
    assert [stem.rpartition("/")[2] for stem in stems] == [f"{number:05d}" for number in range(11)]
    tables = [pq.read_table(f"{stem}.parquet") for stem in stems]
    arrays = [np.load(f"{stem}.npz", allow_pickle=False) for stem in stems]
    for name, expected in (("l14_img", images), ("l14_txt", texts)):
        assert [len(one[name]) for one in arrays] == [len(table) for table in tables]
        found = np.concatenate([one[name] for one in arrays])
        assert found.dtype == np.float16 and found == pytest.approx(expected, abs=1e-3)
    rows = [row for table in tables for row in table.to_pylist()]
    assert [row["uid"] for row in rows] == [uid_of(one)[:32] for one in samples]
    assert [row["text"] for row in rows] == [one.captions[0] if one.captions else "" for one in samples]
    sizes = [decode_image(one.image).size for one in samples]
    assert [(row["original_width"], row["original_height"]) for row in rows] == sizes
    cosines = [row["clip_l14_similarity_score"] for row in rows]
    assert [one is None for one in cosines] == [not one.captions for one in samples]
    expected = [one for one, sample in zip((images * texts).sum(1), samples, strict=True) if sample.captions]
    assert [one for one in cosines if one is not None] == pytest.approx(expected, abs=2e-3)
    assert [row["itm"] for row in rows] == [scores.get(one.key) for one in samples]
    assert [row["sha256"] for row in rows] == [hashlib.sha256(one.image).hexdigest() for one in samples]
    # The baselines make a uid list from the digits, and the resharder finds the images by it.
    pairs = np.array([(int(row["uid"][:16], 16), int(row["uid"][16:32], 16)) for row in rows], np.dtype("u8,u8"))
    column = pq.read_table(f"{stems[0]}.parquet")["uid"]
    assert [tuple(pair) for pair in uid_numbers(column.to_pylist()).tolist()] == pairs[: len(column)].tolist()


def test_without_texts_there_are_no_embeddings_of_texts(model, tmp_path):
    shards = write_shards(tmp_path / "web", [None], shards=2)
    counts = export(shards, model[1], "clip-retrieval", str(tmp_path / "clip"), quiet=True)
    assert counts.texts == 0 and not (tmp_path / "clip" / "text_emb").exists()
    assert "caption" not in pq.read_schema(tmp_path / "clip" / "metadata" / "metadata_0.parquet").names
    export(shards, model[1], "datacomp", str(tmp_path / "datacomp"), quiet=True)
    assert list(np.load(tmp_path / "datacomp" / "00000.npz")) == ["blip_img"]
    assert torch.isfinite(torch.from_numpy(np.load(tmp_path / "datacomp" / "00000.npz")["blip_img"])).all()


def test_wrong_calls_write_nothing(shards, model, tmp_path):
    out = str(tmp_path / "out")
    with pytest.raises(UserError, match="has no score table; run `vlp capfilt score` on it first"):
        export(shards, model[1], "clip-retrieval", out, "capfilt", quiet=True)
    with pytest.raises(UserError, match="must be a word such as blip or l14, not 'a b'"):
        export(shards, model[1], "datacomp", out, name="a b", quiet=True)
    with pytest.raises(UserError, match="must be clip-retrieval or datacomp, not 'coco'"):
        export(shards, model[1], "coco", out, quiet=True)
    other = write_shards(tmp_path / "other", TEXTS, shards=1)
    with pytest.raises(UserError, match=r"web/00000.tar and .*other/00000.tar have the same file name"):
        export([shards, other], model[1], "datacomp", out, quiet=True)
    with ShardWriter(str(tmp_path / "short"), 5) as writer:
        image = next(iter(iterate_samples(shards))).image
        writer.write("k", image, "png", "a text", {"uid": "17"})
    with pytest.raises(UserError, match=r"uid '17' in .* does not begin with 32 hexadecimal digits"):
        export(str(tmp_path / "short" / "*.tar"), model[1], "datacomp", out, quiet=True)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(UserError, match="exists already"):
        export(shards, model[1], "datacomp", out, quiet=True)


def test_remote_shards_give_the_files_of_local_ones(shards, model, tmp_path, s3):
    """Image tables are written beside the remote shards, score tables are in a folder, and the output is remote."""
    score(shards)
    (tmp_path / "scores").mkdir()
    for table in glob.glob(f"{tmp_path}/web/*.capfilt.parquet"):
        shutil.copy(table, tmp_path / "scores")
    address = s3.upload(tmp_path / "web", "web")
    export(shards, model[1], "datacomp", str(tmp_path / "out"), "capfilt", quiet=True)
    remote = [f"{address}/{path.rpartition('/')[2]}" for path in expand_shards(shards)]
    export(remote, model[1], "datacomp", f"{s3.url}/out", "capfilt", str(tmp_path / "scores"), quiet=True)
    s3.files.get(f"{s3.url}/out", str(tmp_path / "again"), recursive=True)
    for path in (tmp_path / "out").iterdir():
        if path.suffix == ".parquet":
            assert pq.read_table(path).equals(pq.read_table(tmp_path / "again" / path.name))
        else:
            arrays = np.load(path), np.load(tmp_path / "again" / path.name)
            assert all((arrays[0][name] == arrays[1][name]).all() for name in arrays[0])
    local = find_duplicates(shards, model[1], above=0.3, keep="best:itm", quiet=True)
    found = find_duplicates(remote, model[1], above=0.3, keep="best:itm", folder=str(tmp_path / "scores"), quiet=True)
    assert found == local and local.near > 0
