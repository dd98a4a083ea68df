"""What the tab Review CapFilt does, from plain values to plain values; every error is a sentence in its place."""

import getpass
import itertools
import re
import shlex
from functools import lru_cache
from pathlib import Path

import numpy as np

from vlp.app.pieces import command_html, note, wide
from vlp.app.review_curves import threshold_svg
from vlp.app.review_marks import Marks
from vlp.app.review_view import card_html, counts_html, suggestion_html
from vlp.capfilt.review import Review
from vlp.capfilt.review_export import export_labels
from vlp.capfilt.review_tables import LOWER_IS_BETTER, RowOrder
from vlp.errors import UserError, WorkError

ORDERS = {
    "Random sample": "sample",
    "Nearest to the threshold": "near",
    "Just above the threshold": "above",
    "Just below the threshold": "below",
    "Highest score": "highest",
    "Lowest score": "lowest",
    "Two scores disagree": "disagreement",
}
THRESHOLDED = ("near", "above", "below")  # orders that depend on the threshold
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


class ReviewActions:
    """The actions of all sessions on one review."""

    def __init__(self, review: Review):
        self.review = review
        self.marks = Marks(review)
        self.cards = itertools.count()
        self.order = lru_cache(64)(review.tables.order)
        self.counted = lru_cache(64)(review.tables.counts)

    def counts(self, rule: str) -> tuple[str, str]:
        """HTML of what a rule keeps, and of the command that selects it."""
        scores = " ".join(f"--scores {shlex.quote(one)}" for one in self.review.patterns)
        command = f"vlp capfilt select {shlex.quote(rule)} {scores}{self._also()} --out cleaned"
        try:
            return counts_html(self.counted(rule)), command_html(command, "Select these texts")
        except (UserError, WorkError) as error:
            return note(str(error), "error"), ""

    def row_order(self, kind: str, score: str, second: str, source: str, rule: str) -> RowOrder:
        """The order that the controls choose; its threshold is the rule's number for the score, else 0.5."""
        value = threshold_in(rule, score)
        return RowOrder(ORDERS.get(kind, kind), score, 0.5 if value is None else value, _source(source), second)

    def start(self, order: RowOrder, rule: str) -> tuple[str, str, str]:
        """The first row of an order without a label; what `show` returns."""
        self.marks.refresh()
        try:
            rows = self.order(order)
        except (UserError, WorkError) as error:
            return note(str(error), "error"), "", self._shown(0)
        return self.show(order, rule, _next_unlabeled(rows, -1, self.marks))

    def show(self, order: RowOrder, rule: str, place: int, row: int = -1) -> tuple[str, str, str]:
        """The card of a place in an order, a line about the progress, and the place to send back.

        Args:
            row: the text to label, of the same image; -1: the one at the place.
        """
        try:
            rows = self.order(order)
            if not len(rows):
                return note("No text has this score and source."), "", self._shown(0)
            if place >= len(rows):
                return (
                    note("You have seen every row of this order; choose another one."),
                    self._progress(rows, place),
                    "",
                )
            place = max(place, 0)
            current = int(rows[place]) if row < 0 else row
            texts = self.review.tables.texts(current)
            kept = self._kept(rule, texts[0]["image"])
            picture = self._picture(current, texts[0]["key"])
            marks = {one["id"]: self.marks.of(one["id"]) for one in texts}
            card = card_html(texts, current, picture, kept, marks, rule)
            return card, self._progress(rows, place), self._shown(place, current)
        except (UserError, WorkError) as error:
            return note(str(error), "error"), "", self._shown(place)

    def follow(self, shown: str, order: RowOrder, rule: str) -> tuple[str, str, str, str] | None:
        """The card after a change of the rule, and the command that lists its rows; None for a rule with an error.

        An order by the threshold starts again if another one changed it.
        """
        place, row = _parse_shown(shown)
        if not self._is_valid(rule):
            return None
        try:
            image_of, rows = self.review.tables.image_of, self.order(order)
            there = row >= 0 and (
                order.kind not in THRESHOLDED or (place < len(rows) and image_of(int(rows[place])) == image_of(row))
            )
        except (UserError, WorkError):
            return None
        view = self.show(order, rule, place, row) if there else self.start(order, rule)
        return *view, self.list_command(order, rule)

    def label(
        self, verdict: str, shown: str, order: RowOrder, rule: str, reviewer: str | None
    ) -> tuple[str, str, str, str]:
        """Keep a verdict on the row that the browser shows, and go on; also returns a note for an error."""
        place, row = _parse_shown(shown)
        self.marks.refresh()
        if row < 0:
            return ("", *self.show(order, rule, place))
        reviewer = reviewer or getpass.getuser()
        try:
            rows = self.order(order)
            by = order.name() if 0 <= place < len(rows) and int(rows[place]) == row else "chosen"
            time = self.review.label(self.review.tables.text(row), verdict, by, reviewer)
        except (UserError, WorkError) as error:
            return (note(str(error), "error"), *self.show(order, rule, place, row))
        self.marks.add(row, reviewer, verdict, time)
        if not verdict:
            return ("", *self.show(order, rule, place, row))
        return ("", *self.show(order, rule, _next_unlabeled(rows, place, self.marks)))

    def move(self, shown: str, step: int, order: RowOrder, rule: str) -> tuple[str, str, str]:
        """The next or previous row."""
        place, _ = _parse_shown(shown)
        self.marks.refresh()
        return self.show(order, rule, max(0, place + step))

    def choose(self, shown: str, step: int, order: RowOrder, rule: str) -> tuple[str, str, str]:
        """The next or previous text of the same image."""
        place, row = _parse_shown(shown)
        if row < 0:
            return self.show(order, rule, place)
        try:
            ids = [one["id"] for one in self.review.tables.texts(row)]
        except (UserError, WorkError) as error:
            return note(str(error), "error"), "", self._shown(place, row)
        return self.show(order, rule, place, ids[(ids.index(row) + step) % len(ids)])

    def suggest(self, score: str, precision: float, source: str) -> tuple[str, str, str]:
        """HTML of the suggestion, its rule (empty if there is none), and HTML of the command."""
        source = _source(source)
        command = self._command(f"--score {score} --precision {precision:g}", source)
        shown = command_html(command, "Suggest a threshold")
        try:
            suggestion, estimates = self.review.suggest(score, precision, source)
        except (UserError, WorkError) as error:
            return note(str(error), "error"), "", shown
        rules = [
            self.review.rule(score, estimates, one, source) if one else ""
            for one in (suggestion.estimate, suggestion.sure)
        ]
        page = suggestion_html(suggestion, *rules) + wide(
            threshold_svg(estimates, score, precision), "Curves of the threshold"
        )
        return page, rules[0], shown

    def export(self, name: str) -> tuple[str, str]:
        """Write the labeled pairs into a new folder inside the folder of the labels; a note, and the command."""
        name = name.strip()
        target = Path(self.review.folder) / name
        command = command_html(self._command(f"--export {shlex.quote(str(target))}"), "Export the labels")
        if not re.fullmatch(r"[\w-][\w.-]{0,99}", name):
            return note("The name of the export must be letters, digits, dots, - and _, such as reviewed.", "error"), ""
        try:
            counts = export_labels(self.review, str(target), quiet=True)
        except (UserError, WorkError) as error:
            return note(str(error), "error"), command
        said = f"{counts.accepted} accepted and {counts.rejected} rejected texts are in {target}."
        if counts.skipped:
            said += f" {sum(counts.skipped.values())} images are left out: {next(iter(counts.skipped))}"
        if counts.disputed:
            said += f" {counts.disputed} texts on which reviewers disagree are left out."
        train = "vlp finetune configs/retrieval.yaml start_from=FILTER objective.wrong_texts=4 "
        train += f"'data.sources=[{{shards: \"{target}/*.tar\"}}]'"
        return note(said), command + command_html(train, "Finetune the filter on the labels")

    def list_command(self, order: RowOrder, rule: str) -> str:
        """HTML of the command that lists and labels the rows of an order."""
        given = f"--order {order.kind} --score {order.score} --rows 20"
        given += f" --threshold {order.threshold:g}" if order.kind in THRESHOLDED else ""
        given += f" --second {order.second}" if order.kind == "disagreement" else ""
        given += f" --rule {shlex.quote(rule)}" if self._is_valid(rule) else ""
        return command_html(self._command(given, order.source), "List these rows; add --accept NAME or --reject NAME")

    def _shown(self, place: int, row: int = -1) -> str:
        """What the browser sends back: the place, the row, and a number that tells it that the card is a new one."""
        return f"{place}:{row}:{next(self.cards)}"

    def _command(self, given: str, source: str = "") -> str:
        tables = " ".join(map(shlex.quote, self.review.patterns))
        chosen = self.review.chosen_folder
        labels = f" --labels {shlex.quote(chosen)}" if chosen else ""
        chosen_source = f" --source {shlex.quote(source)}" if source else ""
        return f"vlp capfilt review {tables} {given}{chosen_source}{labels}{self._also()}"

    def _also(self) -> str:
        """The options that name the other tables."""
        listed = [f"{name}={one}" for name, given in self.review.also.items() for one in given]
        return "".join(f" --also {shlex.quote(one)}" for one in listed)

    def _is_valid(self, rule: str) -> bool:
        try:
            self.counted(rule)
            return True
        except (UserError, WorkError):
            return False

    def _kept(self, rule: str, image: int) -> set[int] | None:
        """The rows of an image that a rule keeps; None for a rule with an error, which the counts name."""
        try:
            return self.review.tables.kept(rule, image)
        except UserError:
            return None

    def _picture(self, row: int, key: str) -> bytes | str:
        try:
            return self.review.images.jpeg(self.review.tables.table_of(row), key)
        except (UserError, WorkError) as error:
            return str(error)

    def _progress(self, rows: np.ndarray, place: int) -> str:
        labeled, accepted, rejected = self.marks.counts()
        where = f"row {min(place + 1, len(rows)):,} of {len(rows):,}"
        return note(f"{where} · {labeled:,} labels: {accepted:,} accepted, {rejected:,} rejected")


