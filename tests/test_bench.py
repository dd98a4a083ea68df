"""Benchmarks: they run ours and the peer, and what they print adds up."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from vlp.bench import capfilt, command
from vlp.bench.caption import LENGTH, Size
from vlp.bench.timing import PACKED, compare
from vlp.cli import app
from vlp.errors import UserError
from vlp.models.packed import PackedLinear

TINY = Size(width=32, layers=1, heads=2, image_size=32, vocabulary=60)


@pytest.mark.parametrize("what", sorted(command.BENCHES.keys() - {"train"}))
def test_lines_hold_ours_and_the_peer(what, monkeypatch):
    monkeypatch.setitem(command.SIZES, "small", TINY)
    arguments = ["bench", what, "--size", "small", "--precision", "fp32", "--batch", "2", "--json"]
    result = CliRunner().invoke(app, [*arguments, "--peers"])
    assert result.exit_code == 0, result.output
    for line in json.loads(result.stdout.splitlines()[-1]):
        assert line["ratio"] == pytest.approx(line["ours"] / line["peer"], rel=1e-6)
        assert line["peak_memory_gib"] > 0.01 and 0 < line["share_of_matmul_rate"] < 1
    alone = CliRunner().invoke(app, arguments)
    assert {line["peer"] for line in json.loads(alone.stdout.splitlines()[-1])} == {None}
    assert "captions/s" in command.as_table([]) or "ours" in command.as_table([])


def test_capfilt_scores_a_web_text_and_a_caption_of_every_image(monkeypatch):
    made, real = [], capfilt.score_batch
    monkeypatch.setattr(capfilt, "score_batch", lambda *given: made.append(real(*given)))
    capfilt.bench_capfilt(Size(32, 1, 2, 32, 1000), "fp32", 3, False)
    for rows in made:
        assert [row.source for row in rows] == ["web", "synthetic"] * 3
        assert None not in [value for row in rows for value in (row.itm, row.itc, row.nll)]
        assert {row.tokens for row in rows[::2]} == {capfilt.WORDS}
        assert min(row.tokens for row in rows[1::2]) >= LENGTH - 2  # one of them may be a special token


def test_selecting_is_measured_by_rows():
    lines = json.loads(
        CliRunner().invoke(app, ["bench", "select", "--rows", "30001", "--json"]).stdout.splitlines()[-1]
    )
    assert [line["what"].split()[-1] for line in lines] == ["uids", "table"]
    assert all(line["ours"] > 100 and line["peak_memory_gib"] > 0.01 for line in lines)


def test_a_training_step_is_measured_without_a_peer(monkeypatch):
    monkeypatch.setitem(command.SIZES, "small", TINY)
    arguments = ["bench", "train", "--size", "small", "--precision", "fp32", "--batch", "4", "--json"]
    (line,) = json.loads(CliRunner().invoke(app, arguments).stdout.splitlines()[-1])
    assert line["ours"] > 1 and line["peer"] is None
    assert isinstance(CliRunner().invoke(app, [*arguments, "--peers"]).exception, UserError)


def test_a_ratio_is_how_many_times_as_fast(monkeypatch):
    import time

    line = compare("naps", "naps/s", 1, "fp32", lambda: time.sleep(0.01), lambda: lambda: time.sleep(0.03), repeats=5)
    assert 2 < line.ratio < 4.5 and 50 < line.ours <= 100


@torch.no_grad()
def test_packed_products_count_as_many_operations_as_plain_ones():
    linear = torch.nn.Linear(48, 80)
    counted = []
    for layer in (linear, PackedLinear(linear)):
        with FlopCounterMode(display=False, custom_mapping=PACKED) as counter:
            layer(torch.randn(2, 3, 48))
        counted.append(counter.get_total_flops())
    assert counted == [2 * 6 * 48 * 80] * 2
