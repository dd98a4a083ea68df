"""The photos of Flickr8k with their captions, for tests that skip where they are absent."""

import csv
import os
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
FOLDER = Path(os.environ.get("VLP_FLICKR8K") or CHECKOUT.parent / "shared" / "data" / "flickr8k")


def flickr8k_captions() -> dict[str, list[str]]:
    """The captions of each photo by its file name; skips the test where the folder is absent."""
    path = FOLDER / "captions.txt"
    if not path.is_file():
        pytest.skip(f"there is no Flickr8k in {FOLDER}; set VLP_FLICKR8K to the folder with its captions.txt")
    captions: dict[str, list[str]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            captions.setdefault(row["image"], []).append(row["caption"])
    return captions
