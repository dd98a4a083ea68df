"""Wrong values on the command line, outputs that cannot be written, and importers with bad sources."""

import json
from pathlib import Path

import pytest

from tests.end_to_end.bad_input import picture, refused, run, succeeded, tidy

MODEL, PHOTO, SHARDS, TABLES, OUT = "MODEL", "PHOTO", "SHARDS", "TABLES", "OUT"  # replaced by what the fixture has


@pytest.fixture(scope="module")
def world(tmp_path_factory, scenes, models) -> dict[str, str]:
    """A model, a photo, shards and their score tables."""
    folder = tmp_path_factory.mktemp("commands")
    shard = folder / "00000.tar"
    shard.write_bytes((scenes / "00000.tar").read_bytes())
    (folder / "photo.png").write_bytes(picture())
    succeeded(run("capfilt", "score", "--shards", shard, "--filter", models[1]))
    tables = str(folder / "00000.capfilt.parquet")
    return {MODEL: models[1], PHOTO: str(folder / "photo.png"), SHARDS: str(shard), TABLES: tables}


# A command line, and what the sentence must hold.
VALUES = [
    ("", "vlp"),
    ("nothing", "nothing"),
    ("data nothing", "nothing"),
    ("caption", "model"),
    ("caption MODEL", "images"),
    ("caption MODEL PHOTO --nothing 3", "--nothing"),
    ("caption MODEL PHOTO --beams -1", "beams"),
    ("caption MODEL PHOTO --beams 100000", "beams"),
    ("caption MODEL PHOTO --beams x", "--beams"),
    ("caption MODEL PHOTO --beams 2 --num-captions 3", "beams"),
    ("caption MODEL PHOTO --num-captions 0", "captions"),
    ("caption MODEL PHOTO --num-captions -1", "captions"),
    ("caption MODEL PHOTO --max-length 0", "max"),
    ("caption MODEL PHOTO --max-length -1", "max"),
    ("caption MODEL PHOTO --max-length 100000", "max"),
    ("caption MODEL PHOTO --min-length -1", "min"),
    ("caption MODEL PHOTO --min-length 30 --max-length 20", "min"),
    ("caption MODEL PHOTO --beams 0 --top-p 0", "top"),
    ("caption MODEL PHOTO --beams 0 --top-p nan", "top"),
    ("caption MODEL PHOTO --beams 0 --top-k -1", "top"),
    ("caption MODEL PHOTO --beams 0 --temperature 0", "temperature"),
    ("caption MODEL PHOTO --beams 0 --temperature nan", "temperature"),
    ("caption MODEL PHOTO --beams 0 --temperature inf", "temperature"),
    ("caption MODEL PHOTO --repetition-penalty 0", "repetition"),
    ("caption MODEL PHOTO --repetition-penalty nan", "repetition"),
    ("caption MODEL PHOTO --no-repeat-ngram -1", "repeat"),
    ("caption MODEL /nonexistent.png", "/nonexistent.png"),
    ("caption MODEL /proc", "/proc"),
    ("caption MODEL ''", "image"),
    ("caption '' PHOTO", "model"),
    ("caption PHOTO PHOTO", "photo.png"),
    ("caption /nonexistent PHOTO", "/nonexistent"),
    ("caption no/such/model PHOTO", "no/such/model"),
    ("caption nobody/nothing PHOTO", "nobody/nothing"),
    ("caption 'a b?' PHOTO", "a b?"),
    ("match MODEL /nonexistent.png text", "/nonexistent.png"),
    ("search MODEL /nonexistent --query red", "/nonexistent"),
    ("search MODEL SHARDS --query ''", "query"),
    ("search MODEL SHARDS --query '...'", "query"),
    ("search MODEL SHARDS --query red --top 0", "top"),
    ("search MODEL SHARDS --query red --top -1", "top"),
    ("search MODEL SHARDS --query red --rerank -1", "rerank"),
    ("search MODEL --query red", "--index"),
    ("search MODEL SHARDS --query red --image PHOTO", "--image"),
    ("search --index /nonexistent --query red", "/nonexistent"),
    ("search MODEL --index SHARDS --query red", "00000.tar"),
    ("index SHARDS OUT", "--model"),
    ("index SHARDS OUT --model /nonexistent", "/nonexistent"),
    ("index /nonexistent OUT --model MODEL", "/nonexistent"),
    ("index SHARDS PHOTO --model MODEL", "photo.png"),
    ("index pipe:cat OUT --model MODEL", "pipe:cat"),
    ("caption MODEL SHARDS --out OUT", ".csv"),
    ("caption MODEL /nonexistent --out OUT.csv", "/nonexistent"),
    ("evaluate retrieval MODEL SHARDS --rerank -1", "rerank"),
    ("evaluate retrieval MODEL SHARDS --limit 0", "limit"),
    ("evaluate retrieval MODEL SHARDS --limit -3", "limit"),
    ("evaluate retrieval MODEL SHARDS --out PHOTO/x.json --limit 3", "x.json"),
    ("evaluate retrieval MODEL SHARDS --out /proc/x.json --limit 3", "/proc/x.json"),
    ("evaluate captioning MODEL SHARDS --beams -1", "beams"),
    ("evaluate captioning MODEL SHARDS --limit -1", "limit"),
    ("evaluate matching MODEL /nonexistent.tsv --images /tmp", "/nonexistent.tsv"),
    ("evaluate matching MODEL PHOTO --images /tmp", "photo.png"),
    ("evaluate nothing MODEL SHARDS", "nothing"),
    ("data make OUT --num 0", "num"),
    ("data make OUT --num -5", "num"),
    ("data make OUT --num 1e3", "num"),
    ("data make OUT --num 4 --split other", "other"),
    ("data make OUT --num 4 --split web --wrong 2", "wrong"),
    ("data make OUT --num 4 --split web --wrong nan", "wrong"),
    ("data make OUT --num 4 --image-size 0", "image-size"),
    ("data make OUT --num 4 --image-size 100000", "image-size"),
    ("data make OUT --num 4 --shard-size 0", "shard-size"),
    ("data make OUT --num 4 --seed -1", "seed"),
    ("data make PHOTO --num 4", "photo.png"),
    ("data make PHOTO/inside --num 4", "photo.png"),
    ("data make /proc/vlp --num 4", "/proc/vlp"),
    ("data make '' --num 4", "output"),
    ("data inspect", "shards"),
    ("data inspect SHARDS --sheet /proc/x.png", "/proc/x.png"),
    ("tokenizer SHARDS OUT --size 0", "size"),
    ("tokenizer SHARDS OUT --size -1", "size"),
    ("tokenizer SHARDS OUT --size 5", "size"),
    ("tokenizer SHARDS PHOTO", "photo.png"),
    ("tokenizer SHARDS PHOTO/inside", "photo.png"),
    ("tokenizer SHARDS ''", "output"),
    ("convert /nonexistent OUT", "/nonexistent"),
    ("convert MODEL OUT", "model"),
    ("convert MODEL PHOTO --to hf", "photo.png"),
    ("convert MODEL OUT --to onnx", "--to"),
    ("convert MODEL OUT --to hf --kind nothing", "--kind"),
    ("convert PHOTO OUT", "photo.png"),
    ("convert SHARDS OUT", "00000.tar"),
    ("capfilt score --shards SHARDS", "--filter"),
    ("capfilt score --shards SHARDS --filter ''", "filter"),
    ("capfilt score --shards SHARDS --filter MODEL --batch-size 0", "batch"),
    ("capfilt score --shards SHARDS --filter MODEL --num-captions 0", "num"),
    ("capfilt score --shards SHARDS --filter MODEL --precision x", "precision"),
    ("capfilt score --shards SHARDS --filter MODEL --part 0/3", "part"),
    ("capfilt score --shards SHARDS --filter MODEL --part 4/3", "part"),
    ("capfilt score --shards SHARDS --filter MODEL --part x", "part"),
    ("capfilt score --shards SHARDS --filter MODEL --seed -1", "seed"),
    ("capfilt score --shards SHARDS --filter MODEL --name a/b", "name"),
    ("capfilt score --shards SHARDS --filter MODEL --name ''", "name"),
    ("capfilt score --shards SHARDS --filter MODEL --set decoding.top_p=2", "decoding.top_p"),
    ("capfilt score --shards SHARDS --filter MODEL --set nothing=2", "nothing"),
    ("capfilt score --shards SHARDS --filter MODEL --failures /proc/x/y", "/proc/x"),
    ("capfilt duplicates --shards SHARDS --model MODEL --above 2", "above"),
    ("capfilt duplicates --shards SHARDS --model MODEL --above nan", "above"),
    ("capfilt duplicates --shards SHARDS --model MODEL --batch-size 0", "batch"),
    ("capfilt duplicates --shards SHARDS --model MODEL --precision x", "precision"),
    ("capfilt duplicates --shards SHARDS --model MODEL --against no/*.tar", "no/*.tar"),
    ("capfilt duplicates --shards SHARDS --model MODEL --by bytes", "bytes"),
    ("capfilt duplicates --shards SHARDS --model MODEL --keep best:width", "best:width"),
    ("capfilt duplicates --shards SHARDS", "--model"),
    ("capfilt export --shards SHARDS --model MODEL --layout coco --out out", "coco"),
    ("capfilt export --shards SHARDS --model MODEL --name a-b --layout datacomp --out out", "a-b"),
    ("capfilt export --shards SHARDS --model MODEL --scores none --out out", "score table"),
    ("capfilt select 'itm >= 0' --scores TABLES", "--out"),
    ("capfilt select 'itm >= 0' --scores TABLES --out OUT --uids x.npy", "--out"),
    ("capfilt select 'itm >= 0' --scores TABLES --table x.parquet --human SHARDS", "--human"),
    ("capfilt select 'itm >= 0' --scores TABLES --out PHOTO", "photo.png"),
    ("capfilt select 'itm >= 0' --scores TABLES --out PHOTO/inside", "photo.png"),
    ("capfilt select 'itm >= 0' --scores TABLES --out /proc/x", "/proc/x"),
    ("capfilt select 'itm >= 0' --scores TABLES --table PHOTO/x.parquet", "x.parquet"),
    ("capfilt select 'itm >= 0' --scores TABLES --out OUT --human no/*.tar", "no/*.tar"),
    ("capfilt select 'itm >= 0' --scores TABLES --out OUT --also x", "x"),
    ("capfilt select 'itm >= 0' --scores TABLES --out OUT --also x=no.parquet", "no.parquet"),
    ("capfilt select 'itm >= 0' --scores '' --out OUT", "score table"),
    ("capfilt report --scores no/*.parquet", "no/*.parquet"),
    ("capfilt report --scores TABLES --out PHOTO/x.html", "x.html"),
    ("capfilt report --scores TABLES --out /proc/x.html", "/proc/x.html"),
    ("capfilt report --scores TABLES --out OUT --selected /nonexistent", "/nonexistent"),
    ("capfilt report --scores TABLES --out OUT --failures /nonexistent", "/nonexistent"),
    ("capfilt report --scores TABLES --out OUT --failures PHOTO", "photo.png"),
    ("capfilt report --scores TABLES --out OUT --seed -1", "seed"),
    ("demo PHOTO --quick", "photo.png"),
    ("demo PHOTO/inside --quick", "photo.png"),
    ("demo OUT --quick --seed -1", "seed"),
    ("bench nothing", "nothing"),
    ("bench caption --batch 0", "batch"),
    ("bench train --repeats 0", "repeats"),
    ("config /nonexistent.yaml", "/nonexistent.yaml"),
]


