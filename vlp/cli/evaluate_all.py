"""`vlp evaluate all`: everything that a model can do on the data in a folder."""

from typing import Annotated

import typer

from vlp.cli.evaluation_options import BatchSize, Limit, Workers, evaluation_run
from vlp.cli.options import Json, Precision, print_values


def all_tasks(
    model: str,
    data: Annotated[str, typer.Option(help="Folder with data sets: folders of shards, lists of videos.")],
    out: Annotated[str, typer.Option(help="Folder for the results; a rerun continues.")],
    tasks: Annotated[str, typer.Option(help="Only these, separated by commas, such as retrieval,captioning.")] = "",
    limit: Limit = None,
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    precision: Precision = "auto",
    as_json: Json = False,
) -> None:
    """Evaluate all data sets in a folder. Example: vlp evaluate all MODEL --data data --out results"""
    given = locals()
    import json

    from vlp.evaluation.all_tasks import evaluate_all

    about = {name: given[name] for name in ("limit", "batch_size", "precision")}
    with evaluation_run(given, about, partial=out) as run:
        names = [one.strip().replace("-", "_") for one in tasks.split(",") if one.strip()]
        summary = evaluate_all(run.model, model, data, out, run.settings, names or None)
    if not run.is_main:
        return
    if as_json:
        print(json.dumps(summary))
        return
    for result in summary["results"]:
        print(f"{result['task']} {result['dataset']}")
        print_values({f"  {name}": value for name, value in result["metrics"].items()}, False)
    for one in summary["not_run"]:
        print(f"not evaluated: {' '.join(filter(None, (one['task'], one['dataset'])))}: {one['reason']}")
    print(f"{out}/results.md and {out}/report.html show the results")
