"""Score tables that are missing, damaged, old or of another shard, and rules that are wrong, hostile or odd."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.end_to_end.bad_input import refused, run, succeeded, tidy
from tests.scoring import lose_shard


@pytest.fixture(scope="module")
def scored(tmp_path_factory, scenes, models) -> Path:
    """A folder of two scored shards, which tests copy."""
    folder = tmp_path_factory.mktemp("tables")
    for name in ("00000.tar", "00001.tar"):
        shutil.copy2(scenes / name, folder / name)
    succeeded(run("capfilt", "score", "--shards", folder / "*.tar", "--filter", models[1]))
    return folder


@pytest.fixture
def folder(tmp_path, scored) -> Path:
    """The scored shards, to be damaged."""
    shutil.copytree(scored, tmp_path / "web", copy_function=shutil.copy2)
    return tmp_path / "web"


def rewrite(path: Path, change) -> None:
    """Change a table's columns or its metadata."""
    table = pq.read_table(path)
    pq.write_table(change(table), path)


def settings(table: pa.Table, **values) -> pa.Table:
    facts = {**json.loads(table.schema.metadata[b"vlp.capfilt"]), **values}
    return table.replace_schema_metadata({"vlp.capfilt": json.dumps(facts)})


def column(name: str, values):
    def change(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index(name)
        field = table.schema.field(name)
        changed = table.set_column(place, field.name, pa.array(values(len(table)), None))
        return changed.replace_schema_metadata(table.schema.metadata)

    return change


TABLES = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-200]),
    "damaged in the middle": lambda path: path.write_bytes(
        path.read_bytes()[:20] + bytes(400) + path.read_bytes()[420:]
    ),
    "random": lambda path: path.write_bytes(b"PAR1" + bytes(range(256)) * 20 + b"PAR1"),
    "text": lambda path: path.write_text("key,text\na,b\n"),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "another parquet": lambda path: pq.write_table(pa.table({"a": [1]}), path),
    "metadata that is no JSON": lambda path: rewrite(
        path, lambda table: table.replace_schema_metadata({"vlp.capfilt": "{"})
    ),
    "metadata that is a list": lambda path: rewrite(
        path, lambda table: table.replace_schema_metadata({"vlp.capfilt": "[1]"})
    ),
    "old version": lambda path: rewrite(path, lambda table: settings(table, version="1")),
    "no column text": lambda path: rewrite(path, lambda table: table.drop_columns(["text"])),
    "no column itm": lambda path: rewrite(path, lambda table: table.drop_columns(["itm"])),
    "scores that are texts": lambda path: rewrite(path, column("itm", lambda rows: ["x"] * rows)),
    "keys that are numbers": lambda path: rewrite(path, column("key", lambda rows: list(range(rows)))),
    "shard changed": lambda path: path.with_name("00000.tar").write_bytes(b"changed"),
    "table of another shard": lambda path: shutil.copy(path.with_name("00001.capfilt.parquet"), path),
    "shard missing": lose_shard,
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_cannot_be_used_is_named(name, folder, tmp_path, run_config):
    TABLES[name](folder / "00000.capfilt.parquet")
    given = [f"{folder}/{number}.capfilt.parquet" for number in ("00000", "00001")]
    scores = ["--scores", given[0], "--scores", given[1]]
    refused(run("capfilt", "select", "itm >= 0", *scores, "--out", tmp_path / "new"), "00000")
    assert not (tmp_path / "new").exists()
    if name not in ("shard changed", "table of another shard", "shard missing"):  # which a page does not read
        refused(run("capfilt", "report", *scores, "--out", tmp_path / "page.html"), "00000")
        assert not (tmp_path / "page.html").exists()
    tidy(tmp_path)


@pytest.mark.parametrize("name", TABLES)
def test_training_from_a_table_that_cannot_be_used_names_it(name, folder, tmp_path, run_config):
    from vlp.config_reader import save_config

    TABLES[name](folder / "00000.capfilt.parquet")
    sources = f"data.sources=[{{shards: ['{folder}/00000.tar', '{folder}/00001.tar'], texts: {{floor: 0.0}}}}]"
    save_config(run_config("run", "steps=2", "data.max_bad_share=0.1", sources), tmp_path / "run.yaml")
    outcome = run("pretrain", tmp_path / "run.yaml")
    if name == "damaged in the middle":  # not seen before its rows are read
        succeeded(outcome, "00000.tar", "unreadable score table")
    else:
        refused(outcome, "00000")
        assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize("name", ["cut", "empty", "random", "another parquet", "old version", "no column itm"])
def test_a_bad_table_is_scored_again(name, folder, models):
    path = folder / "00000.capfilt.parquet"
    TABLES[name](path)
    outcome = run("capfilt", "score", "--shards", folder / "*.tar", "--filter", models[1])
    succeeded(outcome)
    if name != "no column itm":  # its settings say that it is finished
        assert "skipped_shards  1\n" in outcome.out
        assert pq.read_table(path).num_rows == 20
    tidy(folder)


