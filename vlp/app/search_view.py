"""The HTML of the tab Search: the images that were found, and the details of one. Every text is escaped."""

from collections.abc import Sequence

from markupsafe import Markup

from vlp.errors import UserError
from vlp.index import ImageIndex
from vlp.index.search import Hit
from vlp.report.page import data_uri

# A click on an image tells the page its number.
ON_LOAD = """
element.addEventListener('click', (event) => {
  const hit = event.target.closest('.vlp-hit');
  if (!hit) return;
  element.querySelectorAll('.vlp-hit').forEach((one) => one.setAttribute('aria-pressed', one === hit));
  trigger('click', {number: Number(hit.dataset.number)});
});
"""


def hits_html(index: ImageIndex, hits: Sequence[Hit]) -> str:
    """The images that were found, best first, each a button."""
    return str(
        Markup('<ol class="vlp-hits">{}</ol>').format(Markup("").join(_hit(index, *one) for one in enumerate(hits, 1)))
    )


def _hit(index: ImageIndex, place: int, hit: Hit) -> Markup:
    assert hit.number is not None
    scores = Markup("<span>cosine {:.3f}</span>").format(hit.itc)
    if hit.itm is not None:
        scores = Markup("<span>match {:.3g}</span> ").format(hit.itm) + scores
    text = hit.caption or index.key(hit.number)
    try:
        picture = Markup('<img src="{}" alt="">').format(data_uri(index.thumbnail(hit.number), "jpeg"))
    except UserError:  # an index of clip-retrieval keeps no thumbnails; a click says why there is none
        picture = Markup("")
    return Markup(
        '<li><button type="button" class="vlp-hit" data-number="{}" aria-pressed="false">'
        '{}<span class="vlp-scores"><b>{}</b> {}</span><span class="vlp-what">{}</span>'
        "</button></li>"
    ).format(hit.number, picture, place, scores, text)


def details_html(picture: str, rows: Sequence[tuple[str, str]], notes: Sequence[str]) -> str:
    """A picture (HTML) beside names and values; `notes` are HTML."""
    items = Markup("").join(Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(*row) for row in rows)
    return str(
        Markup('<div class="vlp-details"><div>{}</div><dl class="vlp-about">{}</dl></div>{}').format(
            Markup(picture), items, Markup("").join(map(Markup, notes))
        )
    )
