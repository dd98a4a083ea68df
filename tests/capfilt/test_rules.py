"""Selection rules: random rules select the same texts as plain Python, and invalid rules end with one sentence."""

import math
import random

import numpy as np
import pytest

from vlp.capfilt import query
from vlp.capfilt.query import select_rows
from vlp.capfilt.rules import parse_rules
from vlp.data.find_tables import open_score_table
from vlp.data.score_tables import Scored, table_path, write_table
from vlp.errors import UserError

SCORES = ("itm", "itc", "clip", "nll", "words", "aspect", "shortest", "width", "tokens", "other.itm")
SIGNS = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}


def make_rows(rng, images):
    """Rows with many ties, missing scores, empty texts and all kinds of spaces."""

    def score(share_missing=0.2, low=0.0):
        missing = rng.random() < share_missing
        return (None if rng.random() < 0.5 else math.nan) if missing else rng.randrange(int(low * 20), 21) / 20

    rows = []
    for image in range(images):
        width, height = rng.choice((0, 30, 64, 200)), rng.choice((30, 64, 100))
        for source in ("web", "synthetic", "human"):
            for number in range(rng.randrange(4)):
                text = rng.choice((" ", "\u00a0", "a", "a b", " a  b\u2003c ", "a\x1cb\nc'd"))
                row = Scored(f"{image:04d}", source, text, score(), score(0, -1), caption_id=number)
                row.clip, row.nll, row.tokens = score(0.5), score(0.9), rng.randrange(9)
                row.width, row.height = width, height
                rows.append(row)
    rng.shuffle(rows)
    return rows


def value_of(row, name):
    """A column of a row in double precision; None if it is missing or NaN."""
    if name == "words":
        return len(row.text.split())
    if name == "shortest":
        return min(row.width, row.height)
    if name == "aspect":
        low, high = sorted((row.width, row.height))
        return high / low if low else None
    value = row.other if name == "other.itm" else getattr(row, name)
    if name in ("itm", "itc", "clip", "nll", "other.itm") and value is not None:
        value = float(np.float32(value))
    return None if value is None or value != value else value


