"""`vlp bench`: how fast vlp is on this machine."""

import json
from typing import Annotated, Literal

import typer

from vlp.bench.names import What
from vlp.cli.options import Json

PEERS = "Also measure the peer, in turns with vlp. LAVIS and open_clip need scripts/bench/install_peers.sh."

SIZE = (
    "BERT-base with ViT-B/16 or ViT-L/16, 192 wide, or as on scenes; encoders: the papers' smallest, or small ones at "
    "64 pixels."
)


def bench(
    what: Annotated[What, typer.Argument(help="What to measure.")],
    size: Annotated[Literal["base", "large", "small", "scenes"], typer.Option(help=SIZE)] = "base",
    precision: Annotated[Literal["bf16", "fp32"], typer.Option(help="Precision of weights and computation.")] = "bf16",
    batch: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 8,
    peers: Annotated[bool, typer.Option(help=PEERS)] = False,
    repeats: Annotated[int, typer.Option(min=1, help="How often to measure clip, data, encoders and train.")] = 5,
    shards: Annotated[str, typer.Option(help="Shards that data reads; generated images if empty.")] = "",
    rows: Annotated[int, typer.Option(min=1, help="Rows of the score tables that select reads.")] = 10_000_000,
    images: Annotated[
        int, typer.Option(min=1, help="Embeddings that duplicates compares, or index --kept searches.")
    ] = 1_000_000,
    samples: Annotated[int, typer.Option(min=1, help="Samples of the index that index simulates.")] = 100_000_000,
    kept: Annotated[bool, typer.Option("--kept", help="index: measure searches in an index of images.")] = False,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile vlp's blocks, in train, caption and capfilt.")
    ] = False,
    profile: Annotated[str, typer.Option(help="File for a profile of a step of train.")] = "",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    as_json: Json = False,
) -> None:
    """Measure how fast vlp is on this machine. Example: vlp bench caption --peers --precision fp32"""
    from vlp.bench.command import as_table
    from vlp.bench.command import bench as run

    lines = run(what, size, precision, batch, peers, repeats, shards, rows, compiled, images, samples, kept, profile)
    print(json.dumps([vars(line) for line in lines]) if as_json else as_table(lines, markdown))
