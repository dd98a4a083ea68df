"""Every importer on bad sources: refused with one sentence and nothing written, or skipped, counted and named."""

import json
from pathlib import Path

import pytest

from tests.end_to_end.bad_input import picture, refused, run, sample, succeeded, tidy, write_tar

COUNT = 12  # good images beside a bad one, whose share is then allowed


def official(names: list[str], **more) -> dict:
    images = [{"id": number, "file_name": name, **more} for number, name in enumerate(names)]
    annotations = [{"id": number, "image_id": number, "caption": f"a dog {number}"} for number, _ in enumerate(names)]
    return {"images": images, "annotations": annotations}


def karpathy(dataset: str, names: list[str]) -> dict:
    images = [{"filename": name, "split": "test", "sentences": [{"raw": "a dog", "sentid": 1}]} for name in names]
    return {"dataset": dataset, "images": images}


def regions(names: list[str]) -> list:
    return [{"id": int(name.split(".")[0]), "regions": [{"phrase": "a dog", "x": 1}]} for name in names]


def rows(names: list[str], field: str = "image") -> list:
    return [{field: name, "caption": "a dog"} for name in names]


def pairs(names: list[str]) -> list:
    """A sentence for each image, with the same second image; a name that comes twice has two sentences."""
    return [{"images": [name, "0.jpg"], "sentence": "a dog", "label": "True"} for name in names]


# The command, and how it takes a list of image names: the content of its JSON file.
JSON = {
    "coco official": ("coco", official),
    "coco karpathy": ("coco", lambda names: karpathy("coco", names)),
    "coco blip": ("coco", rows),
    "flickr30k karpathy": ("flickr30k", lambda names: karpathy("flickr30k", names)),
    "flickr8k blip": ("flickr8k", rows),
    "vg blip": ("vg", rows),
    "nocaps official": ("nocaps", lambda names: official(names, domain="in-domain")),
    "nocaps blip": ("nocaps", lambda names: [{"image": name, "img_id": n} for n, name in enumerate(names)]),
    "nlvr2 blip": ("nlvr2", pairs),
    "conceptual urls": ("conceptual", lambda names: rows([f"http://x/{name}" for name in names], "url")),
    "conceptual images": ("conceptual", rows),
    "vg regions": ("vg", regions),
}
COMMANDS = sorted({command for command, _ in JSON.values()})
NAMED = [form for form in JSON if form not in ("vg regions", "conceptual urls")]  # files that name images by paths


def call(command: str, folder: Path, content: object) -> list:
    """The arguments of an import from a JSON file with some content; creates good images."""
    (folder / "images").mkdir(exist_ok=True)
    for number in range(COUNT):
        (folder / "images" / f"{number}.jpg").write_bytes(picture(format="JPEG"))
    (folder / "images" / "val2014").mkdir(exist_ok=True)  # from which ../1.jpg would lead to another image
    (folder / "secret.jpg").write_bytes(picture(format="JPEG"))
    path = folder / "annotations.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return ["data", "import", command, path, folder / "out", "--images", folder / "images"]


def good() -> list[str]:
    return [f"{number}.jpg" for number in range(COUNT)]


@pytest.mark.parametrize("form", JSON)
def test_good_files_are_imported(form, tmp_path):
    command, make = JSON[form]
    outcome = run(*call(command, tmp_path, make(good())))
    succeeded(outcome, "annotations.json holds ")
    assert outcome.out.startswith(f"Wrote {COUNT} samples")
    tidy(tmp_path)


BROKEN = {
    "empty": (b"", "is empty"),
    "cut": (b'{"images": [{"id": 1, "file', "not readable as JSON"),
    "binary": (bytes(range(256)), "not a UTF-8 text file"),
    "nested 100,000 deep": (b"[" * 100_000, "not readable as JSON"),
    "a number": (b"3", "unknown kind"),
    "an empty list": (b"[]", "unknown kind"),
    "an empty object": (b"{}", "unknown kind"),
    "VQA": (
        b'[{"image": "1.jpg", "question": "?", "answer": ["yes"], "question_id": 1}]',
        "holds BLIP's VQA questions",
    ),
    "NLVR2": (b'[{"images": ["a.png", "b.png"], "sentence": "x", "label": "True"}]', "holds NLVR2's sentences"),
    "VisDial": (b'{"data": {"dialogs": []}}', "holds VisDial's dialogs"),
    "images that are no list": (b'{"images": {"sentences": 1}, "image_urls": 3, "captions": 3}', ""),
    "boxes": (b'{"images": [{"file_name": "1.jpg"}], "annotations": [{"bbox": []}]}', "holds COCO's boxes"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("command", COMMANDS)
def test_broken_files_and_those_of_another_kind(command, name, tmp_path):
    content, says = BROKEN[name]
    own = (command, name) == ("nlvr2", "NLVR2")  # whose images are missing
    refused(run(*call(command, tmp_path, content)), *(["1 of 1"] if own else [says, "annotations.json"]))
    assert not (tmp_path / "out").exists()
    tidy(tmp_path)


@pytest.mark.parametrize("command", COMMANDS)
def test_missing_files_and_folders(command, tmp_path):
    arguments = call(command, tmp_path, b"[]")
    (tmp_path / "annotations.json").unlink()
    refused(run(*arguments), "annotations.json")
    (tmp_path / "annotations.json").write_text(json.dumps(rows(good())))
    refused(run(*arguments[:-1], tmp_path / "nowhere"), "no image folder", "nowhere")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", JSON)
def test_rows_of_wrong_types_are_skipped_and_named(form, tmp_path):
    command, make = JSON[form]
    values = make(good())
    (values["images"] if isinstance(values, dict) else values).append([3])
    outcome = run(*call(command, tmp_path, values))
    succeeded(outcome, "annotations.json", " 13: bad row")
    assert outcome.out.startswith(f"Wrote {COUNT} samples")


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "../1.jpg", "/etc/passwd", "ABSOLUTE", "a/../../secret.jpg", "gone.jpg", "x\0.jpg"]
)
@pytest.mark.parametrize("form", NAMED)
def test_images_outside_the_folder_and_missing_ones_are_skipped_and_named(form, name, tmp_path):
    command, make = JSON[form]
    name = name.replace("ABSOLUTE", str(tmp_path / "secret.jpg"))
    outcome = run(*call(command, tmp_path, make([*good(), name])))
    succeeded(outcome, "no image")
    assert outcome.out.startswith(f"Wrote {COUNT} samples")
    assert "1 bad samples were skipped (no image: 1)" in outcome.out


