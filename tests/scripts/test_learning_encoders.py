"""The encoders' experiment: its table has every shape, and a second call continues with what is missing."""

import encoders
import pytest

from vlp.bench.encoder_shapes import SHAPES, count, small_encoder
from vlp.errors import UserError


def test_the_table_shows_what_was_measured(tmp_path, monkeypatch):
    page, shapes = tmp_path / "page.md", ["cvt", "vit, convolutions"]
    call = [str(tmp_path / "out"), "--quick", "--seeds", "0", "--page", str(page), "--shapes"]
    encoders.main([*call, shapes[0]])
    started = []
    train_once = encoders.train_once
    monkeypatch.setattr(encoders, "train_once", lambda config: started.append(config.output) or train_once(config))
    encoders.main([*call, *shapes])
    assert len(started) == 1 and started[0].endswith("vit-convolutions")
    rows = {line.split(" | ")[0].removeprefix("| "): line.split(" | ") for line in page.read_text().splitlines()}
    assert set(SHAPES) <= set(rows)
    done = rows["cvt"]
    assert (
        done[1] == "1"
        and all(float(cell) >= 0 for cell in done[2:7])
        and done[-1] == f"{count(small_encoder('cvt'))[1] / 1e6:.0f}M |"
    )
    assert rows["pvt"][1] == "0" and rows["pvt"][2] == "–"
    before = page.read_text()
    encoders.main([*call, *shapes, "--page-only"])
    assert page.read_text() == before


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no encoders"):
        encoders.main([str(tmp_path), "--page-only"])
