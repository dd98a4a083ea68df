"""Benchmarks: they run vlp and its peers, and their numbers are consistent."""

import copy
import json
import re
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from vlp.bench import capfilt, command, data, timing
from vlp.bench.caption import LENGTH, Size
from vlp.bench.peers import PeerProcess, peers_folder
from vlp.bench.timing import UNCOUNTED_FLOPS, compare
from vlp.bench.train import bench_captions, bench_tokenizer
from vlp.cli.main import app
from vlp.errors import UserError, WorkError
from vlp.models.constant_weights import constant_weights
from vlp.models.cpu.optimise import optimise_for_cpu

TINY = Size(width=32, layers=1, heads=2, image_size=32, vocabulary=60)
WORKER = Path(__file__).parents[2] / "scripts" / "bench" / "peer_worker.py"


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """A short measurement of the rate of matrix products, of which each line has one, and few batches."""
    monkeypatch.setattr(timing, "SIDE", 512)
    monkeypatch.setattr(timing, "RATE_SECONDS", 0.05)
    monkeypatch.setattr(data, "BATCHES", 2)


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """A peers folder with the worker of this checkout and no LAVIS."""
    (tmp_path / "peer_worker.py").symlink_to(WORKER)
    (tmp_path / ".installed").touch()
    monkeypatch.setenv("VLP_PEERS", str(tmp_path))


@pytest.mark.parametrize("what", ["attention", "caption", "rerank"])
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


def test_capfilt_scores_a_web_text_and_a_caption_of_every_image(monkeypatch):
    made, real = [], capfilt.score_batches

    def keep(*given):
        made.append(list(real(*given)))
        return made[-1]

    monkeypatch.setattr(capfilt, "score_batches", keep)
    capfilt.bench_capfilt(Size(32, 1, 2, 32, 1000), "fp32", 3, False)
    assert {len(batches) for batches in made} == {capfilt.BATCHES}
    for _, rows in [scored for batches in made for scored in batches]:
        assert [row.source for row in rows] == ["web", "synthetic"] * 3
        assert None not in [value for row in rows for value in (row.itm, row.itc, row.nll)]
        assert {row.tokens for row in rows[::2]} == {capfilt.WORDS}
        assert min(row.tokens for row in rows[1::2]) >= LENGTH - 2  # one of them may be a special token


def test_select_is_measured_in_rows():
    lines = json.loads(
        CliRunner().invoke(app, ["bench", "select", "--rows", "30001", "--json"]).stdout.splitlines()[-1]
    )
    assert [line["what"].split()[-1] for line in lines] == ["uids", "table"]
    assert all(line["ours"] > 100 and line["peak_memory_gib"] > 0.01 for line in lines)


def test_start_up_of_a_simulated_index():
    result = CliRunner().invoke(app, ["bench", "index", "--samples", "30001", "--json"])
    assert result.exit_code == 0, result.output
    start, rank, small, worker, rate = (line["ours"] for line in json.loads(result.stdout.splitlines()[-1]))
    assert 0 < start < 60 and 0.1 < small <= rank + 0.1 < 2 and abs(worker) < 0.1 and rate > 1000


def test_answers_of_a_kept_index():
    result = CliRunner().invoke(app, ["bench", "index", "--kept", "--images", "3000", "--json"])
    assert result.exit_code == 0, result.output
    lines = {line["what"]: line["ours"] for line in json.loads(result.stdout.splitlines()[-1])}
    assert lines["recall of the 10 nearest"] == 100 and lines["answer, median"] < 1000


def test_the_search_for_duplicates_is_measured_with_its_recall():
    result = CliRunner().invoke(app, ["bench", "duplicates", "--images", "12000", "--json"])
    seconds, rate, recall = json.loads(result.stdout.splitlines()[-1])
    assert rate["ours"] == pytest.approx(12_000 / seconds["ours"]) and seconds["peak_memory_gib"] > 0.01
    assert recall["ours"] == 100


def test_a_peer_process_reports_its_memory(monkeypatch, worker):
    monkeypatch.setitem(command.SIZES, "small", TINY)
    lines = command.bench("clip", "small", "fp32", 2, peers=True, repeats=1)
    assert len(lines) == 2 and all(0.05 < line.peer_peak_memory_gib < 5 for line in lines)
    assert all(line.ratio == pytest.approx(line.ours / line.peer) for line in lines)
    assert "peer with 77 tokens" in command.as_table(lines)


@pytest.mark.parametrize("what", ["train", "data"])
def test_lavis_is_measured_where_it_is_installed(what, monkeypatch):
    try:
        peers_folder()
    except UserError as error:
        pytest.skip(str(error))
    monkeypatch.setitem(command.SIZES, "small", TINY)
    lines = command.bench(what, "small", "fp32", 4, peers=True, repeats=1)
    assert all(line.ours > 1 and line.peer > 1 for line in lines)
    assert 0.05 < lines[0].peer_peak_memory_gib < 5
    assert len(lines) >= (2 if what == "train" else 1)  # train: at its best and as released