@pytest.mark.parametrize(("line", "says"), VALUES, ids=[line or "no arguments" for line, _ in VALUES])
def test_a_wrong_call_is_named_and_writes_nothing(line, says, tmp_path, world, monkeypatch):
    import shlex

    monkeypatch.chdir(tmp_path)
    before = sorted(Path(world[SHARDS]).parent.iterdir())
    names = {**world, OUT: str(tmp_path / "out")}
    words = []
    for word in shlex.split(line):
        for name, value in names.items():
            word = word.replace(name, value)
        words.append(word)
    outcome = run(*words)
    if line:
        refused(outcome, says)
    assert outcome.code == 2 or line.startswith(("data", "capfilt", "tokenizer", "demo", "evaluate"))
    assert not list(tmp_path.iterdir())
    assert sorted(Path(world[SHARDS]).parent.iterdir()) == before


def flickr(folder: Path, captions: bytes | None, split: bytes | None = None, images: bool = True) -> list:
    """The arguments of an import; `captions` and `split` are the contents of the files."""
    (folder / "images").mkdir()
    for name in ("a.jpg", "b.jpg") if images else ():
        (folder / "images" / name).write_bytes(picture(format="JPEG"))
    for name, content in (("captions.txt", captions), ("split.txt", split)):
        if content is not None:
            (folder / name).write_bytes(content)
    given = ["flickr8k", folder / "captions.txt", folder / "out", "--images", folder / "images"]
    return given + (["--names", folder / "split.txt"] if split is not None else [])


