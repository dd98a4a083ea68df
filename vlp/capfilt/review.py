"""Review of score tables: labels for their texts, and the threshold that the labels suggest."""

import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vlp.capfilt.review_estimates import (
    LEAST_LABELS,
    Stratum,
    Suggestion,
    ThresholdEstimate,
    counts_for,
    estimate_thresholds,
    short_number,
    suggest_threshold,
)
from vlp.capfilt.review_images import ReviewImages
from vlp.capfilt.review_labels import LABELS, LabelStore
from vlp.capfilt.review_tables import LOWER_IS_BETTER, ReviewTables, RowOrder
from vlp.data.find_tables import table_patterns
from vlp.data.text_choice import SOURCES
from vlp.errors import UserError
from vlp.remote import is_remote


class Review:
    """Score tables, the labels beside them and the images of their shards."""

    def __init__(
        self, scores: str | list[str], labels: str = "", also: Mapping[str, str | list[str]] | None = None
    ) -> None:
        """Open the tables.

        Args:
            scores: score tables, as paths, URLs, globs and folders, see `find_tables`.
            labels: the folder of the labels; empty: the folder of the first table.
            also: other tables, by the name under which rules use their columns.

        Raises:
            UserError: no table matches, or remote tables are given without `labels`.
            WorkError: a table is damaged, or a remote one cannot be copied.
        """
        self.patterns = table_patterns(scores)
        self.also = {name: [one] if isinstance(one, str) else list(one) for name, one in (also or {}).items()}
        self.tables = ReviewTables(self.patterns, self.also)
        self.images = ReviewImages()
        first = self.tables.tables[0].path
        if not labels and is_remote(first):
            self.tables.close()
            raise UserError(f"{first} is remote; name a local folder for the labels with --labels.")
        self.chosen_folder, self.folder = labels, labels or os.path.dirname(first) or "."
        self.labels = LabelStore(self.folder)

    def close(self) -> None:
        """Move this process's labels into the parquet file and free everything."""
        self.labels.close()
        self.images.close()
        self.tables.close()

    def label(self, row: dict[str, Any], verdict: str, shown: str, reviewer: str = "") -> int:
        """Keep a verdict.

        Args:
            row: one of what `ReviewTables.texts` returns.
            verdict: accept, reject, or empty to take an earlier one back.
            shown: how the row came up: `RowOrder.name()`, or "chosen".

        Returns:
            The time of the label, in nanoseconds since 1970.

        Raises:
            UserError, WorkError: it cannot be written, see `LabelStore.add`.
        """
        shard = Path(self.tables.table_of(row["id"]).shard).name
        values = {name: row.get(name) for name in ("key", "uid", "source", "caption_id", "text")}
        return self.labels.add({**values, "shard": shard, "verdict": verdict, "shown": shown, "reviewer": reviewer})

    def label_named(self, name: str, verdict: str, order: RowOrder, reviewer: str = "") -> None:
        """Keep a verdict on the row with a name, see `name`; it is "chosen" if the order does not list it.

        Raises:
            UserError: there is no such row; and what `label` raises.
        """
        shard, _, rest = name.partition("/")
        key, source, caption = ["", "", "", *rest.rsplit("/", 2)][-3:]
        row = self.tables.row_of(f"{shard}.tar", key, source, int(caption) if caption.isdecimal() else -1)
        if row is None:
            raise UserError(f"No row has the name {name}; --rows lists names such as 00000/000000001/web/0.")
        shown = order.name() if row in self.tables.order(order) else "chosen"
        self.label(self.tables.text(row), verdict, shown, reviewer)

    def name(self, row: dict[str, Any]) -> str:
        """The name of a row: SHARD/KEY/SOURCE/CAPTION_ID."""
        shard = Path(self.tables.table_of(row["id"]).shard).name.removesuffix(".tar")
        return f"{shard}/{row['key']}/{row['source']}/{row['caption_id']}"

    def listed(self, order: RowOrder, count: int, rule: str) -> list[dict[str, Any]]:
        """The first rows of an order, with their name, text, score, whether a rule keeps them, and verdict."""
        verdicts, found = self.verdicts(), []
        for number in self.tables.order(order)[:count].tolist():
            row = self.tables.text(number)
            kept = number in self.tables.kept(rule, row["image"])
            verdict = "/".join(dict.fromkeys(verdicts.get(number, [])))
            values = {"score": row.get(order.score), "kept": kept, "verdict": verdict, "text": row["text"]}
            found.append({"name": self.name(row), **values})
        return found

    def verdicts(self) -> dict[int, list[str]]:
        """The verdicts on each row that has any, by its id."""
        found: dict[int, list[str]] = defaultdict(list)
        for row, label in self.rows_of(self.labels.read().to_pylist()):
            found[row].append(label["verdict"])
        return dict(found)

    def rows_of(self, labels: list[dict[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
        """The id of each row that a label is about, with the label; a text that tables repeat has several rows."""
        if not labels:
            return []
        matched = self.tables.find(pa.Table.from_pylist(labels, LABELS), self._any_score())
        return [(row, labels[one]) for one, row in zip(*(matched[c].to_pylist() for c in ("place", "id")), strict=True)]

    def suggest(self, score: str, precision: float, source: str = "") -> tuple[Suggestion, list[ThresholdEstimate]]:
        """A threshold of a score for a wanted precision, and the estimates at every threshold.

        Args:
            source: estimate for the texts of this source only; empty: for all texts.

        Raises:
            UserError: there is no such score or source, the precision is not between 0 and 1, or fewer than
                `LEAST_LABELS` labels count.
        """
        self._check(score, precision, source)
        labels, notes, total = self._labels_for(score, source)
        count = sum(len(given) for given in labels.values())
        if count < LEAST_LABELS:
            raise UserError(
                f"{count} of {total} labels count for {score}; label {LEAST_LABELS - count} more rows "
                f"of the order sample, or of one by {score}."
            )
        strata = []
        for one in self.tables.totals:
            if source in ("", one):
                given = labels.get(one, [])
                values = np.array(given, np.float64).reshape(-1, 2)
                strata.append(Stratum(self.tables.population(score, one), values[:, 0], values[:, 1]))
                if not given:
                    notes.append(f"No {one} text is labeled, so the numbers leave the {one} texts out.")
        lower = score in LOWER_IS_BETTER
        estimates = estimate_thresholds(strata, lower)
        suggestion = suggest_threshold(estimates, precision)
        suggestion.notes += notes
        if suggestion.estimate and suggestion.estimate.unseen > 0.1:
            suggestion.notes.append(
                f"{suggestion.estimate.unseen:.0%} of the kept texts score beyond every labeled text; "
                "label some rows of the order sample."
            )
        return suggestion, estimates

    def rule(self, score: str, estimates: list[ThresholdEstimate], chosen: ThresholdEstimate, source: str = "") -> str:
        """A rule that keeps the texts from an estimate's threshold on, to copy into `vlp capfilt select`."""
        lower = score in LOWER_IS_BETTER
        place = next(number for number, one in enumerate(estimates) if one.threshold == chosen.threshold)
        outside = float("inf") if lower else float("-inf")
        looser = estimates[place - 1].threshold if place else outside
        rule = f"{score} {'<=' if lower else '>='} {short_number(chosen.threshold, looser, lower)}"
        return f"{source}({rule})" if source in SOURCES else rule

    def summary(self, rule: str, score: str, precision: float, source: str = "") -> dict[str, Any]:
        """Counts of a rule and of labels, the suggestion, and the estimates at every threshold, as JSON takes them.

        Raises:
            UserError: as in `suggest`, but for too few labels, which a note tells; or the rule has an error.
        """
        self._check(score, precision, source)
        labels = self.labels.read()
        values: dict[str, Any] = {
            "rule": rule,
            **asdict(self.tables.counts(rule)),
            "labels": dict(Counter(labels["verdict"].to_pylist())),
            "labels_in": str(self.folder),
        }
        try:
            suggestion, estimates = self.suggest(score, precision, source)
        except UserError as error:
            return {**values, "suggestion": None, "notes": [str(error)], "thresholds": []}
        values["suggestion"] = None
        if suggestion.estimate:
            rules = self.rule(score, estimates, suggestion.estimate, source)
            values["suggestion"] = {"rule": rules, **asdict(suggestion.estimate)}
        if suggestion.sure:
            rules = self.rule(score, estimates, suggestion.sure, source)
            values["sure"] = {"rule": rules, **asdict(suggestion.sure)}
        thresholds = [asdict(one) for one in estimates]
        return {**values, "notes": suggestion.notes, "thresholds": thresholds}

    def _check(self, score: str, precision: float, source: str) -> None:
        if not 0 < precision <= 1:
            raise UserError(f"The wanted precision {precision:g} is not above 0 and at most 1.")
        if score not in self.tables.scores():
            raise UserError(f"No text has the score {score}; known: {', '.join(self.tables.scores())}.")
        if source and source not in self.tables.totals:
            raise UserError(f"No text has the source {source!r}; these tables have: {', '.join(self.tables.totals)}.")

    def _labels_for(self, score: str, source: str) -> tuple[dict[str, list[tuple[float, float]]], list[str], int]:
        """The labels that count: score and mean verdict by source; notes about the others; and the number of all."""
        labels = self.labels.read()
        verdicts, shown = labels["verdict"].to_pylist(), labels["shown"].to_pylist()
        matched = self.tables.find(labels, score).to_pylist()
        rows: dict[tuple[str, int, float], list[float]] = defaultdict(list)
        left_out = 0
        for one in matched:
            if one["score"] is None or source not in ("", one["source"]):
                continue
            if not counts_for(shown[one["place"]] or "", score):
                left_out += 1
                continue
            rows[one["source"], one["id"], one["score"]].append(float(verdicts[one["place"]] == "accept"))
        found: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for (its_source, _, value), given in rows.items():
            found[its_source].append((value, sum(given) / len(given)))
        notes = []
        if left_out:
            notes.append(f"{left_out} labels of rows that came up otherwise than at random or by {score} do not count.")
        unknown = len(labels) - len({one["place"] for one in matched})
        if unknown:
            notes.append(f"{unknown} labels belong to no text of these tables.")
        disputed = sum(0 < sum(given) < len(given) for given in rows.values())
        if disputed:
            notes.append(f"Reviewers disagree on {disputed} texts; each counts as partly acceptable.")
        return dict(found), notes, len(labels)

    def _any_score(self) -> str:
        return next(iter(self.tables.scores()), "itm")
