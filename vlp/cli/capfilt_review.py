"""`vlp capfilt review`: what the page's tab Review CapFilt does, as a command."""

import getpass
from typing import Annotated, Any, Literal

import typer

from vlp.cli.options import Json, print_values

Tables = Annotated[list[str], typer.Argument(help="Score tables: paths, URLs, globs, or a folder of them.")]
Labels = Annotated[str, typer.Option(help="Folder of the labels; default: the folder of the tables.")]
Order = Literal["sample", "near", "above", "below", "highest", "lowest", "disagreement"]


def capfilt_review(
    tables: Tables,
    rule: Annotated[str, typer.Option(help="Rule whose texts are counted; see docs/capfilt.md.")] = "itm >= 0.5",
    score: Annotated[str, typer.Option(help="Score of the threshold, and to sort by.")] = "itm",
    precision: Annotated[float, typer.Option(help="Wanted share of acceptable texts among the kept ones.")] = 0.9,
    source: Annotated[str, typer.Option(help="Only texts of this source: web, human or synthetic.")] = "",
    order: Annotated[Order, typer.Option(help="Order of the listed rows.")] = "sample",
    threshold: Annotated[float, typer.Option(help="Of the score, for the orders near, above and below.")] = 0.5,
    second: Annotated[str, typer.Option(help="Second score of the order disagreement.")] = "",
    rows: Annotated[int, typer.Option(min=0, max=1000, help="Rows to list.")] = 0,
    accept: Annotated[list[str] | None, typer.Option(help="Accept a listed row, by its name; repeatable.")] = None,
    reject: Annotated[list[str] | None, typer.Option(help="Reject a listed row; repeatable.")] = None,
    clear: Annotated[list[str] | None, typer.Option(help="Take a verdict back; repeatable.")] = None,
    export: Annotated[str, typer.Option(help="New folder for the labeled pairs, to finetune the filter.")] = "",
    labels: Labels = "",
    also: Annotated[list[str] | None, typer.Option(help="NAME=GLOB: other tables for the rule.")] = None,
    as_json: Json = False,
) -> None:
    """Count a rule, label rows, suggest a threshold. Example: vlp capfilt review web --rule 'itm >= 0.4' --rows 5

    At least 30 labels give a threshold, with 95% intervals. Rows count that came up in the order sample, or in one by
    the score; give --order with --accept and --reject. The labels are kept in review.labels.parquet and
    review.*.jsonl beside the tables.
    """
    from vlp.capfilt.review import Review
    from vlp.capfilt.review_export import export_labels
    from vlp.capfilt.review_tables import RowOrder
    from vlp.capfilt.selection import parse_also

    review = Review(tables, labels, parse_also(also or []))
    try:
        shown = RowOrder(order, score, threshold, source, second)
        for verdict, names in (("accept", accept), ("reject", reject), ("", clear)):
            for name in names or []:
                review.label_named(name, verdict, shown, getpass.getuser())
        values: dict[str, Any] = review.summary(rule, score, precision, source)
        if export:
            values["exported"] = vars(export_labels(review, export, quiet=as_json))
        if rows:
            values["rows"] = review.listed(shown, rows, rule)
    finally:
        review.close()
    if as_json:
        print_values(values, True)
    else:
        print_values(_lines(values), False)


def _lines(values: dict[str, Any]) -> dict[str, str]:
    """The summary for people."""
    kept = [f"{values['images']:,} of {values['all_images']:,} images"]
    kept += [f"{count:,} of {values['all_texts'][name]:,} {name} texts" for name, count in values["texts"].items()]
    lines = {"rule": values["rule"], "kept": ", ".join(kept)}
    given = ", ".join(f"{count} {verdict}" for verdict, count in values["labels"].items()) or "none"
    lines["labels"] = f"{given}, in {values['labels_in']}"
    for name in ("suggestion", "sure"):
        if found := values.get(name):
            shares = (
                f"{one} {found[one]['value']:.3f} [{found[one]['low']:.3f}, {found[one]['high']:.3f}]"
                for one in ("precision", "recall")
            )
            lines[name] = f"{found['rule']}  ({', '.join(shares)}; {found['texts']:,} texts)"
    lines |= {f"note {number}": note for number, note in enumerate(values["notes"], start=1)}
    if "exported" in values:
        lines["exported"] = ", ".join(f"{name} {count}" for name, count in values["exported"].items() if count)
    for row in values.get("rows", []):
        lines[row["name"]] = f"{'kept' if row['kept'] else 'dropped'} {row['score']} {row['verdict']} {row['text']}"
    return lines
