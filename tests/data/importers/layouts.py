"""Small data sets in the official layouts, and what an import made of them."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from PIL import Image

from vlp.data.importers.write import ImportCounts, Importer, write_imported
from vlp.data.shards import Sample, iterate_samples


def photo(path: Path, shade: int = 0, size: tuple[int, int] = (20, 10)) -> bytes:
    """Write an image of one color; returns the bytes of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 0, 255 - shade)).save(path)
    return path.read_bytes()


def write_json(path: Path, values: Any) -> str:
    """Write a JSON file; returns its path."""
    path.write_text(json.dumps(values))
    return str(path)


def imported(importer: Importer, out: Path, max_bad_share: float = 1.0) -> tuple[ImportCounts, dict[str, Sample]]:
    """Import as shards; returns the counts and the samples by key."""
    counts = write_imported(importer, str(out), max_bad_share=max_bad_share)
    return counts, {sample.key: sample for sample in iterate_samples(f"{out}/*.tar")}


OFFICIAL = {
    "info": {"year": 2014},
    "licenses": [],
    "images": [
        {"id": 522418, "file_name": "COCO_val2014_000000522418.jpg", "width": 20, "height": 10, "license": 4},
        {"id": 184613, "file_name": "COCO_val2014_000000184613.jpg", "width": 20, "height": 10, "license": 1},
        {"id": 9, "file_name": "COCO_val2014_000000000009.jpg", "width": 20, "height": 10, "license": 1},
    ],
    "annotations": [
        {"image_id": 522418, "id": 681330, "caption": "A woman cuts a cake. "},
        {"image_id": 184613, "id": 474921, "caption": "A child holds an umbrella."},
        {"image_id": 522418, "id": 686718, "caption": "A woman with a net on her head.\n"},
        {"image_id": 522418, "id": 688839, "caption": "A woman cuts a cake."},
        {"image_id": 9, "id": 1, "caption": "A lost photo."},
    ],
}
CAPTIONS = {"COCO_val2014_000000522418": ["A woman cuts a cake.", "A woman with a net on her head."]}
CAPTIONS["COCO_val2014_000000184613"] = ["A child holds an umbrella."]


def karpathy(dataset: str) -> dict:
    """Karpathy's annotations of the images of OFFICIAL, the second in the test split."""
    images = []
    for number, row in enumerate(OFFICIAL["images"]):
        texts = [one for one in OFFICIAL["annotations"] if one["image_id"] == row["id"]]
        ids = {"filepath": "val2014", "cocoid": row["id"]} if dataset == "coco" else {}
        images.append(
            {
                "filename": row["file_name"],
                "imgid": number,
                "split": ("restval", "test", "train")[number],
                "sentids": [text["id"] for text in texts],
                "sentences": [
                    {"raw": text["caption"], "tokens": ["a"], "imgid": number, "sentid": text["id"]} for text in texts
                ],
                **ids,
            }
        )
    return {"images": images, "dataset": dataset}


def blip_train(folder: str = "val2014/") -> list[dict]:
    """BLIP's training file: a row for each caption."""
    names = {row["id"]: row["file_name"] for row in OFFICIAL["images"]}
    return [
        {"caption": row["caption"], "image": folder + names[row["image_id"]], "image_id": f"coco_{row['image_id']}"}
        for row in OFFICIAL["annotations"]
    ]


def blip_test(folder: str = "val2014/") -> list[dict]:
    """BLIP's test file: a row for each image."""
    rows: dict[str, dict] = {}
    for row in blip_train(folder):
        rows.setdefault(row["image"], {"image": row["image"], "caption": []})["caption"].append(row["caption"])
    return list(rows.values())


def photos(folder: Path) -> dict[str, bytes]:
    """The images of OFFICIAL but for the last, by key."""
    return {
        row["file_name"].removesuffix(".jpg"): photo(folder / row["file_name"], 90 * number)
        for number, row in enumerate(OFFICIAL["images"][:2])
    }


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a member to a tar."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    archive.addfile(header, io.BytesIO(data))


def benchmark(folder, extension: str, members, split: str = "test", shards: int = 2):
    """A CLIP_benchmark data set of four images in two shards; `members` gives the further members of an image."""
    (folder / split).mkdir(parents=True)
    (folder / split / "nshards.txt").write_text(f"{shards}\n")
    for shard in range(shards):
        with tarfile.open(folder / split / f"{shard}.tar", "w") as archive:
            for number in (2 * shard, 2 * shard + 1):
                for name, data in members(number).items():
                    add(archive, f"s{number:07d}.{name}", data)
                add(archive, f"s{number:07d}.{extension}", photo(folder / f"p.{extension}", number))
    (folder / f"p.{extension}").unlink()
    return folder