def threshold_in(rule: str, score: str) -> float | None:
    """The number that a rule compares a score with first; None if there is none."""
    found = re.search(rf"(?<![\w.]){re.escape(score)}\s*(?:<=|>=|<|>)\s*({NUMBER})", rule)
    return float(found[1]) if found else None


def with_threshold(rule: str, score: str, value: float) -> str:
    """A rule whose first comparison of a score has another number; it is added where there is none."""
    pattern = rf"((?<![\w.]){re.escape(score)}\s*(?:<=|>=|<|>)\s*){NUMBER}"
    if re.search(pattern, rule):
        return re.sub(pattern, lambda found: f"{found[1]}{value:g}", rule, count=1)
    added = f"{score} {'<=' if score in LOWER_IS_BETTER else '>='} {value:g}"
    if not rule.strip():
        return added
    return f"{added} and ({rule})" if re.search(r"\bor\b", rule) else f"{added} and {rule}"


def _source(source: str) -> str:
    return "" if source == "all" else source


def _next_unlabeled(rows: np.ndarray, place: int, marks: Marks) -> int:
    """The first place after another whose row has no label; the end if there is none."""
    return next((number for number in range(place + 1, len(rows)) if int(rows[number]) not in marks), len(rows))


def _parse_shown(shown: str) -> tuple[int, int]:
    """The place and the row that the browser sends back."""
    place, row, *_ = [*(shown or "").split(":"), "", ""]
    number = int(place) if place.isdecimal() and len(place) < 10 else 0
    return number, int(row) if row.isdecimal() and len(row) < 19 else -1
