"""DataCompDR: with images to shards that keep every member, without images joined to other shards by uid."""

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from vlp.cli.main import app
from vlp.data.importers.datacompdr import DataCompDR
from vlp.data.importers.tables import import_tables
from vlp.data.importers.write import write_imported
from vlp.data.score_tables import table_path
from vlp.data.shard_writer import ShardWriter
from vlp.data.shards import iterate_samples, read_members
from vlp.errors import UserError

TEXTS = [f"made {number}" for number in range(5)]


def embeddings():
    file = io.BytesIO()
    np.savez(file, image_emb=np.ones((10, 4), np.float16), text_emb=np.ones((6, 4), np.float16))
    return file.getvalue()


def members_of(number):
    return {
        "syn.json": json.dumps({"syn_text": [f"{text} of {number}" for text in TEXTS]}).encode(),
        "paug.json": json.dumps({"param_aug": "[[1, 2]]"}).encode(),
        "npz": embeddings(),
        "url.txt": f"http://a/{number}".encode(),
    }


def facts_of(number):
    return {"uid": f"{number:032x}", "sha256": f"{number:064x}"}


@pytest.fixture
def images(scenes):
    return [sample.image for sample in iterate_samples(f"{scenes}/00000.tar")]


def write_tars(folder, images, broken=b""):
    with ShardWriter(folder, 4) as writer:
        for number in range(8):
            members = members_of(number) | ({"syn.json": broken} if broken and number == 5 else {})
            image = images[number] if images else b"not an image"
            extension, text = ("png", f"text {number}") if images else ("nothing", None)
            writer.write(f"{number:032x}", image, extension, text, facts_of(number), members)
    return f"{folder}/*.tar"


def test_synthetic_captions_join_and_all_members_are_kept(images, tmp_path):
    shards, out = write_tars(tmp_path / "dr", images, broken=b'{"syn_text": [1]}'), tmp_path / "out"
    arguments = ["data", "import", "datacompdr", shards, str(out), "--max-bad-share", "0.2"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.output == f"Wrote 7 samples to {out}. 1 bad samples were skipped (bad json: 1).\n"
    samples = {int(sample.key, 16): sample for sample in iterate_samples(f"{out}/*.tar")}
    assert list(samples) == [0, 1, 2, 3, 4, 6, 7]
    for number, sample in samples.items():
        assert sample.captions == [f"text {number}", *(f"{text} of {number}" for text in TEXTS)]
        assert sample.sources == ["web", *["synthetic"] * 5] and sample.text == f"text {number}"
        assert sample.image == images[number] and facts_of(number).items() <= sample.info.items()
    (_, members), *_ = read_members(f"{out}/00000.tar")
    assert members_of(0).items() <= members.items()


def test_tars_without_images_are_joined_to_shards(images, tmp_path):
    shards = write_tars(tmp_path / "dr", [])
    with pytest.raises(UserError, match=r"00000\.tar has no images; .* `vlp data import tables "):
        DataCompDR(shards)
    with ShardWriter(tmp_path / "web", 3) as writer:
        for number in (7, 2, 9, 0):
            writer.write(f"{number}", images[number], "png", "", facts_of(number))
    counts = import_tables(shards, f"{tmp_path}/web/*.tar", "dr")
    assert (counts.on, counts.rows, counts.rows_without_sample, counts.samples_without_row) == ("uid", 8, 5, 1)
    rows = [row for n in (0, 1) for row in pq.read_table(table_path(f"{tmp_path}/web/{n:05d}.tar", "dr")).to_pylist()]
    expected = [(f"{number}", "synthetic", f"{text} of {number}") for number in (7, 2, 0) for text in TEXTS]
    assert [(row["key"], row["source"], row["text"]) for row in rows] == expected


def test_other_shards_are_refused(scenes, tmp_path):
    with pytest.raises(UserError, match=r"is no shard of DataCompDR: it has members png, txt, json, but no syn\.json"):
        DataCompDR(f"{scenes}/*.tar")
    with pytest.raises(UserError, match=r"is no table and no shard of DataCompDR"):
        import_tables(f"{scenes}/00000.tar", f"{scenes}/00001.tar", "dr")
    (tmp_path / "empty.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"is no shard of DataCompDR: it has no sample"):
        write_imported(DataCompDR(str(tmp_path / "empty.tar")), str(tmp_path / "out"))
