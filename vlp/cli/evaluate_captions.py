"""`vlp evaluate captions`: a file of captions against the reference captions, without a model."""

from typing import Annotated

import typer

from vlp.cli.evaluation_options import Dataset, Out
from vlp.cli.options import Json

Java = Annotated[
    bool,
    typer.Option("--java", help="Also METEOR and SPICE, which need Java and the extra `metrics`."),
]


def captions(
    results: Annotated[str, typer.Argument(help="Captions in COCO's format for results: [{image_id, caption}].")],
    references: Annotated[list[str], typer.Argument(help="Shards, or one JSON file of COCO's or NoCaps's captions.")],
    java: Java = False,
    dataset: Dataset = "",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """BLEU, ROUGE-L and CIDEr-D of existing captions.

    Example: vlp evaluate captions captions.json annotations/captions_val2014.json --java
    """
    import json

    from vlp.cli.options import print_values
    from vlp.evaluation.caption_files import score_caption_file
    from vlp.evaluation.results import save_results, to_json

    scored = score_caption_file(results, references[0] if len(references) == 1 else references, java)
    scored.dataset = dataset or scored.dataset
    if out:
        save_results(scored, out, results)
    if as_json:
        print(json.dumps(to_json(scored, results)))
    else:
        print_values(scored.metrics, False)
