"""The HTML of the tab Try: tables of captions, matches and labels. Every text is escaped."""

from collections.abc import Sequence

from markupsafe import Markup


def table_html(label: str, columns: Sequence[str], rows: Sequence[Sequence[object]], bars: bool = False) -> str:
    """A table whose first column names its rows; with `bars`, the last value of a row, in 0..1, is drawn, too."""
    values = dict(zip(columns, rows[0], strict=False)) if rows else {}
    head = Markup("").join(
        Markup('<th scope="col"{}>{}</th>').format(_number(values.get(one)), one) if one else Markup("<td></td>")
        for one in columns
    )
    body = Markup("").join(_row(row, bars) for row in rows)
    return str(
        Markup(
            '<div class="vlp-wide" tabindex="0" role="region" aria-label="{}"><table class="vlp-counts vlp-results">'
            "<thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>"
        ).format(label, head, body)
    )


def _row(row: Sequence[object], bars: bool) -> Markup:
    cells = Markup("").join(Markup("<td{}>{}</td>").format(_number(one), _shown(one)) for one in row[1:])
    if bars and isinstance(row[-1], float):
        bar = Markup('<td><span class="vlp-bar"><span style="width:{:.1f}%"></span></span></td>').format(100 * row[-1])
        cells += bar
    return Markup('<tr><th scope="row">{}</th>{}</tr>').format(row[0], cells)


def _number(value: object) -> Markup:
    return Markup(' class="vlp-number"') if isinstance(value, float) else Markup("")


def _shown(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if 0 < abs(value) < 0.001 else f"{value:.3f}"
