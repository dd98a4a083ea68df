"""Pictures of attention: maps over an image, as a contact sheet or as a page that opens from disk."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from vlp.data.image_encoding import small_jpeg
from vlp.report.overlays import fit, overlay
from vlp.report.page import data_uri, render
from vlp.report.sheets import PAPER, contact_sheet

PIXELS = 384  # longer side of a picture on a page
CELL, COLUMNS = 208, 6  # of a sheet


@dataclass
class LabelledMap:
    """A map over an image.

    Attributes:
        label: such as a word.
        strength: the number below the label.
        values: float [rows, columns] over the whole image.
        low, high: the values at the dark and the bright end of the colors.
    """

    label: str
    strength: float
    values: np.ndarray
    low: float
    high: float


@dataclass
class MapGroup:
    """The maps of one text: a heading, a note and the maps, of which those of `words` form the text."""

    heading: str
    note: str
    words: list[LabelledMap]
    others: list[LabelledMap]

    def maps(self) -> list[LabelledMap]:
        """All maps, those of words first."""
        return self.words + self.others


def attention_sheet(picture: Image.Image, groups: list[MapGroup]) -> bytes:
    """A PNG with a row or more for each group: the image, then an overlay for each map."""
    shown = fit(picture, CELL)
    cells: list[tuple[Image.Image, str]] = []
    columns = min(COLUMNS, max((1 + len(group.maps()) for group in groups), default=1))
    for group in groups:
        row = [(shown, f"{group.heading} {group.note}".strip())]
        row += [
            (overlay(shown, one.values, one.low, one.high), f"{one.label}  {one.strength:.3f}") for one in group.maps()
        ]
        cells += row + [(Image.new("RGB", (1, 1), PAPER), "")] * (-len(row) % columns)
    return contact_sheet(cells, columns, CELL)


def attention_page(title: str, about: str, picture: Image.Image, groups: list[MapGroup]) -> str:
    """An HTML page that shows the overlay of the word that one points at; it loads nothing else."""
    shown = fit(picture, PIXELS)
    maps = [one for group in groups for one in group.maps()]
    words = [one for group in groups for one in group.words] or maps
    numbers = iter(range(len(maps)))
    return render(
        "attention.html.j2",
        title=title,
        about=about,
        image=_address(shown),
        pictures=[_address(overlay(shown, one.values, one.low, one.high)) for one in maps],
        groups=[
            (group, [[(next(numbers), one) for one in part] for part in (group.words, group.others)])
            for group in groups
        ],
        first=maps.index(max(words, key=lambda one: one.strength)),
    )


def _address(picture: Image.Image) -> str:
    return data_uri(small_jpeg(picture, PIXELS), "jpeg")
