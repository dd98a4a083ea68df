"""The options that all commands of `vlp evaluate` share, and how they run: processes, progress, resume and output."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlp.cli.options import print_values
from vlp.errors import UserError

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
NOT_ABOUT = ("model", "workers", "dataset", "submission", "out", "as_json")  # arguments that decide no prediction


@dataclass
class EvaluationRun:
    """What a command works with: the model, the settings, and whether this is the process that writes and prints."""

    model: "Model"
    settings: "EvaluationSettings"
    is_main: bool


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
    from vlp.evaluation.results import save_results, to_json
    from vlp.files import remove
    from vlp.remote import is_remote

    model, out = given["model"], given["out"]
    partial = f"{out}.partial" if out and not is_remote(out) else ""
    about = {name: value for name, value in given.items() if name not in NOT_ABOUT}
    with evaluation_run(given, {"task": task, **about}, partial, unit, (out, given.get("submission"))) as run:
        results = evaluate(run.model, run.settings)
    if not run.is_main:
        return
    results.dataset = given["dataset"] or results.dataset
    if out:
        save_results(results, out, model)
    if partial:
        remove(Path(partial))
    if given["as_json"]:
        print(json.dumps(to_json(results, model)))
    else:
        print_values(results.metrics, False)


@contextmanager
def evaluation_run(
    given: dict[str, Any],
    about: dict[str, Any],
    partial: str,
    unit: str = "images",
    files: Sequence[str | None] = (),
) -> Iterator[EvaluationRun]:
    """Join the processes of the launcher, if any, load the model, and show progress; an error in one process ends all.

    Args:
        given: the command's model, batch_size, limit, workers, precision and as_json.
        about: what decides the predictions.
        files: that the command will write, if it writes some.
    """
    from vlp.distributed import failing_together, is_main, join_processes, launched
    from vlp.evaluation.partial import model_stamp
    from vlp.evaluation.settings import EvaluationSettings
    from vlp.log import Progress
    from vlp.model import load_model
    from vlp.models.cpu.optimise import optimise_for_cpu

    device = join_processes() if launched() else None
    model = given["model"]
    with failing_together(), Progress(unit, quiet=given["as_json"] or not is_main()) as progress:
        _check_outputs(given, files)
        loaded = optimise_for_cpu(load_model(model, device, given["precision"]))
        settings = EvaluationSettings(
            batch_size=given["batch_size"],
            limit=given["limit"],
            workers=given["workers"],
            progress=progress.add,
            expect=progress.expect,
            spread=True,
            partial=partial,
            about={"model": model_stamp(model), **about},
        )
        yield EvaluationRun(loaded, settings, is_main())


def _check_outputs(given: dict[str, Any], files: Sequence[str | None]) -> None:
    """Find before the work what would keep a command's files from being written after it; raises UserError."""
    if given.get("submission") and given["limit"]:
        raise UserError("A submission needs a prediction for every sample; leave --limit out.")
    for path in files:
        if path and Path(path).is_dir():
            raise UserError(f"{path} is a folder; name a file.")
