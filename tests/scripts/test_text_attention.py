"""The script that times attention without padding runs on a CPU, by an interpreter, and uses the tiles given."""

import sys

import pytest

from vlp.models import flat_kernels

pytest.importorskip("triton")
import text_attention

SMALL = ["--pairs", "1", "--image-tokens", "3", "--calls", "1"]


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the script and return what it prints; tiles are as before afterwards."""
    for name in ("GATHER", "GRADIENTS"):
        tiles = dict(getattr(flat_kernels, name))
        monkeypatch.setattr(flat_kernels, name, tiles)
        for kernel, (_, own) in list(text_attention.KERNELS.items()):
            if kernel.startswith({"GATHER": "gather", "GRADIENTS": "gradients"}[name]):
                monkeypatch.setitem(text_attention.KERNELS, kernel, (tiles, own))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["text_attention.py", *arguments])
        text_attention.main()
        return capsys.readouterr().out.splitlines()

    return run


def test_it_times_both_kinds_of_attention_with_the_tiles_given(run):
    lines = run(*SMALL, "--tile", "gradients-images:16,32,2,1")
    assert lines[0].startswith("4 texts with ") and lines[0].endswith(" tokens, 3 image tokens")
    assert [line.split(":")[0] for line in lines[1:]] == ["texts to images", "texts to themselves"]
    assert all("forward" in line and "gradients" in line for line in lines[1:])
    assert flat_kernels.GRADIENTS[False] == flat_kernels.Tile(16, 32, 2, 1) != flat_kernels.GRADIENTS[True]


@pytest.mark.parametrize("tile", ["gradients:16,32,2,1", "gather-texts:16,32,2"])
def test_a_tile_that_cannot_be_read_is_refused(tile, run):
    with pytest.raises(SystemExit):
        run(*SMALL, "--tile", tile)