CSV = b"image,caption\na.jpg,a red circle\nb.jpg,a blue square\n"
FLICKR = {
    "no CSV": (None, None, "captions.txt"),
    "empty CSV": (b"", None, "captions.txt"),
    "only a heading": (b"image,caption\n", None, "captions.txt"),
    "one column": (b"a.jpg\nb.jpg\n", None, "captions.txt"),
    "binary CSV": (bytes(range(256)), None, "captions.txt"),
    "CSV of zero bytes": (bytes(100), None, "captions.txt"),
    "field of 200 KB": (b'image,caption\na.jpg,"' + b"x" * 200_000 + b'"\n', None, "captions.txt"),
    "images that are missing": (b"image,caption\nc.jpg,no\nd.jpg,no\n", None, "2 of 2"),
    "names of parents": (b"image,caption\n../a.jpg,no\n/etc/passwd,no\n", None, "2 of 2"),
    "names with zero bytes": (b"image,caption\na\0.jpg,no\n", None, ""),
    "names that are too long": (b"image,caption\n" + b"x" * 5000 + b".jpg,no\n", None, "1 of 1"),
    "empty split": (CSV, b"", "no sample"),
    "split of another set": (CSV, b"x.jpg\ny.jpg\n", "2 of 2"),
    "binary split": (CSV, b"\xff\xfe", "split.txt"),
}


