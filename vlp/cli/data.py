"""`vlp data`: make, import and inspect shards."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vlp.cli.options import Json, print_values

if TYPE_CHECKING:
    from vlp.data.importers.write import Importer

data_app = typer.Typer(no_args_is_help=True, help="Make, import and inspect shards.")
import_app = typer.Typer(no_args_is_help=True, help="Import other data formats as shards.")
data_app.add_typer(import_app, name="import")

Output = Annotated[str, typer.Argument(help="New folder for the shards.")]
ShardSize = Annotated[int, typer.Option(min=1, help="Samples per shard.")]
MaxBadShare = Annotated[
    float, typer.Option(min=0, max=1, help="Largest share of bad samples that is skipped; above it, stop.")
]


@data_app.command("make")
def data_make(
    output: Output,
    num: Annotated[int, typer.Option(min=1, help="Number of samples.")] = 1000,
    split: Annotated[
        Literal["human", "web"], typer.Option(help="human (all texts right) or web (some texts wrong).")
    ] = "human",
    wrong: Annotated[float, typer.Option(min=0, max=1, help="Share of wrong texts in a web split.")] = 0.4,
    image_size: Annotated[int, typer.Option(min=16, max=4096, help="Side of the images in pixels.")] = 64,
    shard_size: ShardSize = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal shards.")] = 0,
) -> None:
    """Make synthetic scenes whose true captions are known, for tests and the demo.

    Example: vlp data make data/web --num 16000 --split web --wrong 0.4
    """
    from vlp.demo.scenes import write_scenes
    from vlp.log import Progress

    with Progress("samples", num) as bar:
        write_scenes(output, num, split, wrong, image_size, shard_size, seed, lambda count: bar.add("make", count))
    print(f"Wrote {num} samples to {output}.")


@import_app.command("flickr8k")
def import_flickr8k(
    output: Output,
    images: Annotated[str, typer.Option(help="Folder of the images.")],
    captions: Annotated[str, typer.Option(help="CSV with the columns image, caption.")],
    split: Annotated[str | None, typer.Option(help="File with the names of the images to take, one per line.")] = None,
    shard_size: ShardSize = 1000,
    max_bad_share: MaxBadShare = 0.1,
) -> None:
    """Import Flickr8k, or any data set with its layout.

    Example: vlp data import flickr8k data/train --images Images --captions captions.txt
    """
    from vlp.data.importers.flickr8k import Flickr8k

    _import(Flickr8k(images, captions, split), output, shard_size, max_bad_share)


@import_app.command("folder")
def import_folder(
    output: Output,
    folder: Annotated[str, typer.Argument(help="Folder with the images and a metadata.jsonl (file_name, text).")],
    shard_size: ShardSize = 1000,
    max_bad_share: MaxBadShare = 0.1,
) -> None:
    """Import an image folder with a metadata.jsonl.

    Example: vlp data import folder data/mine photos
    """
    from vlp.data.importers.folder import ImageFolder

    _import(ImageFolder(folder), output, shard_size, max_bad_share)


def _import(importer: "Importer", output: str, shard_size: int, max_bad_share: float) -> None:
    from vlp.data.importers.write import write_imported
    from vlp.log import Progress

    with Progress("samples", len(importer)) as bar:
        counts = write_imported(importer, output, shard_size, max_bad_share, lambda stage, done: bar.add(stage, done))
    reasons = ", ".join(f"{reason}: {count}" for reason, count in counts.bad.items())
    skipped = f" {sum(counts.bad.values())} bad samples were skipped ({reasons})." if counts.bad else ""
    silent = f" {counts.without_text} of them have no text." if counts.without_text else ""
    print(f"Wrote {counts.samples} samples to {output}.{silent}{skipped}")


@data_app.command("inspect")
def data_inspect(
    shards: Annotated[list[str], typer.Argument(help="Shards: paths, globs, brace patterns or URLs.")],
    sheet: Annotated[str, typer.Option(help="PNG file for the contact sheet.")] = "contact-sheet.png",
    as_json: Json = False,
) -> None:
    """Count samples, bad samples, captions and image sizes, and draw a contact sheet.

    Example: vlp data inspect 'data/web/*.tar'
    """
    from vlp.data.inspect import inspect_shards
    from vlp.data.shard_index import expand_shards, index_shard
    from vlp.files import writing
    from vlp.log import Progress
    from vlp.report.sheets import contact_sheet

    total = sum(len(index_shard(path).keys) for path in expand_shards(shards))
    with Progress("samples", total, quiet=as_json) as bar:
        facts = inspect_shards(shards, lambda stage, done: bar.add(stage, done))
    with writing(sheet) as temporary:
        temporary.write_bytes(contact_sheet(facts.pop("pictures")))
    print_values({**facts, "contact_sheet": sheet}, as_json)
