"""`vlp bench WHAT`: which benchmark, at which size, and its lines as a table."""

from typing import Literal

from vlp.bench.attention import bench_attention
from vlp.bench.capfilt import bench_capfilt
from vlp.bench.caption import BASE, SMALL, bench_caption
from vlp.bench.clip import bench_clip
from vlp.bench.data import bench_data
from vlp.bench.rerank import bench_rerank
from vlp.bench.selection import bench_select
from vlp.bench.timing import Measured
from vlp.bench.train import bench_train

What = Literal["attention", "capfilt", "caption", "clip", "data", "rerank", "select", "train"]
PARTS = {
    "attention": bench_attention,
    "capfilt": bench_capfilt,
    "rerank": bench_rerank,
}
SIZES = {"base": BASE, "small": SMALL}


def bench(
    what: What,
    size: str,
    precision: str,
    batch: int,
    peers: bool,
    repeats: int = 5,
    shards: str = "",
    rows: int = 10_000_000,
    compiled: bool = False,
) -> list[Measured]:
    """Run a benchmark.

    Args:
        size: "base" (ViT-B/16 at 224 pixels and BERT-base) or "small".
        precision: "fp32" or "bf16": of weights and computation, ours and the peer's; in training, of autocast.
        batch: images.
        peers: also measure the peer, in turns with ours.
        repeats: turns of `clip`, `data` and `train`; medians count.
        shards: what `data` reads; empty: made pictures.
        rows: texts that `select` chooses from; all else but it is nothing to it.
        compiled: whether `train` and `caption` compile the blocks of ours, as `compile: true` does in a config.

    Raises:
        UserError: a peer's environment is missing.
    """
    if what == "select":
        return bench_select(rows)
    if what == "data":
        return bench_data(SIZES[size], batch, peers, repeats, shards)
    if what == "clip":
        return bench_clip(SIZES[size], precision, batch, peers, repeats)
    if what == "train":
        return bench_train(SIZES[size], precision, batch, peers, repeats, compiled)
    if what == "caption":
        return bench_caption(SIZES[size], precision, batch, peers, compiled)
    return PARTS[what](SIZES[size], precision, batch, peers)


def as_table(lines: list[Measured]) -> str:
    """The lines for people."""
    rows = [("", "ours", "peer", "ratio", "unit", "precision", "GiB at most", "peer's", "of matmul rate")]
    for line in lines:
        peer, ratio, memory = (
            "-" if value is None else f"{value:.2f}" for value in (line.peer, line.ratio, line.peer_peak_memory_gib)
        )
        mine, share = f"{line.ours:.2f}", f"{line.share_of_matmul_rate:.0%}"
        own_memory = f"{line.peak_memory_gib:.2f}"
        rows.append((line.what, mine, peer, ratio, line.unit, line.precision, own_memory, memory, share))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
