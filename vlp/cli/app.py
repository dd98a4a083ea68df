"""`vlp app`, the page in the browser, and `vlp runs`, the curves of runs as a file."""

from typing import Annotated, Any

import typer

from vlp.cli.options import Json, print_values


def app(
    folder: Annotated[str, typer.Argument(help="With --demo: the folder of the demo; default: ./demo.")] = "",
    demo: Annotated[bool, typer.Option("--demo", help="Show the output of `vlp demo`.")] = False,
    index: Annotated[str, typer.Option(help="An index of `vlp index` to search.")] = "",
    model: Annotated[str, typer.Option(help="A model to try; with --index, the default is the index's.")] = "",
    tables: Annotated[
        list[str] | None, typer.Option(help="Score tables to review: paths, globs or a folder; repeatable.")
    ] = None,
    labels: Annotated[str, typer.Option(help="Folder of the labels; default: that of the tables.")] = "",
    also: Annotated[list[str] | None, typer.Option(help="NAME=GLOB: other tables, which rules use.")] = None,
    runs: Annotated[list[str] | None, typer.Option(help="Run folders, or a folder of them; repeatable.")] = None,
    host: Annotated[str, typer.Option(help="Address to serve on; others than this machine need --auth.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 chooses a free one.")] = 7860,
    auth: Annotated[list[str] | None, typer.Option(help="USER:PASSWORD of who may enter; repeatable.")] = None,
) -> None:
    """Open the page: search, try a model, review score tables, compare runs. Example: vlp app --index photos-index

    The page is served on this machine only, and sends nothing anywhere. The tabs that appear depend on what is given;
    `vlp app --demo demo` shows a finished demo.
    """
    from vlp.app.inputs import AppInputs, demo_inputs, find_runs
    from vlp.app.server import serve
    from vlp.capfilt.selection import parse_also
    from vlp.errors import UserError

    if folder and not demo:
        raise UserError(
            f"The page does not know what {folder} is; name it with --index, --model, --tables, --runs or --demo."
        )
    inputs = demo_inputs(folder) if demo else AppInputs()
    inputs.tables += tables or []
    inputs.runs += [one for one in find_runs(runs or []) if one not in inputs.runs]
    if index or model:
        inputs.index, inputs.images = index or inputs.index, "" if index else inputs.images
        inputs.model = model or ("" if index else inputs.model)
    inputs.labels, inputs.also = labels, parse_also(also or [])
    serve(inputs, host, port, auth)


def runs(
    folders: Annotated[list[str], typer.Argument(help="Run folders, or a folder of them.")],
    curves: Annotated[str, typer.Option(help="Numbers of log.jsonl, with commas.")] = "loss",
    smooth: Annotated[int, typer.Option(min=1, help="Records that a point averages.")] = 1,
    output: Annotated[str, typer.Option("--out", help="An SVG of the curves to write.")] = "",
    as_json: Json = False,
) -> None:
    """Compare the scores and the curves of runs. Example: vlp runs runs --curves itm,lm --out curves.svg"""
    from vlp.app.inputs import find_runs
    from vlp.errors import UserError
    from vlp.files import write_text
    from vlp.report.runs import read_runs, series_svg

    logs = read_runs(find_runs(folders))
    names = [one.strip() for one in curves.split(",") if one.strip()]
    unknown = [one for one in names if one not in logs.series()]
    if unknown:
        raise UserError(f"No run logs {unknown[0]}; they log: {', '.join(logs.series())}.")
    if output:
        write_text(output, series_svg(logs, names, smooth))
    values: dict[str, Any] = {}
    for name, records in logs.records.items():
        last = {one: next((r[one] for r in reversed(records) if one in r), None) for one in names}
        values[name] = {"records": len(records), **last, **logs.scores[name]}
    print_values(values, as_json)
