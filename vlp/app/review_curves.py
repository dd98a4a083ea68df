"""Draws precision and recall at every threshold, with their intervals and the number of texts kept, as SVG."""

from vlp.capfilt.review_estimates import ThresholdEstimate
from vlp.extras import extra
from vlp.report.figures import as_svg, remove_frame
from vlp.report.runs import DARKER, INK, LINES

with extra("report"):
    from matplotlib import rc_context
    from matplotlib.figure import Figure


def threshold_svg(estimates: list[ThresholdEstimate], score: str, wanted: float) -> str:
    """A panel of precision and recall with 95% bands, and one of the texts kept; `wanted` is the wanted precision."""
    thresholds = [one.threshold for one in estimates]
    with rc_context(DARKER):
        figure = Figure(figsize=(10.4, 3.2))
        shares, texts = figure.subplots(1, 2)
        for name, color, dash in (("precision", LINES[0], "-"), ("recall", LINES[1], "--")):
            found = [getattr(one, name) for one in estimates]
            shares.plot(thresholds, [one.value for one in found], dash, color=color, linewidth=1.8, label=name)
            bounds = [one.low for one in found], [one.high for one in found]
            shares.fill_between(thresholds, *bounds, color=color, alpha=0.15, linewidth=0)
        shares.axhline(wanted, linestyle=":", linewidth=1, color=INK, label="wanted")
        shares.set_ylim(0, 1.02)
        shares.set_title("Precision and recall", loc="left")
        shares.legend(frameon=False, loc="lower left")
        texts.plot(thresholds, [one.texts for one in estimates], color=LINES[2], linewidth=1.8)
        texts.set_ylim(bottom=0)
        texts.set_title("Texts kept", loc="left")
        for panel in (shares, texts):
            panel.set_xlabel(f"threshold of {score}")
            remove_frame(panel)
        figure.tight_layout()
        return as_svg(figure, f"Precision, recall and texts kept by the threshold of {score}")
