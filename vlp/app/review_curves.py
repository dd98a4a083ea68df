"""Draws precision and recall at every threshold, with their intervals and the number of texts kept, as SVG."""

import io

from markupsafe import Markup

from vlp.capfilt.review_estimates import ThresholdEstimate
from vlp.extras import extra
from vlp.report.runs import INK, LINES, STYLE

with extra("report"):
    from matplotlib import rc_context
    from matplotlib.figure import Figure


def threshold_svg(estimates: list[ThresholdEstimate], score: str, wanted: float) -> str:
    """A panel of precision and recall with 95% bands, and one of the texts kept; `wanted` is the wanted precision."""
    thresholds = [one.threshold for one in estimates]
    with rc_context({**STYLE, **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK)}):
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
            panel.spines[["top", "right"]].set_visible(False)
        figure.tight_layout()
        data = io.StringIO()
        figure.savefig(data, format="svg", transparent=True, metadata={"Date": None})
    svg = data.getvalue()[data.getvalue().index("<svg") :]
    label = Markup('<svg role="img" aria-label="Precision, recall and texts kept by the threshold of {}" ').format(
        score
    )
    return svg.replace("<svg ", str(label), 1)
