"""The CapFilt report: one file with the numbers and images of the tables and shards, or one sentence on an error."""

import base64
import glob
import io
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.scoring import lose_shard
from vlp.capfilt.selection import select
from vlp.cli.main import app, main
from vlp.data import score_tables
from vlp.data.score_tables import METADATA, Scored, table_path, write_beside, write_table
from vlp.data.shard_index import expand_shards
from vlp.data.shards import iterate_samples
from vlp.demo.scenes import write_scenes
from vlp.errors import UserError, WorkError
from vlp.files import write_text
from vlp.report.capfilt_page import PIXELS, STEPS, TITLES, write_capfilt_report

EVIL = "<script>alert(1)</script> & so on"
ABOUT = {"command": "vlp capfilt score --filter <b>F</b>", "captioner": ["C"], "bad": {"truncated": 2, "<i>": 1}}
RULES = "itm >= 0.5 and (source != 'human' or itc > 0)"
GONE = "shard missing or changed"


def score_all(folder, **columns):
    """Write a table next to each shard: a web, a human and a synthetic text per image; most have scores."""
    for shard in expand_shards(f"{folder}/*.tar"):
        rows = []
        for place, sample in enumerate(iterate_samples(glob.escape(shard))):
            size = Image.open(io.BytesIO(sample.image)).size
            itm = (None, place / 20, place / 20)[place % 3]
            texts = {
                "web": sample.text,
                "human": f"scene {place} & more",
                "synthetic": EVIL if place % 2 else "a made one",
            }
            for number, (source, text) in enumerate(texts.items()):
                score = None if itm is None else (itm + 0.3 * number) % 1
                row = Scored(sample.key, source, text, score, place / 10 - 1, sample.info["uid"])
                row.clip, row.nll, row.tokens, (row.width, row.height) = 0.2, 2 + place / 7, 3 + place, size
                for name, value in columns.items():
                    setattr(row, name, value)
                rows.append(row)
        write_table(shard, rows, {"filter": ["F", "1234"], "decoding": {"beams": 3}}, about=ABOUT)


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A folder of three scored shards with 20 scenes each."""
    folder = tmp_path_factory.mktemp("scored") / "web"
    write_scenes(str(folder), 60, "web", 0.5, 200, 20, seed=2)
    score_all(folder)
    return folder


@pytest.fixture
def copied(scored, tmp_path):
    """A copy of the scored shards that a test may damage."""
    return shutil.copytree(scored, tmp_path / "copied")


class Page(HTMLParser):
    """A page as a browser sees it: tags, their links, and the visible text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.addresses, self.spans = set(), [], []
        self.source = Path(path).read_text("utf-8")
        self.feed(self.source)
        self.text = " ".join(" ".join(self.spans).split())

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        pointing = ("src", "href", "xlink:href", "srcset", "data", "action", "poster")
        self.addresses += [value for name, value in attributes if name in pointing]
        assert not any(name.startswith("on") for name, _ in attributes)

    def handle_data(self, data):
        self.spans.append(data)

    @property
    def pictures(self):
        parts = [one.split(",") for one in self.addresses if one.startswith("data:")]
        assert {kind for kind, _ in parts} <= {"data:image/jpeg;base64"}
        return [Image.open(io.BytesIO(base64.b64decode(data, validate=True))) for _, data in parts]


def make_page(scores, output, *args, **also):
    scores = f"{scores}/*.capfilt.parquet" if isinstance(scores, Path) else scores
    write_capfilt_report(scores, str(output), *args, **also)
    return Page(output)


@pytest.fixture(scope="module")
def whole(scored, tmp_path_factory):
    """A page made with all arguments, these arguments, and the reported progress."""
    folder, told = tmp_path_factory.mktemp("whole"), []
    failures = folder / "failures.jsonl"
    lines = [
        {"shard": "web/7.tar", "error": "OSError: <u>gone</u>\u2028for good", "attempts": 3},
        {"shard": "8", "error": "x"},
    ]
    failures.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n\n", "utf-8")
    counts = select(f"{scored}/*.capfilt.parquet", RULES, output=str(folder / "new"), quiet=True)
    page = make_page(scored, folder / "page.html", str(folder / "new"), str(failures), progress=told.append)
    return SimpleNamespace(page=page, folder=folder, failures=failures, counts=counts, told=told)


def test_the_page_loads_and_runs_nothing(whole):
    page = whole.page
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "base", "form", "u", "i"}
    assert all(address.startswith(("data:image/jpeg;", "#")) or "://" in address for address in page.addresses)
    outside = set(re.findall(r"https?://([^/\"]+)", page.source))
    assert outside <= {"www.w3.org", "purl.org", "creativecommons.org", "matplotlib.org"}  # names in the figures' XML
    assert not re.search(r"url\((?!#)|@import", page.source)
    assert EVIL not in page.source
    assert EVIL in page.text
    assert "--filter <b>F</b>" in page.text
    assert whole.folder.joinpath("page.html").stat().st_size < 3_000_000
    assert len(whole.told) == STEPS


