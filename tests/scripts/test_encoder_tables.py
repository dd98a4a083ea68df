"""The tables of docs/encoders.md name every variant, and have the numbers that the script counts."""

import re
from pathlib import Path

import encoder_tables
import pytest

from vlp.models.image_encoders.families import FAMILIES

PAGE = (Path(__file__).parents[2] / "docs" / "encoders.md").read_text()


def test_the_page_names_every_variant():
    listed = re.findall(r"^\| `(\w+:[^`]+)` \| \d+ \|", PAGE, re.MULTILINE)
    assert listed == [f"{family}:{variant}" for family in FAMILIES for variant in FAMILIES[family].variants]
    assert PAGE.count("\n".join(encoder_tables.HEADER)) == len(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_numbers_of_the_smallest_variants_are_the_scripts(family):
    assert encoder_tables.row(f"{family}:{next(iter(FAMILIES[family].variants))}") in PAGE
