"""A CCT beats a ViT-Lite of its size on few images of digits after the same steps."""

import pytest
from small_data import main, run, table, write_digits

from vlp.errors import UserError


def test_convolutions_help_where_images_are_few(tmp_path):
    write_digits(tmp_path, 300)
    rows = [run(tmp_path, "digits", encoder, 0, steps=100) for encoder in ("vit_lite", "cct")]
    plain, convolutional = rows
    assert abs(convolutional["parameters"] / plain["parameters"] - 1) < 0.02
    assert convolutional["acc1"] > plain["acc1"] + 0.05
    assert "| cct | 73,227 |" in table(rows)


def test_a_folder_of_other_settings_is_refused(tmp_path):
    main([str(tmp_path), "--images", "20", "--seeds", "0"])
    with pytest.raises(UserError, match="holds a small-data experiment with other settings"):
        main([str(tmp_path), "--images", "30", "--seeds", "0"])