@pytest.mark.parametrize("what", ["clip", "train", "data"])
@pytest.mark.parametrize("left", [[], [".installed"], ["peer_worker.py"]])
def test_without_peers_vlp_is_measured_and_the_error_names_the_script(what, left, monkeypatch, tmp_path):
    for name in left:
        (tmp_path / name).touch()
    monkeypatch.setitem(command.SIZES, "small", TINY)
    monkeypatch.setenv("VLP_PEERS", str(tmp_path))
    arguments = ["bench", what, "--size", "small", "--precision", "fp32", "--batch", "4", "--repeats", "2", "--json"]
    if not left:
        line, *more = json.loads(CliRunner().invoke(app, arguments).stdout.splitlines()[-1])
        assert line["ours"] > 1 and line["peer"] is None
        assert [one["what"].partition(",")[0] for one in more][:2] == ["indexed", "streamed"] * (what == "data")
        assert [one["what"] for one in more][-1:] == ["streamed, parquet; datasets"] * (what == "data")
        assert all(one["ours"] > 1 and one["peer"] > 1 for one in more)
    error = CliRunner().invoke(app, [*arguments, "--peers"]).exception
    assert isinstance(error, UserError) and "scripts/bench/install_peers.sh" in str(error)


def test_a_profile_of_a_step_is_written(monkeypatch, tmp_path):
    monkeypatch.setitem(command.SIZES, "small", TINY)
    command.bench("train", "small", "fp32", 4, peers=False, repeats=1, profile=str(tmp_path / "step.txt"))
    first, table = (tmp_path / "step.txt").read_text().split("\n", 1)
    assert re.fullmatch(r"host \d+ ms, whole call [1-9]\d* ms, device busy \d+ ms", first)
    assert "aten::addmm" in table or "mkldnn" in table


def test_lavis_has_no_model_with_a_larger_image_encoder():
    with pytest.raises(UserError, match="both towers of one size; use --size base"):
        command.bench("train", "large", "bf16", 2, peers=True)


def test_counting_flops_leaves_blocks_compiled():
    runs = []

    def backend(graph, _):
        return lambda *inputs: runs.append(graph) or graph(*inputs)

    layer = torch.nn.Linear(4, 4)
    layer.compile(backend=backend)
    timing.compare("layer", "rows/s", 2, "fp32", lambda: layer(torch.ones(2, 4)), None, repeats=3)
    assert len(runs) == 4  # the warm-up and the repeats


def test_bench_captions_are_as_long_as_real_ones_and_one_token_a_word():
    tokenizer = bench_tokenizer(4096)
    for batch, longest in ((8, 24), (64, 32)):
        ids, mask = tokenizer.encode(bench_captions(4096, batch), 30)
        assert 13 < mask.sum(1).float().mean() < 14.2 and ids.shape == (batch, longest)
        assert (ids != tokenizer.tokenizer.token_to_id("[UNK]")).all()


def test_a_peer_that_fails_is_one_sentence(worker):
    with pytest.raises(WorkError, match=r"open_clip_train stopped; the last line of its output was: KeyError"):
        PeerProcess("open_clip_train", {}, sys.executable)


def test_a_ratio_is_how_many_times_as_fast():
    line = compare("naps", "naps/s", 1, "fp32", lambda: time.sleep(0.01), lambda: lambda: time.sleep(0.03), repeats=5)
    assert 2 < line.ratio < 4.5 and 50 < line.ours <= 100


def count_flops(work) -> int:
    with FlopCounterMode(display=False, custom_mapping=UNCOUNTED_FLOPS) as counter:
        work()
    return counter.get_total_flops()


@torch.no_grad()
def test_packed_products_count_as_many_flops_as_plain_ones():
    linear, x = torch.nn.Linear(48, 80), torch.randn(2, 3, 48)
    for layer in (linear, optimise_for_cpu(copy.deepcopy(linear))):
        with constant_weights():
            assert count_flops(lambda layer=layer: layer(x)) == 2 * 6 * 48 * 80


def test_fused_attention_counts_its_matrix_products():
    query = torch.randn(2, 3, 5, 8, requires_grad=True)
    key, value = (torch.randn(2, 3, 7, 8, requires_grad=True) for _ in range(2))
    product = 2 * (2 * 3) * 5 * 7 * 8
    attention = F.scaled_dot_product_attention
    with torch.no_grad():
        assert count_flops(lambda: attention(query, key, value)) == 2 * product
    assert count_flops(lambda: attention(query, key, value).sum().backward()) == 7 * product
