"""`vlp data`: make, import and inspect shards."""

from typing import Annotated, Literal

import typer

from vlp.cli.options import Json, print_values

data_app = typer.Typer(no_args_is_help=True, help="Make, import and inspect shards.")
import_app = typer.Typer(no_args_is_help=True, help="Other formats to shards.")
data_app.add_typer(import_app, name="import")


@data_app.command("make")
def data_make(
    output: str,
    num: Annotated[int, typer.Option(help="How many samples.")] = 1000,
    split: Annotated[Literal["human", "web"], typer.Option(help="human (clean) or web (some texts wrong).")] = "human",
    wrong: Annotated[float, typer.Option(help="Share of wrong texts in a web split.")] = 0.4,
    image_size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 64,
    shard_size: Annotated[int, typer.Option(help="Samples a shard.")] = 1000,
    seed: int = 0,
) -> None:
    """Synthetic scenes with a known truth. Example: vlp data make data/web --num 16000 --split web --wrong 0.4"""
    from vlp.demo.scenes import write_scenes

    write_scenes(output, num, split, wrong, image_size, shard_size, seed)
    print(f"{num} samples in {output}")


@import_app.command("flickr8k")
def import_flickr8k(
    output: str,
    images: Annotated[str, typer.Option(help="Folder of the images.")],
    captions: Annotated[str, typer.Option(help="CSV with the columns image, caption.")],
    split: Annotated[str | None, typer.Option(help="File with the names of the images to take.")] = None,
    shard_size: int = 1000,
) -> None:
    """Flickr8k. Example: vlp data import flickr8k data/train --images Images --captions captions.txt"""
    from vlp.data.importers.flickr8k import import_flickr8k as run

    print(f"{run(images, captions, output, split, shard_size)} samples in {output}")


@import_app.command("folder")
def import_folder(output: str, folder: str, shard_size: int = 1000) -> None:
    """An image folder with metadata.jsonl (file_name, text). Example: vlp data import folder data/mine photos"""
    from vlp.data.importers.folder import import_folder as run

    print(f"{run(folder, output, shard_size)} samples in {output}")


@data_app.command("inspect")
def data_inspect(
    shards: Annotated[list[str], typer.Argument()],
    sheet: Annotated[str, typer.Option(help="Where the contact sheet goes.")] = "contact-sheet.png",
    as_json: Json = False,
) -> None:
    """Counts, bad samples, captions, sizes and a contact sheet. Example: vlp data inspect 'data/web/*.tar'"""
    from vlp.data.inspect import inspect_shards
    from vlp.files import writing
    from vlp.report.sheets import contact_sheet

    facts = inspect_shards(shards)
    with writing(sheet) as temporary:
        temporary.write_bytes(contact_sheet(facts.pop("pictures")))
    print_values({**facts, "contact_sheet": sheet}, as_json)