@pytest.mark.parametrize("form", NAMED)
def test_names_that_give_the_same_key_are_skipped_and_named(form, tmp_path):
    command, make = JSON[form]
    arguments = call(command, tmp_path, make([*good(), "other/1.jpg"]))
    (tmp_path / "images" / "other").mkdir()
    (tmp_path / "images" / "other" / "1.jpg").write_bytes(picture(format="JPEG", seed=1))
    outcome = run(*arguments)
    succeeded(outcome, "1-0: duplicate key" if command == "nlvr2" else "1.jpg 1: duplicate key")
    assert outcome.out.startswith(f"Wrote {COUNT} samples")


@pytest.mark.parametrize("form", JSON)
def test_too_many_missing_images_are_refused(form, tmp_path):
    command, make = JSON[form]
    arguments = call(command, tmp_path, make([*good(), "98.jpg", "99.jpg"]))
    refused(run(*arguments), "2 of 14", "no image: 2", "max_bad_share")
    assert not (tmp_path / "out").exists()
    succeeded(run(*arguments, "--max-bad-share", "0.2"))


TABLES = {
    "no such table": (None, "There is no table"),
    "empty": (b"", "is empty"),
    "binary": (bytes(range(256)), "table.tsv"),
    "zero bytes": (bytes(100), "no row"),
    "only a heading": (b"image\tcaption\n", "no row"),
    "a heading of unknown columns": (b"a\tb\n1.jpg\ta dog\n", "a, b"),
    "one column": (b"1.jpg\n2.jpg\n", "table.tsv"),
    "field of 200 KB": (b'image,caption\n1.jpg,"' + b"x" * 200_000 + b'"\n', "table.tsv"),
    "rows without an image": (b"image\tcaption\n\ta dog\n", "1 of 1"),
    "rows of other lengths": (b"image\tcaption\na dog\n1.jpg\tx\ty\n", "2 of 2"),
    "names of parents": (b"image\tcaption\n../secret.jpg\ta dog\n", "1 of 1"),
}


@pytest.mark.parametrize("name", TABLES)
def test_bad_tables(name, tmp_path):
    content, says = TABLES[name]
    arguments = call("conceptual", tmp_path, b"")
    if content is not None:
        (tmp_path / "table.tsv").write_bytes(content)
    arguments[3] = tmp_path / "table.tsv"
    refused(run(*arguments), says)
    assert not (tmp_path / "out").exists()
    tidy(tmp_path)


def test_bad_tables_of_flickr30k(tmp_path):
    arguments = call("flickr30k", tmp_path, b"")
    arguments[3] = tmp_path / "results.csv"
    for content, says in ((b"image_name| comment_number| comment\n", "no captions"), (b"1.jpg| 0 a dog\n", "1 of 1")):
        (tmp_path / "results.csv").write_bytes(content)
        refused(run(*arguments), says)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["no folder", "no shards", "cut", "no images", "no number", "missing shard"])
def test_bad_data_sets_of_clip_benchmark(name, tmp_path):
    folder = tmp_path / "wds" / "test"
    members = [member for number in range(3) for member in sample(f"s{number}", cls=b"0")]
    shard = write_tar(folder / "0.tar", members if name != "no images" else [("s0.cls", b"0")])
    (folder / "nshards.txt").write_text({"no number": "many", "missing shard": "2"}.get(name, "1"))
    says = {"no shards": "nshards.txt", "no number": "nshards.txt", "missing shard": "1.tar"}.get(name, "")
    if name == "cut":
        shard.write_bytes(shard.read_bytes()[:700])
    if name == "no shards":
        (folder / "nshards.txt").unlink()
    source = tmp_path / "nowhere" if name == "no folder" else tmp_path / "wds"
    refused(run("data", "import", "clip-benchmark", source, tmp_path / "out"), says)
    assert not (tmp_path / "out").exists()
    tidy(tmp_path)


@pytest.mark.parametrize("make", ["empty", "cut shard", "shard of zero bytes", "every image missing"])
def test_bad_output_of_img2dataset(make, tmp_path):
    folder = tmp_path / "cc3m"
    folder.mkdir()
    if make == "every image missing":
        (folder / "00000").mkdir()
    if make in ("cut shard", "shard of zero bytes"):
        shard = write_tar(folder / "00000.tar", sample("000000000"))
        shard.write_bytes(shard.read_bytes()[:600] if make == "cut shard" else b"")
    refused(run("data", "import", "conceptual", folder, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    tidy(tmp_path)
