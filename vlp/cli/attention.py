"""`vlp attention`: pictures of where a model looks."""

import json
from typing import Annotated, Literal

import typer

from vlp.cli.options import Json


def attention(
    model: str,
    image: str,
    texts: Annotated[list[str] | None, typer.Argument(help="One or several; none for --kind rollout.")] = None,
    *,
    out: Annotated[str, typer.Option(help="The picture: .png for a sheet, .html for a page that opens from disk.")],
    kind: Annotated[
        Literal["words", "similarity", "rollout"] | None,
        typer.Option(
            help="words: Grad-CAM of each word (BLIP); similarity: the cosine of patches and text (default of CLIP); "
            "rollout: attention of the image encoder over all layers, without a text."
        ),
    ] = None,
    layer: Annotated[int, typer.Option(min=0, help="Text layer of Grad-CAM, from 1; 0: layer 8 of 12, scaled.")] = 0,
    as_json: Json = False,
) -> None:
    """Show where a model looks. Example: vlp attention MODEL photo.jpg "a dog on a beach" --out page.html"""
    from vlp.model import load_model
    from vlp.model.attention_pictures import draw_attention
    from vlp.models.cpu.optimise import optimise_for_cpu

    groups = draw_attention(optimise_for_cpu(load_model(model)), image, texts or [], out, kind, layer)
    if as_json:
        maps = [
            [{"label": one.label, "strength": one.strength, "map": one.values.tolist()} for one in group.maps()]
            for group in groups
        ]
        print(json.dumps([{"text": group.heading, "maps": rows} for group, rows in zip(groups, maps, strict=True)]))
        return
    for group in groups:
        print(f"{group.heading}  {group.note}".strip())
        for one in group.maps():
            print(f"  {one.strength:8.3f}  {one.label}")
    print(f"{out} is complete")
