"""`vlp classify`: the label that describes an image best, or its class by a classifier."""

import json
from pathlib import Path
from typing import Annotated

import typer

from vlp.cli.options import Json, Precision
from vlp.errors import UserError


def classify(
    model: str,
    images: list[str],
    labels: Annotated[
        str, typer.Option(help="Labels, separated by commas, or a file with one a line; a classifier has its own.")
    ] = "",
    templates: Annotated[
        str | None, typer.Option(help="File of prompts, one a line, with {} for the label; default: the label alone.")
    ] = None,
    rerank: Annotated[int, typer.Option(min=0, help="Match this many texts with each image by ITM; 0 disables.")] = 0,
    top: Annotated[int, typer.Option(min=1, help="Number of labels to print for each image.")] = 5,
    precision: Precision = "auto",
    as_json: Json = False,
) -> None:
    """Choose among labels without training for them, or by a classifier among the classes of its training.

    Example: vlp classify MODEL photo.jpg --labels "a dog,a cat,two people"
    """
    from vlp.data.class_names import read_names, read_templates
    from vlp.model import load_model
    from vlp.models.cpu.optimise import optimise_for_cpu

    loaded = optimise_for_cpu(load_model(model, precision=precision))
    names = read_names(labels) if Path(labels).is_file() else [one.strip() for one in labels.split(",") if one.strip()]
    if not names and loaded.config.network != "classifier":
        raise UserError('Give --labels, such as --labels "a dog,a cat"; only a classifier has labels of its own.')
    prompts = read_templates(templates) if templates else []
    found = loaded.classify(images, names, prompts, rerank)
    names = names or loaded.config.classes
    best = {
        image: [{"label": names[number], "probability": shares[number].item()} for number in ranking[:top].tolist()]
        for image, ranking, shares in zip(images, found.ranking, found.probabilities, strict=True)
    }
    if as_json:
        print(json.dumps(best))
        return
    for image, ranked in best.items():
        for one in ranked:
            print(f"{image}\t{one['probability']:.3f}\t{one['label']}")
