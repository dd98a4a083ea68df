"""Review of score tables: counts, orders, suggestions and exports equal plain ones, and bad input is one sentence."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from vlp.capfilt.review import Review
from vlp.capfilt.review_export import export_labels
from vlp.capfilt.review_tables import RowOrder
from vlp.capfilt.selection import select
from vlp.cli.main import app
from vlp.data.score_tables import Scored, write_table
from vlp.data.shard_index import expand_shards
from vlp.data.shards import iterate_samples
from vlp.errors import UserError
from vlp.evaluation.matching import _read_pairs

RULES = (
    "itm >= 0.5",
    "itm >= 0.3 and best(1)",
    "web(itm >= 0.5) or synthetic(top(itc, 0.3)) and best(1, itc)",
    "words >= 3 and key != '00000001' and nll <= 1 and best(2)",
)


@pytest.fixture
def folder(tmp_path, web_scenes):
    """Scored shards: per image a web text and two synthetic ones, with ties, missing scores and an empty text."""
    copied = shutil.copytree(web_scenes, tmp_path / "web")
    rng = np.random.default_rng(0)
    for number, shard in enumerate(expand_shards(str(copied / "*.tar"))):
        rows = []
        for place, sample in enumerate(iterate_samples([shard])):
            for source, caption, text in (
                ("web", 0, sample.text),
                ("synthetic", 0, "a made one"),
                ("synthetic", 1, " "),
            ):
                itm = None if place == 3 else float(rng.integers(0, 40) / 40)
                row = Scored(sample.key, source, text, itm, float(rng.random()), f"{number}-{place}", caption)
                row.nll = float(rng.random() * 2)
                rows.append(row)
        write_table(shard, rows, {})
    return copied


@pytest.fixture
def review(folder):
    opened = Review(str(folder))
    yield opened
    opened.close()


def all_rows(review):
    """Every row that is not empty, by its id."""
    images = {row >> 0 for row in review.tables.order(RowOrder("sample")).tolist()}
    return {one["id"]: one for row in images for one in review.tables.texts(row)}


@pytest.mark.parametrize("rule", RULES)
def test_counts_and_verdicts_are_those_of_select(review, folder, tmp_path, rule):
    counts = review.tables.counts(rule)
    expected = select(str(folder / "*.capfilt.parquet"), rule, table=str(tmp_path / "kept.parquet"), quiet=True)
    assert counts.images == expected.images and counts.all_images == 60
    assert {name: count for name, count in counts.texts.items() if count} == expected.kept_texts
    kept = {row for one in all_rows(review).values() for row in review.tables.kept(rule, one["image"])}
    rows = pq.read_table(tmp_path / "kept.parquet").to_pylist()
    named = {f"{row['shard'].rpartition('/')[2][:-4]}/{row['key']}/{row['source']}/{row['caption_id']}" for row in rows}
    assert {review.name(row) for number, row in all_rows(review).items() if number in kept} == named


def test_orders(review):
    rows = all_rows(review)
    scored = {number: row["itm"] for number, row in rows.items() if row["itm"] is not None}

    def scores(kind, **settings):
        return [scored[row] for row in review.tables.order(RowOrder(kind, **settings)).tolist()]

    assert len(rows) == 120 and len(scored) == 114
    assert scores("highest") == sorted(scored.values(), reverse=True)
    assert scores("lowest") == sorted(scored.values())
    above = sorted(value for value in scored.values() if value >= 0.5)
    below = sorted((value for value in scored.values() if value < 0.5), reverse=True)
    assert scores("above", threshold=0.5) == above and scores("below", threshold=0.5) == below
    assert scores("near", threshold=0.5)[:6] == [above[0], below[0], above[1], below[1], above[2], below[2]]
    web = review.tables.order(RowOrder("sample", source="web", seed=1)).tolist()
    assert {rows[row]["source"] for row in web} == {"web"} and len(web) == 60
    assert web != review.tables.order(RowOrder("sample", source="web", seed=2)).tolist()
    rank = {
        name: {row: np.mean([rows[other][name] < rows[row][name] for other in scored]) for row in scored}
        for name in ("itm", "nll")
    }
    (first, *_) = review.tables.order(RowOrder("disagreement", second="nll")).tolist()
    gap = {row: abs(rank["itm"][row] + rank["nll"][row]) for row in scored}  # a low nll is good: ranks run apart
    assert (
        abs(rank["itm"][first] - (1 - rank["nll"][first]))
        >= max(abs(rank["itm"][row] - (1 - rank["nll"][row])) for row in scored) - 0.03
        and gap
    )


def test_labels_give_a_threshold_a_rule_and_an_export(review, tmp_path, capsys):
    order = RowOrder("sample")
    rows = all_rows(review)
    with pytest.raises(UserError, match=r"^0 of 0 labels count for itm; label 30 more rows of the order sample"):
        review.suggest("itm", 0.9)
    shown = [row for row in review.tables.order(order).tolist() if rows[row]["itm"] is not None][:80]
    for row in shown:
        review.label(rows[row], "accept" if rows[row]["itm"] >= 0.6 else "reject", order.name(), "one")
    chosen = next(number for number, row in rows.items() if number not in shown and row["itm"] is not None)
    review.label(rows[chosen], "accept", "disagreement itm itc", "one")
    suggestion, estimates = review.suggest("itm", 0.99)
    assert suggestion.estimate.precision.value == 1 and suggestion.estimate.recall.value == 1
    rule = review.rule("itm", estimates, suggestion.estimate)
    kept = {row for row in shown if row in review.tables.kept(rule, rows[row]["image"])}
    assert kept == {row for row in shown if rows[row]["itm"] >= 0.6}
    assert (
        suggestion.estimate.texts
        == review.tables.counts(rule).texts["web"] + review.tables.counts(rule).texts["synthetic"]
    )
    assert any("1 labels of rows that came up otherwise" in note for note in suggestion.notes)
    counts = export_labels(review, str(tmp_path / "out"), quiet=True)
    accepted = [row for row in shown if rows[row]["itm"] >= 0.6] + [chosen]
    assert (counts.accepted, counts.rejected) == (len(accepted), 81 - len(accepted))
    samples = list(iterate_samples(str(tmp_path / "out" / "*.tar")))
    assert sorted(text for one in samples for text in one.captions) == sorted(rows[row]["text"] for row in accepted)
    wrong = [rows[row]["text"] for row in shown if rows[row]["itm"] < 0.6]
    assert sorted(text for one in samples for text in one.info["wrong_texts"]) == sorted(wrong)
    texts, labels = _read_pairs(tmp_path / "out" / "pairs.tsv")
    assert sum(map(sum, labels.values())) == len(accepted) and sum(map(len, labels.values())) == 81
    assert all((tmp_path / "out" / "images" / name).is_file() for name in texts)


def test_two_reviewers_who_disagree_are_counted_and_left_out_of_the_export(review, tmp_path):
    rows = all_rows(review)
    for row in rows.values():
        if row["itm"] is not None:
            review.label(row, "accept", "sample", "one")
    first = next(row for row in rows.values() if row["itm"] is not None)
    review.label(first, "reject", "sample", "two")
    suggestion, _ = review.suggest("itm", 0.5)
    assert "Reviewers disagree on 1 texts; each counts as partly acceptable." in suggestion.notes
    assert export_labels(review, str(tmp_path / "out"), quiet=True).disputed == 1
    for row in rows.values():
        review.label(row, "accept", "sample", "one")
        review.label(row, "reject", "sample", "two")
    with pytest.raises(UserError, match=r"^Reviewers disagree on every labeled text; take the wrong verdicts back"):
        export_labels(review, str(tmp_path / "other"), quiet=True)


def test_an_export_without_a_readable_image_writes_nothing(review, tmp_path):
    review.label(next(iter(all_rows(review).values())), "accept", "sample", "one")
    for table in review.tables.tables:
        Path(table.shard).unlink()
    with pytest.raises(UserError, match=r"^No image of the labeled texts can be read: The shard .* is missing, .*\.$"):
        export_labels(review, str(tmp_path / "out"), quiet=True)
    assert not (tmp_path / "out").exists()


def test_the_command_lists_labels_counts_and_exports(folder, tmp_path):
    def call(*arguments):
        done = CliRunner().invoke(app, ["capfilt", "review", str(folder), *arguments])
        assert done.exit_code == 0, done.exception
        return done.stdout

    listed = json.loads(call("--rows", "3", "--order", "near", "--json"))["rows"]
    assert len(listed) == 3 and listed[0]["kept"] and not listed[1]["kept"]
    call("--order", "near", "--accept", listed[0]["name"], "--reject", listed[1]["name"])
    values = json.loads(call("--order", "near", "--rows", "2", "--export", str(tmp_path / "out"), "--json"))
    assert values["labels"] == {"accept": 1, "reject": 1} and values["exported"]["images"] >= 1
    assert [row["verdict"] for row in values["rows"]] == ["accept", "reject"]
    stored = pq.read_table(folder / "review.labels.parquet").to_pylist()
    assert {row["shown"] for row in stored} == {"near itm"} and all(row["reviewer"] for row in stored)
    for wrong in (["--score", "beauty"], ["--source", "radio"], ["--precision", "2"]):
        done = CliRunner().invoke(app, ["capfilt", "review", str(folder), *wrong])
        assert isinstance(done.exception, UserError) and not done.stdout
    assert "1 accept" in call("--clear", listed[1]["name"]) and "reject" not in call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda review: review.tables.counts("itm >="), "^The rules 'itm >=' are not a valid expression: "),
        (lambda review: review.tables.counts("beauty >= 1"), "^There is no column beauty in rules; known: "),
        (lambda review: review.tables.counts("not duplicate"), "has no table of duplicates; run `vlp capfilt duplic"),
        (lambda review: review.tables.order(RowOrder("best")), "^There is no order 'best'; choose one of: sample, "),
        (lambda review: review.tables.order(RowOrder("sample", source="radio")), "^No text has the source 'radio'; "),
        (lambda review: review.suggest("clip", 0.9), "^No text has the score clip; known: itm, itc, nll"),
        (lambda review: review.suggest("itm", 1.5), "^The wanted precision 1.5 is not above 0"),
        (lambda review: review.label_named("00000/none/web/0", "accept", RowOrder()), "^No row has the name 00000/no"),
        (lambda review: review.tables.texts(-1), "^There is no row -1"),
        (lambda review: export_labels(review, "never"), "^No text of these tables is labeled"),
    ],
)
def test_bad_input_is_one_sentence(review, call, message):
    with pytest.raises(UserError, match=message):
        call(review)


def test_a_shard_that_is_missing_or_changed_is_one_sentence(review, folder):
    row = int(review.tables.order(RowOrder("sample"))[0])
    table, key = review.tables.table_of(row), review.tables.texts(row)[0]["key"]
    assert review.images.jpeg(table, key).startswith(b"\xff\xd8")
    shutil.copy(next(one for one in sorted(folder.glob("*.tar")) if str(one) != table.shard), table.shard)
    with pytest.raises(UserError, match="was changed after it was scored; score it again"):
        review.images.jpeg(table, key)
    (folder / table.shard).unlink()
    with pytest.raises(UserError, match="is missing, so its images cannot be shown"):
        review.images.jpeg(table, key)
