"""Runs the benchmark that `vlp bench WHAT` names, and formats its lines as a table."""

from vlp.bench.attention import bench_attention
from vlp.bench.capfilt import bench_capfilt
from vlp.bench.caption import BASE, LARGE, SCENES, SMALL, bench_caption
from vlp.bench.clip import bench_clip
from vlp.bench.data import bench_data
from vlp.bench.duplicates import bench_duplicates
from vlp.bench.encoders import bench_encoders
from vlp.bench.index import bench_index
from vlp.bench.kept_index import bench_kept_index
from vlp.bench.names import What
from vlp.bench.rerank import bench_rerank
from vlp.bench.selection import bench_select
from vlp.bench.timing import Measured
from vlp.bench.train import bench_train
from vlp.config import Precision
from vlp.report.tables import markdown_table

PARTS = {
    "attention": bench_attention,
    "rerank": bench_rerank,
}
SIZES = {"base": BASE, "large": LARGE, "small": SMALL, "scenes": SCENES}


def bench(
    what: What,
    size: str,
    precision: Precision,
    batch: int,
    peers: bool,
    repeats: int = 5,
    shards: str = "",
    rows: int = 10_000_000,
    compiled: bool = False,
    images: int = 1_000_000,
    samples: int = 100_000_000,
    kept: bool = False,
    profile: str = "",
) -> list[Measured]:
    """Run a benchmark.

    Args:
        size: "base" (ViT-B/16 at 224 pixels and BERT-base), "large" (with ViT-L/16), "small" or "scenes"; see `SIZES`.
        precision: "fp32" or "bf16", of weights and computation; in training, of autocast.
        batch: images per batch.
        peers: also measure the peer, in turns with ours.
        repeats: measurements of `clip`, `data`, `encoders` and `train`, of which the median counts.
        shards: shards that `data` reads; generated images if empty.
        rows: texts that `select` selects from; it ignores all other settings.
        images: embeddings that `duplicates` compares or `index` with `kept` searches; they ignore all other settings.
        samples: samples of the simulated index of `index`; it ignores all other settings.
        kept: measure `vlp search --index` with `index`, instead of the index of shards.
        compiled: compile our blocks in `train`, `caption` and `capfilt`, as `compile: true` in a config does.
        profile: a file, into which `train` writes where a step spends its time.

    Raises:
        UserError: the peer was requested and is not installed.
    """
    if what == "select":
        return bench_select(rows)
    if what == "duplicates":
        return bench_duplicates(images)
    if what == "index":
        return bench_kept_index(images) if kept else bench_index(samples)
    if what == "data":
        return bench_data(SIZES[size], batch, peers, repeats, shards)
    if what == "clip":
        return bench_clip(SIZES[size], precision, batch, peers, repeats)
    if what == "encoders":
        return bench_encoders(size, precision, batch, peers, repeats)
    if what == "train":
        return bench_train(SIZES[size], precision, batch, peers, repeats, compiled, profile)
    if what == "caption":
        return bench_caption(SIZES[size], precision, batch, peers, compiled)
    if what == "capfilt":
        return bench_capfilt(SIZES[size], precision, batch, peers, compiled)
    return PARTS[what](SIZES[size], precision, batch, peers)


def as_table(lines: list[Measured], markdown: bool = False) -> str:
    """The lines as a table for people, or in Markdown; parameters and FLOPs are shown where their size is the point."""
    sized = any(line.parameters for line in lines)
    head = ("", "ours", "peer", "ratio", "unit", "precision", "peak GiB", "peer's", "of matmul rate")
    rows: list[tuple[str, ...]] = [(*head, *(("parameters", "GFLOPs") if sized else ()))]
    for line in lines:
        peer, ratio, memory = (
            "-" if value is None else f"{value:.2f}" for value in (line.peer, line.ratio, line.peer_peak_memory_gib)
        )
        ours, share = f"{line.ours:.2f}", f"{line.share_of_matmul_rate:.0%}"
        own_memory = f"{line.peak_memory_gib:.2f}"
        row = (line.what, ours, peer, ratio, line.unit, line.precision, own_memory, memory, share)
        size = (f"{(line.parameters or 0) / 1e6:.2f}M", f"{line.flops / 1e9:.2f}") if sized else ()
        rows.append((*row, *size))
    if markdown:
        return markdown_table(rows[0], rows[1:])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
