"""`vlp bench WHAT`: which benchmark, at which size, and its lines as a table."""

from typing import Literal

from vlp.bench.attention import bench_attention
from vlp.bench.capfilt import bench_capfilt
from vlp.bench.caption import BASE, SMALL, bench_caption
from vlp.bench.rerank import bench_rerank
from vlp.bench.select import bench_select
from vlp.bench.timing import Measured
from vlp.bench.train import bench_train

What = Literal["attention", "capfilt", "caption", "rerank", "select", "train"]
BENCHES = {
    "attention": bench_attention,
    "capfilt": bench_capfilt,
    "caption": bench_caption,
    "rerank": bench_rerank,
    "train": bench_train,
}
SIZES = {"base": BASE, "small": SMALL}


def bench(what: What, size: str, precision: str, batch: int, peers: bool, rows: int = 10_000_000) -> list[Measured]:
    """Run a benchmark.

    Args:
        size: "base" (ViT-B/16 at 224 pixels and BERT-base) or "small".
        precision: "fp32" or "bf16", of weights and computation, ours and the peer's.
        batch: images.
        peers: also measure the peer, in turns with ours.
        rows: texts that `select` chooses from; all else is nothing to it.
    """
    if what == "select":
        return bench_select(rows)
    return BENCHES[what](SIZES[size], precision, batch, peers)


def as_table(lines: list[Measured]) -> str:
    """The lines for people."""
    rows = [("", "ours", "peer", "ratio", "unit", "precision", "peak GiB", "of matmul rate")]
    for line in lines:
        peer = "-" if line.peer is None else f"{line.peer:.2f}"
        ratio = "-" if line.ratio is None else f"{line.ratio:.2f}"
        share = f"{line.share_of_matmul_rate:.0%}"
        rows.append(
            (
                line.what,
                f"{line.ours:.2f}",
                peer,
                ratio,
                line.unit,
                line.precision,
                f"{line.peak_memory_gib:.2f}",
                share,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
