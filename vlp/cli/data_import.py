"""`vlp data import`: other data formats to shards, a command for each."""

from typing import TYPE_CHECKING, Annotated

import typer

from vlp.cli.options import Json, MaxBadShare, Shards, ShardsFolder, ShardSize, print_values

if TYPE_CHECKING:
    from vlp.data.importers.write import Importer

import_app = typer.Typer(no_args_is_help=True, help="Import other data formats as shards.")

Images = Annotated[str, typer.Option(help="Folder of the images.")]
Names = Annotated[str | None, typer.Option(help="File with the names of the images to take, one per line.")]


@import_app.command("flickr8k")
def import_flickr8k(
    captions: Annotated[str, typer.Argument(help="CSV with the columns image, caption.")],
    output: ShardsFolder,
    images: Images,
    names: Names = None,
    shard_size: ShardSize = 1000,
    max_bad_share: MaxBadShare = 0.1,
) -> None:
    """Import Flickr8k, or any data set with its layout.

    Example: vlp data import flickr8k captions.txt data/train --images Images --names train.txt
    """
    from vlp.data.importers.flickr8k import Flickr8k

    run_import(Flickr8k(images, captions, names), output, shard_size, max_bad_share)


@import_app.command("folder")
def import_folder(
    folder: Annotated[str, typer.Argument(help="Folder with the images and a metadata.jsonl (file_name, text).")],
    output: ShardsFolder,
    shard_size: ShardSize = 1000,
    max_bad_share: MaxBadShare = 0.1,
) -> None:
    """Import an image folder with a metadata.jsonl.

    Example: vlp data import folder photos data/mine
    """
    from vlp.data.importers.folder import ImageFolder

    run_import(ImageFolder(folder), output, shard_size, max_bad_share)


def run_import(importer: "Importer", output: str, shard_size: int, max_bad_share: float) -> None:
    """Write the samples of an importer as shards, with progress, and print the counts."""
    from vlp.data.importers.write import write_imported
    from vlp.log import Progress

    with Progress("samples", len(importer)) as bar:
        counts = write_imported(importer, output, shard_size, max_bad_share, lambda stage, done: bar.add(stage, done))
    reasons = ", ".join(f"{reason}: {count}" for reason, count in counts.bad.items())
    skipped = f" {sum(counts.bad.values())} bad samples were skipped ({reasons})." if counts.bad else ""
    silent = f" {counts.without_text} of them have no text." if counts.without_text else ""
    print(f"Wrote {counts.samples} samples to {output}.{silent}{skipped}")


@import_app.command("tables")
def import_tables(
    tables: Annotated[list[str], typer.Argument(help="Parquet tables: paths, globs or brace patterns.")],
    shards: Shards,
    name: Annotated[str, typer.Option(help="Name of the new tables, such as laion: SHARD.laion.parquet.")],
    on: Annotated[str, typer.Option(help="Column to join on; default: uid, sha256, key or url.")] = "",
    texts: Annotated[
        list[str] | None, typer.Option(help="COLUMN=SOURCE: a column of web, human or synthetic texts; repeatable.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Join tables of LAION, LAION-COCO, COYO, DataComp or Recap-DataComp to shards, without copying images.

    Example: vlp data import tables 'laion/*.parquet' --shards 'web/*.tar' --name laion

    The tables' columns can then be named in rules: vlp capfilt select 'itm >= 0.5 and laion.punsafe < 0.1'
    --scores 'web/*.capfilt.parquet' --also laion='web/*.laion.parquet' --out new

    Their texts can be trained on: data.sources=[{shards: web/*.tar, texts: {table: laion}}]
    """
    from vlp.data.importers.table_columns import parse_texts
    from vlp.data.importers.tables import import_tables
    from vlp.data.shard_index import expand_shards
    from vlp.log import Progress

    with Progress("shards", 2 * len(expand_shards(shards)), quiet=as_json) as bar:
        counts = import_tables(tables, shards, name, on, parse_texts(texts or []), lambda *done: bar.add(*done))
    print_values(vars(counts), as_json)