def test_the_page_shows_scores_failures_and_bad_samples(whole):
    for words in (
        *TITLES.values(),
        *(f"threshold of {TITLES[name]}" for name in ("itm", "itc", "clip")),
        "words per text",
        "shorter side of the image (pixels)",
        "width : height",
        "60 images",
        "60 synthetic texts",
        "3 score tables",
        "2 failed shards",
        "9 bad samples",
        "web/7.tar OSError: <u>gone</u> for good 3",
        "<i> 3",
        "truncated 6",
        "beams 3",
        "200×200 100.0%",
    ):
        assert words in whole.page.text, words
    assert whole.page.source.count("<svg") == 5 + 3 + 3


def test_the_page_shows_images_with_all_their_texts(whole):
    pictures = whole.page.pictures
    assert 20 < len(pictures) <= 40
    assert {picture.size for picture in pictures} == {(PIXELS, PIXELS)}
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)
    assert GONE not in whole.page.text
    assert whole.page.text.count("✓ kept") + whole.page.text.count("✗ dropped ITM") == 3 * len(pictures)


def test_a_folder_stands_for_its_score_tables(copied, tmp_path):
    tables = glob.glob(f"{copied}/*.capfilt.parquet")
    write_capfilt_report(str(copied), str(tmp_path / "page.html"))
    assert f"All texts in {len(tables)} score table" in (tmp_path / "page.html").read_text()


def test_a_selection_marks_the_same_texts_as_a_folder_and_as_a_table(whole, scored):
    page, counts = whole.page, whole.counts
    assert 0 < counts.images < 60
    assert f"{counts.images} of 60 images" in page.text
    for source, kept in counts.kept_texts.items():
        assert f"{kept} of 60 {source} texts" in page.text
    assert page.text.count("✓ kept") > 10
    select(f"{scored}/*.capfilt.parquet", RULES, table=str(whole.folder / "new.parquet"), quiet=True)
    again = make_page(scored, whole.folder / "2.html", str(whole.folder / "new.parquet"), str(whole.failures))
    assert again.source.replace("new.parquet", "new") == page.source


@pytest.mark.parametrize("target", ["output", "table"])
def test_a_key_in_two_shards_is_marked_only_in_the_selected_one(tmp_path, target):
    """Three shards have the same keys and texts; with a selected table even equal images are told apart."""
    for number, seed in enumerate((4, 4, 5) if target == "table" else (4, 5, 6)):
        shard = tmp_path / f"{number}.tar"
        write_scenes(str(tmp_path / "new"), 5, "web", 0.5, 32, 5, seed=seed)
        shutil.move(tmp_path / "new" / "00000.tar", shard)
        samples = list(iterate_samples(str(shard)))
        rows = [Scored(one.key, "web", "a text", 0.9 if number == 0 else 0.1, 0.0, one.info["uid"]) for one in samples]
        write_table(str(shard), rows, {})
    chosen = str(tmp_path / ("chosen.parquet" if target == "table" else "chosen"))
    select(f"{tmp_path}/*.capfilt.parquet", "itm >= 0.5", quiet=True, **{target: chosen})
    page = make_page(tmp_path, tmp_path / "page.html", chosen)
    assert "5 of 15 images" in page.text and "5 of 15 web texts" in page.text
    assert page.text.count("✓ kept") == page.text.count("✓ kept ITM 0.90") == 4
    assert page.text.count("✗ dropped ITM 0.10") == 4


def test_an_empty_selection_and_shards_that_changed_or_are_missing(copied, tmp_path):
    """A folder without shards selects nothing; changed and missing shards show no images."""
    select(f"{copied}/*.capfilt.parquet", "itm > 2", output=str(tmp_path / "none"), quiet=True)
    shards = expand_shards(f"{copied}/*.tar")
    write_scenes(str(tmp_path / "else"), 20, "web", 0.5, 32, 20, seed=9)
    shutil.copy(tmp_path / "else/00000.tar", shards[0])
    lose_shard(table_path(shards[1]))
    scores = [f"{copied}/*.capfilt.parquet", table_path(shards[2])]  # the last of them twice
    page = make_page(scores, tmp_path / "new" / "page.html", str(tmp_path / "none"))
    assert "0 of 60 images" in page.text and "3 score tables" in page.text
    assert "✓ kept" not in page.text
    shown, hidden = len(page.pictures), page.text.count(GONE)
    assert shown > 3 and hidden > 10
    lose_shard(table_path(shards[2]))
    page = make_page(copied, tmp_path / "page.html")
    assert not page.pictures
    assert page.text.count(GONE) == shown + hidden
    assert "Selection" not in page.text
    assert "✓" not in page.text and "dropped" not in re.findall(r'class="text ?(\w*)"', page.source)


def test_pages_of_tables_with_few_columns_or_no_rows(scenes, tmp_path):
    folder = shutil.copytree(scenes, tmp_path / "few[1]")
    score_all(tmp_path / "few[[]1]", itm=None, clip=None, nll=None, tokens=None, width=0)
    page = make_page([f"{tmp_path}/few?1]/*.capfilt.parquet"], tmp_path / "page.html")
    assert page.source.count("<svg") == 3  # histogram and thresholds of ITC, and words
    assert "by the ITC cosine of their best web text" in page.text
    assert page.pictures and GONE not in page.text
    shard = folder / "00000.tar"
    write_table(str(shard), [], {})
    page = make_page(f"{tmp_path}/few?1]/00000.capfilt.parquet", tmp_path / "page.html")
    assert "0 images" in page.text and "svg" not in page.tags