class RandomRules:
    """Makes random rules, each as text and as a function from rows with a text to the set of selected rows."""

    def __init__(self, rng):
        self.rng = rng

    def score(self):
        name = self.rng.choice(SCORES)
        if self.rng.random() < 0.7:
            return name, lambda row: value_of(row, name)
        other, sign, factor = self.rng.choice(SCORES), self.rng.choice("+-*/"), self.rng.choice((2, 0.5))

        def compute(row):
            one, two = value_of(row, name), value_of(row, other)
            if one is None or two is None or (sign == "/" and two == 0):
                return None
            two = two * factor
            return {"+": one + two, "-": one - two, "*": one * two, "/": one / two if two else None}[sign]

        return f"{name} {sign} ({other} * {factor})", compute

    def comparison(self):
        if self.rng.random() < 0.2:
            source, sign = self.rng.choice(("web", "human")), self.rng.choice(("==", "!="))
            return f'source {sign} "{source}"', lambda rows: {
                row.place for row in rows if SIGNS[sign](row.source, source)
            }
        (text, compute), sign, edge = self.score(), self.rng.choice(list(SIGNS)), self.rng.randrange(21) / 20
        low = self.rng.random() < 0.2

        def holds(rows):
            found = set()
            for row in rows:
                value = compute(row)
                if value is not None and SIGNS[sign](value, edge) and (not low or value >= 0.1):
                    found.add(row.place)
            return found

        return (f"0.1 <= {text} {sign} {edge}" if low else f"{text} {sign} {edge}"), holds

    def top(self, source):
        (text, compute), share = self.score(), self.rng.choice((0.1, 0.3, 0.5, 1, 0.07))

        def holds(rows):
            scores = {row.place: compute(row) for row in rows if source in (None, row.source)}
            found = sorted((value for value in scores.values() if value is not None), reverse=True)
            if not found:
                return set()
            count = -(-len(found) * round(share * 100) // 100)  # rounded up
            return {row.place for row in rows if compute(row) is not None and compute(row) >= found[max(count, 1) - 1]}

        return f"top({text}, {share})", holds

    def best(self, source, parts):
        """A best(...) and its meaning, given the other parts of its `and`."""
        count, named = self.rng.choice((1, 2)), self.rng.random() < 0.5
        text, compute = self.score() if named else ("itm", lambda row: value_of(row, "itm"))

        def holds(rows):
            stay = set.intersection(*({row.place for row in rows}, *(part(rows) for part in parts)))
            groups = {}
            for row in rows:
                if row.place in stay and compute(row) is not None and source in (None, row.source):
                    groups.setdefault((row.place[0], row.key), []).append(row)
            chosen = set()
            for group in groups.values():
                group.sort(key=lambda row: (-compute(row), row.source, row.caption_id))
                chosen |= {row.place for row in group[:count]}
            return chosen

        return (f"best({count}, {text})" if named else f"best({count})"), holds

    def rule(self, depth=3, source=None):
        kind = self.rng.random()
        if depth == 0 or kind < 0.25:
            return self.top(source) if self.rng.random() < 0.2 else self.comparison()
        if kind < 0.5:
            parts = [self.closed(depth - 1, source) for _ in range(self.rng.randrange(1, 3))]
            tests = [holds for _, holds in parts]
            if self.rng.random() < 0.6:
                parts.append(self.best(source, tests))
            self.rng.shuffle(parts)
            return " and ".join(f"({text})" for text, _ in parts), lambda rows: set.intersection(
                *(holds(rows) for _, holds in parts)
            )
        if kind < 0.7:
            parts = [self.rule(depth - 1, source) for _ in range(2)]
            return " or ".join(f"({text})" for text, _ in parts), lambda rows: set.union(
                *(holds(rows) for _, holds in parts)
            )
        text, holds = self.rule(depth - 1, source)
        if kind < 0.85 or source:
            return f"not ({text})", lambda rows: {row.place for row in rows} - holds(rows)
        return self.of_source(depth)

    def of_source(self, depth):
        source = self.rng.choice(("web", "synthetic", "human"))
        text, holds = self.rule(depth - 1, source)
        return f"{source}({text})", lambda rows: {row.place for row in rows if row.source == source} & holds(rows)

    def closed(self, depth, source):
        """A part of an `and` that does not add a `best` to its group."""
        if self.rng.random() < 0.4:
            return self.top(source) if self.rng.random() < 0.3 else self.comparison()
        text, holds = self.rule(depth, source)
        other, too = self.comparison()
        return f"({text}) or ({other})", lambda rows: holds(rows) | too(rows)


def write_tables(folder, rng, tables, images):
    """Write tables, and other tables for most of them; returns the paths of both and all rows.

    A row gets its place, and as `other` the itm of the other table.
    """
    folder.mkdir()
    paths, others, everything = [], [], []
    for number in range(tables):
        shard = folder / f"{number}.tar"
        shard.touch()
        rows = make_rows(rng, images)
        write_table(str(shard), rows, {})
        paths.append(table_path(str(shard)))
        in_other = [row for row in rows if rng.random() < 0.8] if number else []
        other = {id(row): rng.randrange(21) / 20 for row in in_other}
        if in_other:
            moved = [
                Scored(row.key, row.source, row.text, other[id(row)], 0, caption_id=row.caption_id) for row in in_other
            ]
            moved += [Scored(row.key, row.source, row.text + "x", 1, 0, caption_id=row.caption_id) for row in rows]
            rng.shuffle(moved)
            write_table(str(shard), moved, {}, name="other")
            others.append(table_path(str(shard), "other"))
        for place, row in enumerate(rows):
            row.place, row.other = (number, place), other.get(id(row))
            everything.append(row)
    return paths, others, everything


def selected_by(paths, rules, tmp_path, **also):
    others = {name: list(map(open_score_table, given)) for name, given in also.items()}
    compiled = parse_rules(rules, {name: {} for name in also})
    found = select_rows(list(map(open_score_table, paths)), compiled, others, tmp_path / "spill")
    return {(paths.index(table.path), row) for table, rows in found for row in rows.tolist()}


@pytest.mark.parametrize("rows_at_once", (1, 500_000))
def test_random_rules_select_the_same_texts_as_plain_python(tmp_path, monkeypatch, rows_at_once):
    monkeypatch.setattr(query, "ROWS_AT_ONCE", rows_at_once)
    rng = random.Random(rows_at_once)
    paths, others, rows = write_tables(tmp_path / "t", rng, tables=3, images=40)
    rows = [row for row in rows if row.text.strip()]
    maker, sizes = RandomRules(rng), []
    for _ in range(75):
        text, holds = maker.rule()
        expected = holds(rows)
        assert selected_by(paths, text, tmp_path, other=others) == expected, text
        sizes.append(len(expected))
    assert sum(0 < size < len(rows) for size in sizes) > 30  # most rules select some texts but not all


def test_shares_are_exact_and_ties_with_the_last_text_are_kept(tmp_path):
    shard = tmp_path / "0.tar"
    shard.touch()
    scores = [0.9, 0.5, 0.5, 0.5, 0.1, None, math.nan, 0.05, 0.04, 0.03, 0.02, 0.01]
    rows = [Scored(f"{place}", "web", "a text", score, 0.0) for place, score in enumerate(scores)]
    write_table(str(shard), rows, {})
    paths = [table_path(str(shard))]
    found = {share: len(selected_by(paths, f"top(itm, {share})", tmp_path)) for share in (0.01, 0.1, 0.2, 0.4, 0.5, 1)}
    assert found == {0.01: 1, 0.1: 1, 0.2: 4, 0.4: 4, 0.5: 5, 1: 10}
    assert selected_by(paths, "not itm >= 0 and not itm < 0", tmp_path) == {(0, 5), (0, 6)}
    assert selected_by(paths, "itm / 0 >= 0 or -itm > itm / itc", tmp_path) == set()


def test_best_breaks_ties_by_source_and_number(tmp_path):
    shard = tmp_path / "a[1]*.tar"  # a name with wildcard characters
    shard.touch()
    places = [("web", 0), ("synthetic", 1), ("synthetic", 0), ("human", 3)]
    rows = [Scored("same", source, "a text", 0.5, 0.0, caption_id=number) for source, number in places]
    write_table(str(shard), [*rows, Scored("other", "web", "a text", None, 0.0)], {})
    paths = [table_path(str(shard))]
    assert selected_by(paths, "best(2)", tmp_path) == {(0, 2), (0, 3)}
    assert selected_by(paths, 'best(1) and source != "human"', tmp_path) == {(0, 2)}


def test_duplicates_need_their_tables(tmp_path):
    shard = tmp_path / "0.tar"
    shard.touch()
    write_table(str(shard), [Scored("a", "web", "a text", 0.5, 0.0)], {})
    with pytest.raises(UserError, match=r"has no table of duplicates; run `vlp capfilt duplicates`"):
        selected_by([table_path(str(shard))], "not duplicate", tmp_path)


@pytest.mark.parametrize(
    "rules, message",
    [
        (" ", "The rules are empty"),
        ("itm >=", "expression: invalid syntax at its end; write one such as itm >= 0.5 and words < 30."),
        ("text match 'red'", "forgot a comma? at its character 1; write"),
        ("itm >= 0.5\nor ;", "invalid syntax at its character 15; write"),
        ("itm = 0.5", "not a valid expression"),
        ("itm >= 0.5; itm", "not a valid expression"),
        ("itm >= 0.5) or (itm", "is a number, not true or false"),
        ("itn >= 0.5", "no column itn in rules; did you mean itm?"),
        ("zebra > 1", "no column zebra in rules; known: key, uid, source"),
        ("there.itm > 1", "no tables named there; known: beside."),
        ("beside.itn > 1", "no column beside.itn in rules; did you mean itm?"),
        ("beside.words > 1", "no column beside.words in rules"),
        ("itm", "`itm` is a number, not true or false; compare it"),
        ("text", "`text` is a text, not true or false"),
        ("itm >= '0.5'", "compares a number with a text; both must be"),
        ("duplicate == 1", "compares a truth with a number"),
        ("duplicate == duplicate", "compares a truth with a truth"),
        ("text < 'b'", "a text takes == and !="),
        ("'a' in text", "a text takes == and !="),
        ("itm is 1", "a number takes <, <=, >, >=, ==, !="),
        ("itm + text > 1", "`text` is a text, but rules need a number here"),
        ("itm % 2 > 1", "not allowed in rules"),
        ("top(itm, 0)", "needs a share above 0 and at most 1"),
        ("top(itm, 1.5)", "needs a share above 0 and at most 1"),
        ("top(itm, 0.1 + 0.2)", "needs a share above 0"),
        ("top(itm, True)", "needs a share above 0"),
        ("top(itm)", "does not have the form top(SCORE, SHARE)"),
        ("top(itm, share=0.3)", "does not have the form top(SCORE, SHARE)"),
        ("top(source, 0.3)", "but rules need a number here"),
        ("top(itm, 0.3) > 1", "not allowed in rules"),
        ("best(0)", "a positive whole number of texts"),
        ("best(1.0)", "a positive whole number of texts"),
        ("best()", "does not have the form best(N, SCORE)"),
        ("best(1) and best(2, itc)", "has two best(...) in one `and`"),
        ("best(1) and (itm > 0 and web(best(2)))", "has two best(...) in one `and`"),
        ("web()", "does not have the form web(RULE)"),
        ("web(synthetic(itm > 0))", "synthetic(...) is inside web(...), but no text has both sources"),
        ("tops(itm, 0.3)", "There is no tops(...) in rules; did you mean top?"),
        ("itm > 1e999", "not a number or text that rules can use"),
        ("itm > 1j", "not a number or text that rules can use"),
        ("text == b'a'", "not a number or text that rules can use"),
        ("text == None", "not a number or text that rules can use"),
        ("text == 'a\\x00'", "not a number or text that rules can use"),
        ("__import__('os').system('true')", "not allowed in rules"),
        ("__import__('os')", "There is no __import__(...) in rules"),
        ("itm.__class__ > 1", "no tables named itm"),
        ("(lambda: 1)() > 1", "not allowed in rules"),
        ("[itm for itm in (1, 2)] > 1", "not allowed in rules"),
        ("(x := itm) > 1", "not allowed in rules"),
        ("f'{itm}' == text", "not allowed in rules"),
        ("itm if 1 > 0 else itc", "not allowed in rules"),
        ("itm[0] > 1", "not allowed in rules"),
        ("itm > 0 or " * 500 + "itm > 0", "characters; at most 4000 are allowed"),
        ("(" * 1500 + "itm > 0" + ")" * 1500, "not a valid expression"),
        ("not " * 990 + "itm > 0", "nested too deeply"),
        ("itm > 0\0", "contain null bytes"),
    ],
)
def test_invalid_rules_end_with_one_sentence(rules, message):
    with pytest.raises(UserError) as refused:
        parse_rules(rules, {"beside": {}})
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 350


def test_rules_know_only_the_tables_given_by_also():
    with pytest.raises(UserError, match="no tables named other; known: none; name tables with --also"):
        parse_rules("other.itm > 1")


def test_the_longest_allowed_rules_run(tmp_path):
    paths, _, rows = write_tables(tmp_path / "t", random.Random(0), tables=1, images=3)
    for rules in (" or ".join(["itm > 2"] * 300 + ["itm > -1"]), "(" * 60 + "itm > -1" + ")" * 60, "\nitm\n > -1\n"):
        expected = {row.place for row in rows if row.text.strip() and value_of(row, "itm") is not None}
        assert selected_by(paths, rules, tmp_path) == expected
    assert selected_by(paths, "text != 'x\\'; DROP TABLE cuts; --'", tmp_path)
