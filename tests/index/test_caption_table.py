"""`vlp caption --out`: the captions of single calls, in each format; a killed run continues; bad images are counted."""

import csv
import io
import json

import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny_model import make_images, make_model
from typer.testing import CliRunner

from vlp.cli.main import app
from vlp.data.shard_writer import ShardWriter
from vlp.errors import UserError, WorkError
from vlp.generation.settings import named_overrides, resolve_decoding
from vlp.index import caption_table
from vlp.index.caption_table import caption_to_table


def png(number: int) -> bytes:
    data = io.BytesIO()
    Image.fromarray(make_images(20)[number].permute(1, 2, 0).numpy()).save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(9):
        (folder / f"{number}.png").write_bytes(png(number))
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


def sampling(model, **more):
    return resolve_decoding(model.decoding, named_overrides({"beams": 0, "min_length": 1, "max_length": 12, **more}))


def rows_of(path) -> list[dict]:
    if path.suffix == ".csv":
        with open(path, newline="") as file:
            return list(csv.DictReader(file))
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    return pq.read_table(path).to_pylist()


@pytest.mark.parametrize(("ending", "many"), [("csv", 1), ("jsonl", 2), ("parquet", 1)])
def test_a_table_holds_the_captions_of_single_calls(photos, tmp_path, ending, many, monkeypatch):
    monkeypatch.setattr(caption_table, "LARGEST", 4)
    monkeypatch.setattr(caption_table, "SMALLEST", 4)
    with ShardWriter(str(tmp_path / "shards")) as writer:
        for number in range(9, 12):
            writer.write(f"k{number}", png(number), "png", "a text", {})
    model, out = make_model(), tmp_path / f"captions.{ending}"
    decoding = sampling(model)
    sources = [str(photos), f"{tmp_path}/shards/*.tar"]
    counts = caption_to_table(model, sources, str(out), decoding, seed=3, num_captions=many, batch_size=3)
    assert (counts.images, counts.captions, counts.bad) == (12, 12 * many, {"image undecodable": 1})
    rows = rows_of(out)
    paths = sorted(map(str, photos.glob("?.png")))
    keys = [*paths, *(f"00000.tar/k{number}" for number in range(9, 12))]
    right = model.caption(list(make_images(20)[:12]), decoding, keys, seed=3, num_captions=many)
    assert [row["caption"] for row in rows] == [one.text for group in right for one in group]
    logs = [float(row["log_probability"]) for row in rows]
    assert logs == pytest.approx([one.log_probability for group in right for one in group], abs=1e-3)
    assert [row["key"] for row in rows[-many:]] == ["k11"] * many
    assert [row["path"] for row in rows[: 9 * many : many]] == paths
    assert not (tmp_path / f"captions.{ending}.partial").exists()
    with pytest.raises(UserError, match="exists already"):
        caption_to_table(model, sources, str(out), decoding)


def test_an_interrupted_run_is_continued(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(caption_table, "LARGEST", 2)
    monkeypatch.setattr(caption_table, "SMALLEST", 2)
    model, out = make_model(), tmp_path / "captions.csv"
    decoding = sampling(model)
    real, done = caption_table._caption_unit, []

    def interrupted(*given):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(given[2])
        return real(*given)

    monkeypatch.setattr(caption_table, "_caption_unit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        caption_to_table(model, [str(photos)], str(out), decoding)
    assert not out.exists() and len(done) == 3
    with pytest.raises(UserError, match="interrupted run with another decoding"):
        caption_to_table(model, [str(photos)], str(out), sampling(model, top_p=0.5))
    (photos / "0.png").write_bytes(png(12))  # changed meanwhile
    (photos / "1.png").unlink()
    counted = []
    monkeypatch.setattr(caption_table, "_caption_unit", lambda *given: counted.append(len(given[2])) or real(*given))
    assert caption_to_table(model, [str(photos)], str(out), decoding).images == 8
    assert sum(counted) == 10 - 6 - 0 + 1
    paths = sorted(map(str, photos.glob("?.png")))
    assert [row["caption"] for row in rows_of(out)] == [one[0].text for one in model.caption(paths, decoding)]


def test_a_second_run_does_not_touch_the_table_of_the_first(photos, tmp_path, monkeypatch):
    model, out = make_model(), tmp_path / "captions.csv"
    decoding, folder = sampling(model), tmp_path / "captions.csv.partial"
    real = caption_table._caption_unit

    def meanwhile(*given):
        monkeypatch.setattr(caption_table, "_caption_unit", real)
        with pytest.raises(WorkError, match=f"Another run writes {out} now; wait for it or choose another name"):
            caption_to_table(model, [str(photos)], str(out), decoding)
        return real(*given)

    monkeypatch.setattr(caption_table, "_caption_unit", meanwhile)
    assert caption_to_table(model, [str(photos)], str(out), decoding).images == len(rows_of(out)) == 9
    out.unlink()
    monkeypatch.setattr(caption_table, "_caption_unit", lambda *given: out.write_text("theirs") and real(*given))
    with pytest.raises(WorkError, match=f"Another run wrote {out} meanwhile; keep it and remove {folder}"):
        caption_to_table(model, [str(photos)], str(out), decoding)
    assert out.read_text() == "theirs" and len(list(folder.glob("*.parquet"))) == 1
    out.unlink()
    monkeypatch.setattr(caption_table, "_caption_unit", None)  # all captions are there
    assert caption_to_table(model, [str(photos)], str(out), decoding).images == 9


def test_a_run_without_images_leaves_no_folder(tmp_path):
    model = make_model()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError):
        caption_to_table(model, [str(tmp_path / "empty")], str(tmp_path / "captions.csv"), sampling(model))
    assert [one.name for one in tmp_path.iterdir()] == ["empty"]


def test_the_command(photos, models, tmp_path):
    out = tmp_path / "captions.jsonl"
    command = ["caption", models[0], str(photos), "--out", str(out), "--beams", "2", "--max-length", "8"]
    result = CliRunner().invoke(app, [*command, "--min-length", "1", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1])["images"] == len(rows_of(out)) == 9
    assert "must end in .csv, .jsonl or .parquet" in str(
        CliRunner().invoke(app, ["caption", models[0], str(photos), "--out", "c.txt"]).exception
    )