def test_another_seed_samples_other_images(whole, scored, tmp_path):
    page = make_page(scored, tmp_path / "page.html", seed=1)
    assert len(page.pictures) == len(whole.page.pictures)
    assert page.addresses != whole.page.addresses
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def sentence(kind, *args):
    """The error message of a call that must fail with one sentence."""
    with pytest.raises(kind) as raised:
        write_capfilt_report(*map(str, args))
    message = str(raised.value)
    assert "\n" not in message and message.endswith(".") and len(message) < 400
    return message


def test_files_that_are_not_score_tables(copied, tmp_path, monkeypatch):
    out, table = tmp_path / "page.html", Path(table_path(expand_shards(f"{copied}/*.tar")[0]))
    assert "No score table matches" in sentence(UserError, tmp_path / "*.capfilt.parquet", out)
    assert "No score table matches" in sentence(UserError, tmp_path / "none.capfilt.parquet", out)
    assert "00000.tar is not a score table" in sentence(UserError, copied / "00000.tar", out)
    pq.write_table(pa.table({"key": ["a"]}), copied / "other.parquet")
    assert "other.parquet is not a score table" in sentence(UserError, copied / "*.parquet", out)
    write_beside(str(copied / "00000.tar"), pa.table({"key": ["a"], "duplicate_of": ["b"]}), {}, None, "duplicates")
    assert "duplicates.parquet is not a score table" in sentence(UserError, copied / "0*.parquet", out)
    monkeypatch.setattr(score_tables, "VERSION", "1")
    write_table(str(copied / "00000.tar"), [], {})
    assert f"{table} has format version 1, not 2" in sentence(UserError, table, out)
    assert not out.exists()


def test_damaged_tables(copied, tmp_path):
    out, table = tmp_path / "page.html", Path(table_path(expand_shards(f"{copied}/*.tar")[0]))
    content = table.read_bytes()
    table.write_bytes(content[:-20])
    assert "is not a score table" in sentence(UserError, table, out)
    footer = content.index(METADATA.encode()) - 3000
    table.write_bytes(content[:4] + bytes(footer // 2) + content[4 + footer // 2 :])
    assert f"{table} cannot be read: " in sentence(WorkError, copied / "*.capfilt.parquet", out)
    assert not out.exists()


@pytest.mark.parametrize(
    "content", ("not JSON", "5", '{"shard": "a"}', '["shard", "error"]', '{"shard": "a", "err', b"\xff")
)
def test_lists_of_failures_that_are_not_json_lines(scored, tmp_path, content):
    path = tmp_path / "failures.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else f'{{"shard": "a", "error": "b"}}\n{content}'.encode())
    message = sentence(UserError, f"{scored}/*.capfilt.parquet", tmp_path / "page.html", "", path)
    assert f"{path} is not a list of failed shards" in message


def test_missing_and_wrong_arguments(scored, tmp_path):
    out, tables = tmp_path / "page.html", f"{scored}/*.capfilt.parquet"
    assert "cannot be read; give the list of failed shards" in sentence(
        UserError, tables, out, "", tmp_path / "none.jsonl"
    )
    assert "cannot be read; give the list of failed shards" in sentence(UserError, tables, out, "", tmp_path)
    assert "none; give the folder or table" in sentence(UserError, tables, out, tmp_path / "none")
    (tmp_path / "uids.npy").write_bytes(b"no table")
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "other.parquet")
    for name in ("uids.npy", "other.parquet"):
        assert f"{name} was not written by" in sentence(UserError, tables, out, tmp_path / name)
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(UserError, match=r"folder\.html is a folder; name a file\."):
        write_text(tmp_path / "folder.html", "a page")
    with pytest.raises(WorkError, match=r"page\.html cannot be written: "):
        write_text(tmp_path / "uids.npy" / "page.html", "a page")
    assert {path.name for path in tmp_path.iterdir()} == {"folder.html", "uids.npy", "other.parquet"}


def test_the_command(whole, scored, monkeypatch, capsys):
    out = whole.folder / "by-command.html"
    arguments = ["capfilt", "report", "--scores", f"{scored}/0000{{0..2}}.capfilt.parquet", "--out", str(out)]
    more = ["--selected", str(whole.folder / "new"), "--failures", str(whole.failures)]
    result = CliRunner().invoke(app, [*arguments, *more])
    assert result.exit_code == 0, (result.output, result.exception)
    assert f"{out} is complete" in result.output
    assert Page(out).source == whole.page.source
    monkeypatch.setattr(sys, "argv", ["vlp", *arguments, "--failures", str(scored / "none")])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        f"vlp: {scored}/none cannot be read; give the list of failed shards, or leave out --failures.\n"
    )
