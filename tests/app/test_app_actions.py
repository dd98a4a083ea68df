"""The page's parts without a browser: rules and sliders, runs, the demo's folder, what the server refuses."""

import html
import json
import re
import shlex
import shutil
from contextlib import closing

import pytest
from typer.testing import CliRunner

from vlp.app.inputs import AppInputs, demo_inputs, find_runs
from vlp.app.review_actions import ReviewActions, threshold_in, with_threshold
from vlp.app.runs_tab import draw_runs
from vlp.app.server import serve
from vlp.capfilt.review import Review
from vlp.capfilt.review_tables import RowOrder
from vlp.cli.main import app
from vlp.data.score_tables import Scored, write_table
from vlp.data.shard_index import expand_shards
from vlp.errors import UserError
from vlp.report.runs import read_runs, series_svg


@pytest.mark.parametrize(
    ("rule", "score", "value", "expected"),
    [
        ("itm >= 0.5", "itm", 0.7, "itm >= 0.7"),
        ("itm>=.5 and itm <= 1", "itm", 0.25, "itm>=0.25 and itm <= 1"),
        ("other.itm >= 0.5", "itm", 0.25, "itm >= 0.25 and other.itm >= 0.5"),
        ("web(itm >= 0.5) or best(1)", "nll", 1.2, "nll <= 1.2 and (web(itm >= 0.5) or best(1))"),
        ("top(itm, 0.3)", "itm", 0.5, "itm >= 0.5 and top(itm, 0.3)"),
        ("", "clip", 0.3, "clip >= 0.3"),
    ],
)
def test_a_slider_changes_the_number_of_its_score_only(rule, score, value, expected):
    changed = with_threshold(rule, score, value)
    assert changed == expected and threshold_in(changed, score) == value


@pytest.fixture
def runs(tmp_path):
    for name in ("a/one", "b/one", "c"):
        (tmp_path / name).mkdir(parents=True)
        lines = [json.dumps({"step": step, "loss": 4.0 / step, "note": "x"}) for step in range(1, 5)]
        (tmp_path / name / "log.jsonl").write_text("\n".join(lines) + '\n{"step": 5, "lo')
    return tmp_path


def test_reviewers_see_each_other_on_the_next_move(tmp_path, web_scenes):
    shutil.copytree(web_scenes, tmp_path / "web")
    (shard, *_) = expand_shards(str(tmp_path / "web" / "*.tar"))
    write_table(shard, [Scored(f"{key}", "web", f"text {key}", 0.5, 0.5, f"u{key}") for key in range(6)], {})
    with closing(Review(str(tmp_path / "web"))) as mine, closing(Review(str(tmp_path / "web"))) as other:
        order, pages = RowOrder(), [ReviewActions(mine), ReviewActions(other)]

        def label(page, verdict, at, reviewer):
            return pages[page].label(verdict, at, order, "itm >= 0", reviewer)[-1]

        at = [page.start(order, "itm >= 0")[-1] for page in pages]
        first = at[0]
        at = [label(0, "accept", at[0], "ann"), label(1, "reject", at[1], "bob")]  # both saw the first row
        assert [one.split(":")[0] for one in at] == ["1", "1"]
        at[1] = label(1, "accept", at[1], "bob")
        card, progress, _ = pages[0].move(first, 0, order, "itm >= 0")
        assert "label: accepted by ann, rejected by bob" in card
        assert "2 labels: 2 accepted, 1 rejected" in progress
        assert label(0, "accept", first, "ann").split(":")[0] == "2"  # bob labeled the second row
        label(1, "", first, "bob")  # takes back only his own
        assert "label: accepted<" in pages[0].move(first, 0, order, "itm >= 0")[0]
        assert "--labels" not in pages[0].list_command(order, "itm >= 0")
        assert "label: accepted<" in pages[1].move(first, 0, order, "itm >= 0")[0]
    with closing(Review(str(tmp_path / "web"), str(tmp_path / "my labels"))) as elsewhere:
        assert "--labels &#39;" in ReviewActions(elsewhere).list_command(order, "itm >= 0")


