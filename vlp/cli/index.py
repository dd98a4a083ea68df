"""The commands `vlp index` and `vlp search`."""

import json
import os
from typing import Annotated

import typer

from vlp.cli.options import Json, Precision, print_values

Frames = Annotated[int, typer.Option(min=1, help="Frames of a video, sampled uniformly.")]


def index(
    images: Annotated[
        list[str], typer.Argument(help="Folders of images and videos, files, shards, or a folder of clip-retrieval.")
    ],
    output: Annotated[str, typer.Argument(help="The folder of the index; one that exists grows by new images only.")],
    model: Annotated[str, typer.Option(help="Model folder; default: the model of an index that exists.")] = "",
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once.")] = 64,
    frames: Frames = 8,
    precision: Precision = "auto",
    as_json: Json = False,
) -> None:
    """Keep the embeddings of images for `vlp search --index`. Example: vlp index photos photos-index --model MODEL"""
    from vlp.distributed import is_main, join_processes
    from vlp.index.build import build_index
    from vlp.index.clip_retrieval import is_clip_retrieval
    from vlp.index.manifest import is_index, read_manifest
    from vlp.model import load_model
    from vlp.models.cpu.optimise import optimise_for_cpu

    device = join_processes()
    if not model and is_index(output):
        model = read_manifest(output).model.name
    needed = model and not any(map(is_clip_retrieval, images))
    loaded = optimise_for_cpu(load_model(model, device, precision)) if needed else None
    name = os.path.abspath(model) if os.path.isdir(model) else model
    counts = build_index(loaded, images, output, name, batch_size, frames, quiet=as_json)
    if is_main():
        print_values(vars(counts), as_json)


def search(
    model: Annotated[str, typer.Argument(help="Model folder; with --index, the default is the index's model.")] = "",
    images: Annotated[str, typer.Argument(help="A folder of images and videos, or shards; not with --index.")] = "",
    query: Annotated[str, typer.Option(help="The text to search for.")] = "",
    image: Annotated[str, typer.Option(help="An image to search for, instead of a text.")] = "",
    index: Annotated[str, typer.Option(help="An index of `vlp index`, or a folder of clip-retrieval.")] = "",
    top: Annotated[int, typer.Option(min=1, help="Number of results.")] = 10,
    rerank: Annotated[
        int | None,
        typer.Option(
            min=0, help="Re-rank this many of the best images by ITM; 0 disables; default: 32, for CLIP or an image 0."
        ),
    ] = None,
    frames: Frames = 8,
    show: Annotated[
        int | None, typer.Option(min=0, help="With --index: print where the image of this number is, and its caption.")
    ] = None,
    out: Annotated[str, typer.Option(help="With --show: write the image to this file, such as picture.png.")] = "",
    precision: Precision = "auto",
    as_json: Json = False,
) -> None:
    """Search images by a text or an image. Example: vlp search MODEL --index photos-index --query "a dog on the beach"

    Without an index, all images are embedded: vlp search MODEL photos --query "a dog on the beach"
    """
    from vlp.errors import UserError

    if show is not None or out:
        _show(index, show, out, as_json)
        return
    if bool(index) == bool(images):
        raise UserError("Name what to search: either IMAGES (after MODEL) or --index FOLDER.")
    if bool(query) == bool(image):
        raise UserError("Give either a text (--query) or an image (--image) to search for.")
    from vlp.index.opened import open_index
    from vlp.index.search import Query, search_index
    from vlp.index.search import search as search_images
    from vlp.model import load_model
    from vlp.models.cpu.optimise import optimise_for_cpu

    opened = open_index(index) if index else None
    model = model or (opened.model.name if opened else "")
    if not model:
        raise UserError(f"{index} does not tell its model; name it: vlp search MODEL --index {index}.")
    loaded, wanted = optimise_for_cpu(load_model(model, precision=precision)), Query(query, image)
    if opened:
        hits = search_index(loaded, opened, wanted, top, rerank)
    else:
        hits = search_images(loaded, images, wanted, top, rerank, frames=frames)
    if as_json:
        print(json.dumps([vars(hit) for hit in hits]))
        return
    for hit in hits:
        matched = "" if hit.itm is None else f"  match {hit.itm:.3g}"
        print(f"{hit.itc:.3f}{matched}  {hit.name}")


def _show(index: str, number: int | None, out: str, as_json: bool) -> None:
    """Print what an index knows of an image, and write the image."""
    from vlp.data.image_encoding import check_image_file, write_image
    from vlp.errors import UserError
    from vlp.index.opened import open_index

    if not index or number is None:
        raise UserError("--show takes the number of an image and needs --index; --out needs --show.")
    if out:
        check_image_file(out)
    opened = open_index(index)
    row = opened.row(number)
    if out:
        write_image(out, opened.image(number))
    values = {"key": row.place.key, "path": row.place.path, "width": row.width, "height": row.height}
    print_values({**values, "caption": row.caption}, as_json)
