"""A CCT beats a ViT-Lite of its size on few images of digits after the same steps."""

import pytest
import small_data
from small_data import main, run, table, write_digits

from vlp.errors import UserError


def test_convolutions_help_where_images_are_few(tmp_path):
    write_digits(tmp_path, 300)
    rows = [run(tmp_path, "digits", encoder, 0, steps=100) for encoder in ("vit_lite", "cct")]
    plain, convolutional = rows
    assert abs(convolutional["parameters"] / plain["parameters"] - 1) < 0.02
    assert convolutional["acc1"] > plain["acc1"] + 0.05
    assert "| cct | 73,227 |" in table(rows)


@pytest.mark.parametrize("made_before", [0, 1])
def test_shapes_are_written_to_the_end_after_an_interruption(tmp_path, monkeypatch, made_before):
    """The second set of scenes is not made, or made and not moved to its place."""
    make = small_data.make_classification_scenes

    def interrupted(folder, count, *rest):
        if folder.name == "train" or made_before:
            make(folder, 20, *rest)
        if folder.name == "test":
            raise KeyboardInterrupt

    call = [str(tmp_path), "--data", "shapes", "--images", "20", "--seeds", "0"]
    monkeypatch.setattr(small_data, "make_classification_scenes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(call)
    monkeypatch.setattr(small_data, "make_classification_scenes", lambda folder, count, *rest: make(folder, 20, *rest))
    main(call)
    for name in ("train", "test"):
        assert sorted(path.name for path in (tmp_path / name).glob("*.t*")) == [
            "00000.tar",
            "classnames.txt",
            "zeroshot_classification_templates.txt",
        ]


def test_a_folder_of_other_settings_is_refused(tmp_path):
    main([str(tmp_path), "--images", "20", "--seeds", "0"])
    with pytest.raises(UserError, match="holds a small-data experiment with other settings"):
        main([str(tmp_path), "--images", "30", "--seeds", "0"])
