"""`vlp data inspect`: what shards contain, also those with damage or without texts."""

import json

import pytest
from typer.testing import CliRunner

from vlp.cli.main import app
from vlp.data.inspect import inspect_shards
from vlp.data.shard_writer import ShardWriter
from vlp.data.shards import iterate_samples
from vlp.errors import UserError


def test_inspection_counts_what_is_there(web_scenes):
    facts = inspect_shards(f"{web_scenes}/*.tar")
    assert (facts["shards"], facts["samples"], facts["captions"], facts["bad"]) == (3, 60, 60, {})
    assert facts["image_sizes"] == {"32x32": 60}
    assert len(facts["pictures"]) == 40
    assert sum(facts["frequent_words"].values()) > 60


def test_samples_without_a_text_are_counted(web_scenes, tmp_path):
    image = next(iterate_samples(f"{web_scenes}/*.tar")).image
    with ShardWriter(tmp_path / "out") as writer:
        for key, data, text in (("a", image, None), ("b", image, "a star"), ("c", b"broken", None)):
            writer.write(key, data, "png", text, {})
    facts = inspect_shards(str(tmp_path / "out/*.tar"))
    assert (facts["samples"], facts["without_text"], facts["captions"]) == (2, 1, 1)
    assert facts["bad"] == {"image undecodable": 1}
    sheet = tmp_path / "sheet.png"
    result = CliRunner().invoke(app, ["data", "inspect", str(tmp_path / "out/*.tar"), "--sheet", str(sheet), "--json"])
    assert json.loads(result.stdout.splitlines()[-1])["without_text"] == 1
    assert sheet.exists()


def test_shards_without_a_readable_sample_are_one_sentence(tmp_path):
    with ShardWriter(tmp_path) as writer:
        writer.write("a", b"broken", "png", "a star", {})
    with pytest.raises(UserError, match=r"No sample can be read from .*\(image undecodable: 1\)\."):
        inspect_shards(str(tmp_path / "*.tar"))
