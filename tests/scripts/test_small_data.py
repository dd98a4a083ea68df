"""A CCT beats a ViT-Lite of its size on few images of digits after the same steps."""

from small_data import run, table, write_digits


def test_convolutions_help_where_images_are_few(tmp_path):
    write_digits(tmp_path, 300)
    rows = [run(tmp_path, "digits", encoder, 0, steps=100) for encoder in ("vit_lite", "cct")]
    plain, convolutional = rows
    assert abs(convolutional["parameters"] / plain["parameters"] - 1) < 0.02
    assert convolutional["acc1"] > plain["acc1"] + 0.05
    assert "| cct | 73,227 |" in table(rows)