def test_scores_that_are_not_numbers_satisfy_no_rule(folder, tmp_path):
    rewrite(folder / "00000.capfilt.parquet", column("itm", lambda rows: pa.array([float("nan")] * rows, pa.float32())))
    scores = ["--scores", folder / "*.capfilt.parquet"]
    kept = run("capfilt", "select", "itm >= 0 or itm < 0", *scores, "--out", tmp_path / "new", "--json")
    succeeded(kept)
    assert kept.values()["images"] == 20
    succeeded(run("capfilt", "report", *scores, "--out", tmp_path / "page.html"))


RULES = {
    "empty": "",
    "white space": " \n ",
    "only a comment": "# itm",
    "cut": "itm >=",
    "open bracket": "best(1",
    "closed bracket": "itm >= 0)",
    "close and open": ") or (itm >= 0",
    "SQL": "'; DROP TABLE texts; --",
    "SQL in a text": "text == 'x' OR 1=1",
    "quote and SQL": 'text == "\'; DROP TABLE cuts; --" or',
    "semicolon": "itm >= 0; itm",
    "assignment": "itm = 3",
    "walrus": "(x := itm) > 1",
    "import": "__import__('os').system('true')",
    "attribute": "().__class__.__bases__",
    "attribute of a column": "itm.real >= 0",
    "lambda": "(lambda: True)()",
    "comprehension": "[x for x in itm]",
    "f-string": "f'{itm}' == 'x'",
    "bytes": "text == b'x'",
    "ellipsis": "...",
    "none": "None",
    "true": "True",
    "complex": "itm >= 1j",
    "chained if": "itm if itm else clip",
    "unknown column": "itmm >= 0.5",
    "unknown function": "max(itm, 3) > 1",
    "unknown table": "other.itm >= 0.5",
    "number alone": "itm",
    "text as a number": "text >= 3",
    "text in an order": "text >= 'a'",
    "number as a text": "itm == 'x'",
    "in": "source in ('web', 'human')",
    "is": "itm is None",
    "modulo": "itm % 2 == 0",
    "power": "itm ** 9999 > 1",
    "shift": "itm << 3 > 1",
    "huge number": "itm >= 1e400",
    "long number": "itm >= " + "9" * 3000,
    "octal": "itm >= 007",
    "top of 0": "top(itm, 0)",
    "top of 2": "top(itm, 2)",
    "top of nan": "top(itm, nan)",
    "top without a share": "top(itm)",
    "best of 0": "best(0)",
    "best of -1": "best(-1)",
    "best of half": "best(0.5)",
    "best of many": "best(99999999999)",
    "two bests": "best(1) and best(2)",
    "web in human": "web(human(itm >= 0))",
    "keyword argument": "best(n=1)",
    "star": "best(*[1])",
    "too long": "itm >= 0 or " * 400 + "itm >= 0",
    "too deep": "not " * 990 + "duplicate",
    "too many brackets": "(" * 300 + "itm >= 0" + ")" * 300,
    "zero byte": "itm >= 0\\0",
    "control character": "text == '\x1b'",
    "another minus": "itm − 1 >= 0",
    "no-break space": "itm\u00a0>=\u00a00",
    "duplicates that are not there": "not duplicate",
    "a score that no text has": "clip >= 0",
    "top of a score that no text has": "top(clip, 0.5)",
}


@pytest.mark.parametrize("name", RULES)
def test_rules_that_cannot_be_are_refused(name, scored, tmp_path):
    outcome = run("capfilt", "select", RULES[name], "--scores", scored / "*.capfilt.parquet", "--out", tmp_path / "new")
    refused(outcome)
    assert len(outcome.err) < 600
    assert not list(tmp_path.iterdir())


ODD_RULES = {
    "division by zero": ("itm / 0 >= 0", 0),
    "zero by zero": ("0 / 0 == 0 / 0", 0),
    "division by a column": ("1 / (itm - itm) > 0", 0),
    "a quote in a text": ('text != "it\'s"', 40),
    "SQL in a text": ('text != "\'; DROP TABLE cuts; --"', 40),
    "wildcards in a text": ("text == '%'", 0),
    "several lines": ("itm >= 0\nand itm <= 1", 40),
    "comment": ("itm >= 0  # all of them", 40),
    "large numbers": ("itm * 1e200 * 1e200 > 0", 40),
    "all": ("1 == 1", 40),
}


@pytest.mark.parametrize("name", ODD_RULES)
def test_odd_rules_have_a_meaning(name, scored, tmp_path):
    rules, images = ODD_RULES[name]
    scores = ["--scores", scored / "*.capfilt.parquet"]
    kept = run("capfilt", "select", rules, *scores, "--table", tmp_path / "rows.parquet", "--json")
    succeeded(kept)
    assert kept.values()["images"] == images
