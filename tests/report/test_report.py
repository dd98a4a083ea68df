"""Pictures and pages from files on disk."""

import io
import json

import pytest
from PIL import Image

from vlp.data.score_tables import Scored, write_table
from vlp.data.shard_writer import ShardWriter
from vlp.data.shards import iterate_samples
from vlp.demo.page import write_demo_page
from vlp.demo.scenes import write_scenes
from vlp.report.curves import loss_curves
from vlp.report.sheets import contact_sheet


def write_log(path, steps=5):
    path.parent.mkdir(parents=True)
    records = [{"step": 20 * n, "itc": 7 - n, "itm": 0.6, "lm": 3 - n / 9} for n in range(1, steps)]
    path.write_text("\n".join(map(json.dumps, records)) + '\n{"step": 99')


def test_curves_show_every_run_and_loss(tmp_path):
    write_log(tmp_path / "a/log.jsonl")
    write_log(tmp_path / "b/log.jsonl")
    svg = loss_curves({"noisy": tmp_path / "a/log.jsonl", "bootstrapped": tmp_path / "b/log.jsonl"})
    assert svg.startswith("<svg")
    for word in ("noisy", "bootstrapped", "ITC", "ITM", "LM"):
        assert word in svg


def test_a_contact_sheet_shows_every_picture():
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    pictures = [(Image.new("RGB", (30, 10 + 20 * n), colours[n]), f"picture {n}" * 20) for n in range(3)]
    sheet = Image.open(io.BytesIO(contact_sheet(pictures, columns=2)))
    found = {colour for _, colour in sheet.getcolors(sheet.width * sheet.height)}
    assert found >= set(colours)
    assert contact_sheet([]).startswith(b"\x89PNG")


def test_the_demo_page_is_whole_and_loads_nothing(tmp_path):
    scores = {"itc_t2i_r1": 0.2, "i2t_r1": 0.5, "t2i_r1": 0.25, "caption_exact": 0.125}
    names = "filter_auc web_wrong_dropped filter_relation_itm_auc web_texts_kept_right web_texts_kept_wrong"
    quality = dict.fromkeys([*names.split(), "synthetic_kept", "synthetic_exact"], 0.75)
    results = {"noisy": scores, "bootstrapped": {**scores, "t2i_r1": 0.375}, **quality}
    results |= {"synthetic_kept_exact": float("nan"), "seed": 0, "quick": False, "seconds": 12.0}
    (tmp_path / "report.json").write_text(json.dumps(results))
    for name in ("noisy", "bootstrapped"):
        write_log(tmp_path / name / "log.jsonl")
    write_scenes(str(tmp_path / "data/web"), 30, "web", 0.5, 32, 30, seed=0)
    shard = str(tmp_path / "data/web/00000.tar")
    rows = [
        Scored(one.key, "web", one.text, 0.9 if one.info["truth"]["text_right"] else 0.1, 0)
        for one in iterate_samples([shard])
    ]
    write_table(shard, rows, {})
    with ShardWriter(str(tmp_path / "data/cleaned")) as writer:
        for one in iterate_samples(shard):
            if one.info["truth"]["text_right"]:
                info = {"captions": [{"text": one.text, "source": "web"}]}
                writer.write(one.key, one.image, "png", one.text, info)
    write_demo_page(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "+12.5" in page
    assert page.count('class="example"') == 12
    assert page.count("✗ web · wrong: ") == 6
    assert page.count("✓ web") == 6
    for remote in ("http://", "https://", "<script", "<link"):
        assert remote not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
            "http://creativecommons.org", ""
        ).replace("https://matplotlib.org", "")


def test_templates_refuse_missing_names():
    from jinja2 import UndefinedError

    from vlp.demo.page import render

    with pytest.raises(UndefinedError):
        render("page.html.j2", package="vlp.demo", results={})
