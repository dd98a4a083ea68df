"""The photos of Flickr8k with their captions, for tests that skip where they are absent."""

import csv
from pathlib import Path

import pytest

FOLDER = Path("/work/shared/data/flickr8k")


def flickr8k_captions() -> dict[str, list[str]]:
    """The captions of each photo by its file name; skips the test where the folder is absent."""
    path = FOLDER / "captions.txt"
    if not path.is_file():
        pytest.skip(f"needs Flickr8k in {FOLDER}")
    captions: dict[str, list[str]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            captions.setdefault(row["image"], []).append(row["caption"])
    return captions
