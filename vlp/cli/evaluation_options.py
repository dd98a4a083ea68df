"""The options that all commands of `vlp evaluate` share, and how they run: processes, progress, resume and output."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlp.cli.options import print_values

if TYPE_CHECKING:
    from vlp.evaluation.results import Results
    from vlp.evaluation.settings import EvaluationSettings
    from vlp.model import Model

Limit = Annotated[int | None, typer.Option(min=1, help="Use at most this many samples.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Samples at once.")]
Workers = Annotated[
    int, typer.Option(min=0, max=1024, help="Processes that decode images; 0 decodes in the main process.")
]
Dataset = Annotated[str, typer.Option(help="Name of the data set in the results; default: from its path.")]
Out = Annotated[
    str | None,
    typer.Option(
        "--out", help="Also write the results to this JSON file, and the predictions beside it; a rerun continues."
    ),
]
NOT_ABOUT = ("model", "workers", "dataset", "out", "as_json")  # arguments that decide no prediction


def run_evaluation(
    task: str,
    given: dict[str, Any],
    evaluate: "Callable[[Model, EvaluationSettings], Results]",
    unit: str = "images",
) -> None:
    """Load the model, evaluate it with all processes of the launcher, and print and write the results in the first one.

    With `--out X.json`, finished batches are kept in X.json.partial until the results are written.

    Args:
        given: `locals()` of the command at its start: model, batch_size, limit, workers, precision, dataset, out and
            as_json, and what else decides the predictions.
        unit: what the progress counts.
    """
    from vlp.distributed import failing_together, is_main, join_processes, launched, meet
    from vlp.evaluation.partial import model_stamp
    from vlp.evaluation.results import save_results, to_json
    from vlp.evaluation.settings import EvaluationSettings
    from vlp.files import remove
    from vlp.log import Progress
    from vlp.model import load_model
    from vlp.models.cpu.optimise import optimise_for_cpu
    from vlp.remote import is_remote

    device = join_processes() if launched() else None
    model, out, as_json = given["model"], given["out"], given["as_json"]
    with failing_together():
        partial = f"{out}.partial" if out and not is_remote(out) else ""
        with Progress(unit, quiet=as_json or not is_main()) as progress:
            loaded = optimise_for_cpu(load_model(model, device, given["precision"]))
            settings = EvaluationSettings(
                batch_size=given["batch_size"],
                limit=given["limit"],
                workers=given["workers"],
                progress=progress.add,
                expect=progress.expect,
                spread=True,
                partial=partial,
                about={"task": task, "model": model_stamp(model), **_about(given)},
            )
            results = evaluate(loaded, settings)
        results.dataset = given["dataset"] or results.dataset
        if is_main():
            if out:
                save_results(results, out, model)
            if partial:
                remove(Path(partial))
            if as_json:
                print(json.dumps(to_json(results, model)))
            else:
                print_values(results.metrics, False)
        meet()  # the others leave when everything is written


def _about(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a command that decide its predictions."""
    return {name: value for name, value in given.items() if name not in NOT_ABOUT}
