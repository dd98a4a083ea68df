"""The page of recipes.py: qualities at the end, time to reach given qualities, and curves."""

from collections.abc import Iterable
from statistics import mean, stdev
from typing import Literal

from experiment import Experiment, Finished
from matplotlib import rc_context
from matplotlib.figure import Figure

from vlp.report.curves import STYLE
from vlp.report.figures import as_svg, remove_frame
from vlp.report.tables import markdown_table, mean_and_deviation

Runs = dict[str, list[Finished]]  # finished runs of each variant, by its name
Axis = Literal["seconds", "samples"]
AXES: tuple[Axis, ...] = ("seconds", "samples")


def time_to(run: Finished, measure: str, level: float, axis: Axis) -> float | None:
    """Where a run first reaches a quality, in seconds of training or in samples; None if it does not.

    Between two validations the quality is interpolated. If the first one is good enough, its place is the answer.
    """
    before = None
    for point in run.points:
        place, score = float(getattr(point, axis)), point.scores.get(measure, float("nan"))
        if score >= level:
            if before is None:
                return place
            start, low = before
            return start + (place - start) * (level - low) / (score - low)
        if score == score:
            before = place, score
    return None


def render(experiment: Experiment, runs: Runs, command: str, peer: tuple[str, float] | None = None) -> str:
    """The page.

    Args:
        peer: its name and pairs per second; the samples of the published recipe are told in seconds of it.
    """
    machines = sorted({run.machine for found in runs.values() for run in found})
    parts = [
        "# What recipes learn",
        f"    {command}",
        "Scores are percentages, mean ± standard deviation over seeds. Seconds are of training, without validation. "
        f"Machine: {'; '.join(machines)}.",
        _final_table(experiment, runs),
    ]
    for measure, levels in wanted_levels(experiment, runs).items():
        parts += [f"## Time to {measure}", _time_table(experiment, runs, measure, levels, peer)]
    return "\n\n".join([*parts, "![Curves](curves.svg)"])


def wanted_levels(experiment: Experiment, runs: Runs) -> dict[str, list[float]]:
    """The qualities to reach, by measure: those of the experiment, and the reference's mean at the end."""
    levels = {one.measure: list(one.levels) for one in experiment.reach}
    for measure in experiment.measures:
        finals = list(_finals(runs.get(experiment.reference, []), measure))
        if finals:
            levels[measure] = sorted({*levels.get(measure, []), mean(finals)})
    return levels


def _finals(runs: list[Finished], measure: str) -> Iterable[float]:
    return (run.points[-1].scores[measure] for run in runs if measure in run.points[-1].scores)


def _final_table(experiment: Experiment, runs: Runs) -> str:
    rows = []
    for name, found in runs.items():
        cells = [mean_and_deviation(_finals(found, measure)) for measure in experiment.measures]
        sizes = [_spread([float(getattr(run.points[-1], axis)) for run in found]) for axis in AXES]
        rows.append([name, str(len(found)), *cells, *sizes])
    return markdown_table(["variant", "seeds", *experiment.measures, *AXES], rows)


def _time_table(
    experiment: Experiment, runs: Runs, measure: str, levels: list[float], peer: tuple[str, float] | None
) -> str:
    heads, rows = ["quality", "variant", "seeds that reach it", *AXES], []
    if peer:
        heads.append(f"seconds at {peer[1]:g} pairs/s of {peer[0]}")
    for level in levels:
        for name, found in runs.items():
            seconds, samples = (
                [place for run in found if (place := time_to(run, measure, level, axis)) is not None] for axis in AXES
            )
            cells = [f"{100 * level:.1f}%", name, f"{len(seconds)} of {len(found)}", _spread(seconds), _spread(samples)]
            if peer:
                published = name == experiment.published
                cells.append(_spread([one / peer[1] for one in samples]) if published else "")
            rows.append(cells)
    return markdown_table(heads, rows)


def _spread(values: list[float]) -> str:
    """Mean ± standard deviation; a dash stands for nothing."""
    if not values:
        return "–"
    return f"{mean(values):,.0f}" + (f" ± {stdev(values):,.0f}" if len(values) > 1 else "")


def curves(experiment: Experiment, runs: Runs) -> str:
    """An SVG with a row for each measure: quality over seconds and over samples, thick means over thin seeds."""
    with rc_context(STYLE):
        measures = experiment.measures
        figure = Figure(figsize=(10, 2.9 * len(measures)))
        panels = figure.subplots(len(measures), len(AXES), squeeze=False)
        for row, measure in zip(panels, measures, strict=True):
            for panel, axis in zip(row, AXES, strict=True):
                for number, (name, found) in enumerate(runs.items()):
                    _draw(panel, found, measure, axis, name, f"C{number}")
                panel.set_title(measure, loc="left")
                panel.set_xlabel(f"{axis} of training")
                remove_frame(panel)
        panels[0][-1].legend(frameon=False)
        figure.tight_layout()
        return as_svg(figure)


def _draw(panel, found: list[Finished], measure: str, axis: Axis, name: str, color: str) -> None:
    lines = [
        [(float(getattr(point, axis)), 100 * point.scores[measure]) for point in run.points if measure in point.scores]
        for run in found
    ]
    lines = [line for line in lines if line]
    if not lines:
        return
    for line in lines:
        panel.plot(*zip(*line, strict=True), color=color, linewidth=0.6, alpha=0.5)
    together = list(zip(*lines, strict=False))  # the points of all seeds at one validation
    means = [tuple(mean(one[index] for one in points) for index in (0, 1)) for points in together]
    panel.plot(*zip(*means, strict=True), color=color, linewidth=1.8, label=name)
