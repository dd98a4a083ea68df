"""The HTML of the tab Review CapFilt: counts, the card of an image, and the suggestion. Every text is escaped."""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from vlp.capfilt.review_estimates import Share, Suggestion
from vlp.capfilt.review_tables import SCORES, RuleCounts
from vlp.report.page import data_uri

MARKS = {"accept": "accepted", "reject": "rejected"}


def counts_html(counts: RuleCounts) -> str:
    """What a rule keeps, with a bar for each line."""
    lines = [("images", counts.images, counts.all_images)]
    lines += [(f"{name} texts", counts.texts[name], total) for name, total in counts.all_texts.items()]
    kept = sum(counts.texts.values())
    rows = Markup("").join(
        Markup(
            '<tr><th scope="row">{}</th><td>{:,} of {:,}</td><td>{:.1%}'
            '<span class="vlp-bar"><span style="width:{:.1f}%"></span></span></td><td>{}</td></tr>'
        ).format(
            name,
            count,
            total,
            count / max(total, 1),
            100 * count / max(total, 1),
            f"{count / kept:.1%}" if place and kept else "",
        )
        for place, (name, count, total) in enumerate(lines)
    )
    head = Markup(
        '<thead><tr><th scope="col">kept</th><th scope="col">number</th><th scope="col">share</th>'
        '<th scope="col">of kept</th></tr></thead>'
    )
    return str(Markup('<table class="vlp-counts" aria-live="polite">{}<tbody>{}</tbody></table>').format(head, rows))


def card_html(
    texts: list[dict[str, Any]],
    current: int,
    picture: bytes | str,
    kept: set[int] | None,
    marks: Mapping[int, Mapping[str, str]],
    rule: str,
) -> str:
    """An image beside all its texts.

    Args:
        texts: rows of the score table.
        current: the id of the text that a key labels.
        picture: a JPEG, or the sentence that says why there is none.
        kept: the ids of the texts that the rule keeps; None if the rule has an error.
        marks: the verdicts on rows, by id and reviewer.
    """
    key = texts[0]["key"]
    if isinstance(picture, bytes):
        frame = Markup('<img src="{}" alt="The image {}">').format(data_uri(picture, "jpeg"), key)
    else:
        frame = Markup('<p class="vlp-note vlp-error">{}</p>').format(picture)
    blocks = Markup("").join(
        _text(one, one["id"] == current, None if kept is None else one["id"] in kept, marks.get(one["id"], {}))
        for one in texts
    )
    size = f"{texts[0]['width']} × {texts[0]['height']} pixels" if texts[0]["width"] else ""
    return str(
        Markup(
            '<section class="vlp-card" data-row="{}" aria-label="Image {}">'
            '<figure class="vlp-picture">{}<figcaption>{} {}</figcaption></figure>'
            '<ol class="vlp-texts" aria-label="Texts of the image; the rule is {}">{}</ol></section>'
        ).format(current, key, frame, key, size, rule, blocks)
    )


def _text(row: dict[str, Any], current: bool, kept: bool | None, verdicts: Mapping[str, str]) -> Markup:
    scores = Markup("").join(
        Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(name, f"{row[name]:.3f}")
        for name in SCORES
        if row.get(name) is not None
    )
    named = len(verdicts) > 1  # by whom, where there are several
    mark = ", ".join(MARKS[one] + (f" by {who}" if named else "") for who, one in verdicts.items() if one in MARKS)
    return Markup(
        '<li class="vlp-text{}"{}><p class="vlp-head"><span class="vlp-source">{}</span>'
        '{}{}</p><p class="vlp-words" lang="">{}</p><dl>{}</dl></li>'
    ).format(
        " vlp-current" if current else "",
        Markup(' aria-current="true"') if current else "",
        row["source"],
        "" if kept is None else Markup('<span class="vlp-{0}">rule: {0}</span>').format("kept" if kept else "dropped"),
        Markup('<span class="vlp-mark">label: {}</span>').format(mark) if mark else "",
        row["text"],
        scores,
    )


def suggestion_html(suggestion: Suggestion, rule: str, sure_rule: str) -> str:
    """The suggested rules with their estimates, and what the intervals mean."""
    parts = []
    for title, one, text in (
        ("Lowest threshold of this precision", suggestion.estimate, rule),
        ("Lowest threshold whose whole interval has it", suggestion.sure, sure_rule),
    ):
        if one:
            parts.append(
                Markup(
                    "<tr><th scope='row'>{}</th><td><code>{}</code></td><td>{}</td><td>{}</td><td>{:,}</td>"
                    "<td>{}</td></tr>"
                ).format(title, text, _share(one.precision), _share(one.recall), one.texts, one.labels)
            )
    table = Markup(
        "<div class='vlp-wide' tabindex='0' role='region' aria-label='Suggested thresholds'><table class='vlp-counts'>"
        "<thead><tr><td></td><th scope='col'>rule</th><th scope='col'>precision</th><th scope='col'>recall</th>"
        "<th scope='col'>texts kept</th><th scope='col'>labels kept</th></tr></thead><tbody>{}</tbody></table></div>"
    ).format(Markup("").join(parts))
    notes = Markup("").join(Markup("<p class='vlp-note'>{}</p>").format(one) for one in suggestion.notes)
    meaning = Markup(
        "<p class='vlp-note'>Brackets are 95% intervals (Wilson). They cover the chance in which texts were labeled, "
        "not errors of the reviewer.</p>"
    )
    return str((table if parts else Markup("")) + notes + (meaning if parts else Markup("")))


def _share(share: Share) -> str:
    return f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}]"
