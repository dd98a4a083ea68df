"""The tab Runs: loss curves and scores of several run folders over one another."""

import shlex
from typing import Any

from vlp.app.pieces import LIVE, command_html, html, note, wide
from vlp.errors import UserError
from vlp.report.runs import RunLogs, read_runs, scores_html, series_svg

FIRST_SERIES = ("loss", "itc", "itm", "lm")


def add_runs_tab(page: Any, folders: list[str]) -> None:
    """Add the tab to `page`, the gr.Blocks that is being built."""
    import gradio as gr

    logs = read_runs(folders)
    names, series = list(logs.records), logs.series()
    with gr.Tab("Runs", id="runs"):
        html("<h2>Runs</h2>")
        runs = gr.CheckboxGroup(names, value=names[:6], label="Runs", elem_id="vlp-runs")
        chosen = [one for one in FIRST_SERIES if one in series] or series[:3]
        curves = gr.CheckboxGroup(series, value=chosen, label="Curves", elem_id="vlp-series")
        smooth = gr.Slider(1, 50, 1, step=1, label="Records to average (smoothing)", elem_id="vlp-smooth")
        again = gr.Button("Read the logs again", size="sm", elem_id="vlp-read-again")
        picture, command, scores = html(elem_id="vlp-curves"), html(), html(elem_id="vlp-scores")

        def draw(shown: list[str], columns: list[str], window: float) -> tuple[str, str, str]:
            return draw_runs(folders, shown, columns, int(window))

        for control in (runs, curves, smooth):
            control.input(draw, [runs, curves, smooth], [picture, command, scores], **LIVE)
        again.click(draw, [runs, curves, smooth], [picture, command, scores], **LIVE)
        page.load(draw, [runs, curves, smooth], [picture, command, scores], **LIVE)


def draw_runs(folders: list[str], shown: list[str], columns: list[str], window: int) -> tuple[str, str, str]:
    """HTML of the curves of some of the runs, of the command, and of the scores."""
    try:
        logs = read_runs(folders)
    except UserError as error:
        return note(str(error), "error"), "", ""
    kept = RunLogs(
        {name: records for name, records in logs.records.items() if name in shown},
        {name: values for name, values in logs.scores.items() if name in shown},
        logs.folders,
    )
    if not kept.records or not columns:
        return note("Choose at least one run and one curve."), "", scores_html(kept)
    named = " ".join(shlex.quote(kept.folders[name]) for name in kept.records)
    command = f"vlp runs {named} --curves {shlex.quote(','.join(columns))} --smooth {window} --out curves.svg"
    return (
        wide(series_svg(kept, columns, window), "Curves"),
        command_html(command, "Draw these curves"),
        scores_html(kept),
    )