@pytest.mark.parametrize("name", FLICKR)
def test_an_import_of_flickr8k_from_bad_files(name, tmp_path):
    captions, split, says = FLICKR[name]
    outcome = run("data", "import", *flickr(tmp_path, captions, split))
    refused(outcome, says)
    assert not list(tmp_path.glob("out/*"))
    tidy(tmp_path)


def test_an_import_skips_and_names_bad_images(tmp_path):
    lines = [b"image,caption", *[b"a.jpg,a red circle %d" % number for number in range(12)]]
    lines += [b"n%d.jpg,a red circle" % number for number in range(12)] + [b"gone.jpg,no image"]
    arguments = flickr(tmp_path, b"\n".join(lines))
    for number in range(12):
        (tmp_path / "images" / f"n{number}.jpg").write_bytes(picture(format="JPEG"))
    outcome = run("data", "import", *arguments)
    succeeded(outcome, "gone.jpg: no image")
    assert outcome.out.startswith("Wrote 13 samples")


def line(**fields) -> bytes:
    return json.dumps(fields).encode()


# Lines of metadata.jsonl after 12 good ones, and the reason for which the line is skipped.
METADATA = {
    "cut": (b'{"file_name": "a.jpg", "te', "bad json"),
    "list": (b"[1]", "bad row"),
    "name a number": (line(file_name=3, text="x"), "bad row"),
    "no name": (line(text="x"), "bad row"),
    "missing image": (line(file_name="x.jpg", text="x"), "no image"),
    "name of a parent": (line(file_name="../secret.jpg", text="x"), "no image"),
    "absolute name": (line(file_name="/etc/passwd", text="x"), "no image"),
    "zero byte in a name": (line(file_name="a\0.jpg", text="x"), "no image"),
    "name that is too long": (line(file_name="x" * 5000 + ".jpg", text="x"), "no image"),
    "folder as an image": (line(file_name="dir.jpg", text="x"), "no image"),
    "broken image": (line(file_name="broken.jpg", text="x"), "image undecodable"),
    "Latin-1": (b'{"file_name": "a.jpg", "text": "\xe9"}', "text not UTF-8"),
    "half a character": (b'{"file_name": "a.jpg", "text": "\\ud800"}', "text not UTF-8"),
    "nested 100,000 deep": (b"[" * 100_000, "bad json"),
}


@pytest.mark.parametrize("name", METADATA)
def test_an_import_of_a_folder_skips_and_names_bad_lines(name, tmp_path):
    odd, reason = METADATA[name]
    folder = tmp_path / "photos"
    (folder / "dir.jpg").mkdir(parents=True)
    for number in ("a", *range(12)):
        (folder / f"{number}.jpg").write_bytes(picture(format="JPEG"))
    (folder / "broken.jpg").write_bytes(b"broken")
    (tmp_path / "secret.jpg").write_bytes(picture(format="JPEG"))
    lines = [line(file_name=f"{number}.jpg", text="a circle") for number in range(12)]
    (folder / "metadata.jsonl").write_bytes(b"\n".join([*lines, odd]))
    outcome = run("data", "import", "folder", folder, tmp_path / "out")
    succeeded(outcome, reason)
    assert outcome.err.count("skipped") == 1
    assert "metadata.jsonl line 13" in outcome.err or reason not in ("bad json", "bad row")
    assert outcome.out.startswith("Wrote 12 samples")
    tidy(tmp_path)


@pytest.mark.parametrize("fields", [{}, {"text": 3}, {"text": " "}, {"text": None}, {"text": []}, {"text": [None, 3]}])
def test_an_import_keeps_images_without_a_text(fields, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(picture(format="JPEG"))
    (tmp_path / "photos" / "metadata.jsonl").write_bytes(line(file_name="a.jpg", **fields))
    outcome = run("data", "import", "folder", tmp_path / "photos", tmp_path / "out")
    succeeded(outcome)
    assert "1 of them have no text" in outcome.out


@pytest.mark.parametrize("make", ["no folder", "no metadata", "metadata a folder", "only bad lines", "empty"])
def test_an_import_of_a_folder_that_is_none(make, tmp_path):
    folder = tmp_path / "photos"
    if make != "no folder":
        folder.mkdir()
    if make == "metadata a folder":
        (folder / "metadata.jsonl").mkdir()
    if make in ("only bad lines", "empty"):
        (folder / "metadata.jsonl").write_bytes(b"{\n{\n" if make == "only bad lines" else b"")
    refused(run("data", "import", "folder", folder, tmp_path / "out"))
    assert not list(tmp_path.glob("out/*"))
    tidy(tmp_path)