def test_the_card_and_the_command_follow_the_rule(tmp_path, web_scenes):
    shutil.copytree(web_scenes, tmp_path / "web")
    (shard, *_) = expand_shards(str(tmp_path / "web" / "*.tar"))
    write_table(shard, [Scored(f"{key}", "web", f"text {key}", key / 10, 0.5, f"u{key}") for key in range(10)], {})
    with closing(Review(str(tmp_path / "web"))) as review:
        actions, sample = ReviewActions(review), RowOrder()

        def near(threshold):
            return RowOrder("near", "itm", threshold)

        card, _, at = actions.start(sample, "itm >= 0.95")
        assert "rule: dropped" in card
        card, _, moved, command = actions.follow(at, sample, "itm >= 0")
        assert "rule: kept" in card and moved.split(":")[:2] == at.split(":")[:2]
        assert "--rule &#39;itm &gt;= 0&#39;" in command
        assert actions.follow(at, sample, "itm >=") is None  # the counts name the error, and the card stays
        card = actions.show(sample, "itm >=", 0)[0]
        assert "rule:" not in card.replace("the rule is", "") and "--rule" not in actions.list_command(sample, "itm >=")
        at = actions.start(near(0.35), "itm >= 0.35")[-1]
        at = actions.label("accept", at, near(0.35), "itm >= 0.35", "ann")[-1]
        card, _, at, command = actions.follow(at, near(0.85), "itm >= 0.85")  # the nearest to the new threshold
        assert "text 9" in card and at.startswith("0:") and "--threshold 0.85" in command


def test_runs_are_found_named_apart_and_drawn(runs, tmp_path):
    logs = read_runs(find_runs([str(runs), str(runs / "c")]))
    assert len(logs.records) == 3 and {"a/one", "b/one"} <= {"/".join(name.split("/")[-2:]) for name in logs.records}
    assert logs.series() == ["loss"] and all(len(records) == 4 for records in logs.records.values())
    svg = series_svg(logs, ["loss"], smooth=2)
    assert svg.startswith('<svg role="img" aria-label="loss of ') and "http://www.w3.org" in svg
    done = CliRunner().invoke(app, ["runs", str(runs), "--out", str(tmp_path / "c.svg"), "--json"])
    assert done.exit_code == 0 and {one["loss"] for one in json.loads(done.stdout).values()} == {1.0}
    assert (tmp_path / "c.svg").read_text().startswith("<svg")
    spaced = str(shutil.copytree(runs / "c", tmp_path / "my run"))
    _, command, _ = draw_runs([spaced], list(read_runs([spaced]).records), ["loss"], 2)
    words = shlex.split(html.unescape(re.sub(r".*<code[^>]*>(.*)</code>.*", r"\1", command)))
    assert words == ["vlp", "runs", spaced, "--curves", "loss", "--smooth", "2", "--out", "curves.svg"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path: find_runs([str(path)]), r"is no folder of runs: there is no log\.jsonl in it"),
        (lambda path: demo_inputs(str(path)), r"^There is no demo in .*; run `vlp demo .*` first\.$"),
        (lambda path: read_runs([str(path)]), r"has no log\.jsonl that can be read"),
        (lambda path: serve(AppInputs(), "0.0.0.0"), r"^On 0\.0\.0\.0 everyone .* add --auth USER:PASSWORD\.$"),
        (lambda path: serve(AppInputs(), auth=["ann"]), r"^--auth takes USER:PASSWORD"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, call, message):
    with pytest.raises(UserError, match=message):
        call(tmp_path)


def test_the_demo_of_this_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^There is no demo in demo or runs/demo; run `vlp demo demo` first\.$"):
        demo_inputs()
    done = CliRunner().invoke(app, ["app", "--demo", "other"])
    assert str(done.exception) == "There is no demo in other; run `vlp demo other` first."
    done = CliRunner().invoke(app, ["app", "other"])
    assert str(done.exception).startswith("The page does not know what other is; name it with --index, --model")
    (tmp_path / "demo" / "noisy").mkdir(parents=True)
    (tmp_path / "demo" / "demo.json").write_text("{}")
    (tmp_path / "demo" / "noisy" / "log.jsonl").write_text("")
    with pytest.raises(UserError, match="is not finished; rerun `vlp demo demo` to continue it"):
        demo_inputs()
    (tmp_path / "demo" / "data" / "web").mkdir(parents=True)
    (tmp_path / "demo" / "data" / "web" / "0.capfilt.parquet").write_bytes(b"")
    inputs = demo_inputs()
    assert inputs.tables == ["demo/data/web/*.capfilt.parquet"] and inputs.runs == ["demo/noisy"]
