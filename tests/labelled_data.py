"""Small images with a class, which their color tells: as shards, image folders and parquet files."""

import io
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from vlp.data.shard_writer import ShardWriter

COLORS = {"dark_red": (150, 30, 30), "green": (30, 150, 30), "blue": (30, 30, 150)}
CLASSES = ["dark red", "green", "blue"]


def pictures(count: int, seed: int = 0) -> list[tuple[bytes, int]]:
    """PNG files of 16 x 16 noisy pixels with their classes, which take turns."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        label = number % len(CLASSES)
        pixels = np.array(list(COLORS.values())[label]) + rng.integers(-30, 31, (16, 16, 3))
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
        found.append((file.getvalue(), label))
    return found


def write_shards(folder: Path, count: int, seed: int = 0, names: bool = True, labels=str) -> str:
    """Shards of eight samples with .cls members, which `labels` makes of classes; returns their pattern."""
    with ShardWriter(str(folder), 8) as writer:
        for number, (image, label) in enumerate(pictures(count, seed)):
            writer.write(f"{number:04d}", image, "png", None, {"other": label}, {"cls": labels(label).encode()})
    if names:
        (folder / "classnames.txt").write_text("\n".join(CLASSES) + "\n")
    return f"{folder}/*.tar"


def write_folder(folder: Path, count: int, seed: int = 0) -> str:
    """An image folder with a subfolder per class; returns its path."""
    for number, (image, label) in enumerate(pictures(count, seed)):
        path = folder / list(COLORS)[label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    return str(folder)


def write_parquet(folder: Path, count: int, split: str = "train", seed: int = 0) -> str:
    """A parquet file as `datasets` stores CIFAR-100, with two columns of classes; returns the folder."""
    rows = [
        {"img": {"bytes": image, "path": None}, "fine_label": label, "coarse_label": 0}
        for image, label in pictures(count, seed)
    ]
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "fine_label": datasets.ClassLabel(names=list(COLORS)),
            "coarse_label": datasets.ClassLabel(names=["all"]),
        }
    )
    (folder / "data").mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows, features=features).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return str(folder)
