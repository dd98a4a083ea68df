"""The ablations: interrupted ones resume, and the page shows what was measured."""

import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import ablations_page as page_maker
import pytest

from vlp.errors import UserError

ROOT = Path(__file__).parent.parent.parent
MEASURES = ("t2i_r1", "i2t_r1", "caption_exact", "CIDEr")
OURS = ("noisy-as-many-steps", "captioned-filtered-twice-as-long")  # pretrainings that the paper does not have
SIZES = {"human": 3000, "web": 9600, "image_size": 64, "held_out": 500}
SIZES |= {"pretrain_steps": 700, "batch_size": 64, "captioner_steps": 900, "filter_steps": 500}


def start(output, *more):
    """Start the script with two jobs, in a new process group."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    command = [
        "bash",
        str(ROOT / "scripts" / "ablations.sh"),
        str(output),
        "--quick",
        "--seeds",
        "0",
        "--jobs",
        "2",
        *more,
    ]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def finished(output):
    return {path.stem: path.stat().st_mtime_ns for path in (output / "seed-0" / "results").glob("[!.]*.json")}


def table_cells(page, number):
    """The cells of each row of a table of the page, by the row's title."""
    section = page.split(f"## Table {number}:")[1].split("\n\n")[1]
    return {cells[1]: cells[2:] for line in section.splitlines() for cells in [re.split(r"\s*\|\s*", line)]}


def as_text(numbers, sign=""):
    middle = f"{statistics.mean(numbers):{sign}.1f}"
    return middle + (f" ± {statistics.stdev(numbers):.1f}" if len(numbers) > 1 else "")


def test_killed_ablations_resume_and_end_in_a_page(tmp_path):
    output = tmp_path / "ablations"
    first = start(output)
    until = time.monotonic() + 600
    while first.poll() is None and not (output / "seed-0" / "results" / "noisy.json").exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    assert first.poll() is None, first.communicate()[1][-3000:]
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    before = finished(output)
    last = start(output)
    output_text, errors = last.communicate(timeout=900)
    assert last.returncode == 0, errors[-3000:]
    assert "Warning" not in errors, errors[-3000:]
    after = finished(output)
    assert {stage: after[stage] for stage in before} == before
    started = re.findall(r"seed 0: (\S+)", output_text)
    assert sorted(started) == sorted(after.keys() - before.keys()), "each remaining stage runs once"
    page, facts = (output / "page.md").read_text(), json.loads((output / "page.json").read_text())
    for title, stage in (("none", "noisy"), ("filter", "filtered"), ("captioner and filter", "captioned-filtered")):
        measured = json.loads((output / "seed-0" / "results" / f"{stage}.json").read_text())["numbers"]
        assert facts["stages"][stage]["0"] == measured
        assert table_cells(page, 1)[title][:5] == ["1", *(f"{100 * measured[one]:.1f}" for one in MEASURES)]
    steps = {stage: facts["stages"][stage]["0"]["steps"] for stage in ("noisy", "repeated", *OURS)}
    assert steps["noisy-as-many-steps"] == steps["repeated"] != steps["noisy"]
    assert steps["captioned-filtered-twice-as-long"] == 2 * steps["noisy"]
    again = start(output, "--page-only")
    assert again.communicate(timeout=900)[0] == f"Wrote {output / 'page.md'}.\n"
    assert again.returncode == 0 and (output / "page.md").read_text() == page
    rows = {row.stage for table in page_maker.TABLES for row in table.rows}
    assert rows <= facts["stages"].keys()
    assert (output / "page.svg").read_text().count("<g id=") > len(rows)


def made_up(page_maker, seeds):
    """Random results for every row of every table."""
    draw = random.Random(7)
    stages = {}
    for table in page_maker.TABLES:
        for row in table.rows:
            stages[row.stage] = {seed: {one: draw.random() for one in MEASURES} for seed in seeds}
            if row.texts:
                stages[row.texts] = {seed: {"dropped": draw.random()} for seed in seeds}
    work = {"cpu_seconds": 7200.0, "done": 40, "planned": 69}
    return {"sizes": SIZES, "machines": ["a machine"], **work, "stages": stages}


def test_every_number_of_the_page_comes_from_the_results():
    results = made_up(page_maker, ["0", "1", "2"])
    del results["stages"]["filtered"]["1"], results["stages"]["continued"]
    page = page_maker.render(results, "a.svg", "a.json")
    for table in page_maker.TABLES:
        cells = table_cells(page, table.number)
        for row in table.rows:
            seeds = results["stages"].get(row.stage, {})
            expected = [str(len(seeds) or "not run yet")]
            expected += [as_text([100 * one[name] for one in seeds.values()]) if seeds else "–" for name in MEASURES]
            if row.texts:
                expected.append(as_text([100 * one["dropped"] for one in results["stages"][row.texts].values()]))
            assert cells[row.title][: len(expected)] == expected
    none, filtered = (results["stages"][stage] for stage in ("noisy", "filtered"))
    gains = [100 * (filtered[seed]["t2i_r1"] - none[seed]["t2i_r1"]) for seed in ("0", "2")]  # seeds with both
    assert f"| the filter gains | {as_text(gains, '+')} (" in page
    more = [
        100 * (results["stages"][OURS[0]][seed]["CIDEr"] - results["stages"]["repeated"][seed]["CIDEr"])
        for seed in "012"
    ]
    (line,) = (line for line in page.splitlines() if line.startswith("| repeating gains nothing beyond"))
    assert line.split(" | ")[-1].startswith(as_text(more, "+"))
    assert "| a new model is no worse | – |" in page
    assert "Not measured yet:\n\n- Table 13" in page
    assert "40 of 69 stages are done" in page
    assert "stages are done" not in page_maker.render({**results, "done": 69}, "a.svg", "a.json")


def test_inexact_texts_are_counted_among_inexact_ones(tmp_path):
    texts = [(exact, kept) for exact in (True, False) for kept in (True, False) for _ in range(3 if exact else 2)]
    texts += [(False, True)] * 4  # 6 of 8 inexact texts are kept
    kept = [exact for exact, stays in texts if stays]
    numbers = {
        "synthetic_kept": len(kept) / len(texts),
        "synthetic_exact": sum(exact for exact, _ in texts) / len(texts),
        "synthetic_kept_exact": sum(kept) / len(kept),
    }
    (tmp_path / "ablations.json").write_text('{"sizes": {}, "stages": []}')
    (tmp_path / "seed-0" / "results").mkdir(parents=True)
    facts = {"stage": "beam", "machine": "", "cpu_seconds": 1, "numbers": numbers}
    (tmp_path / "seed-0" / "results" / "beam.json").write_text(json.dumps(facts))
    results = page_maker.collect(tmp_path, [0])
    assert results["stages"]["beam"]["0"]["synthetic_inexact_kept"] == pytest.approx(6 / 8)


@pytest.mark.parametrize(
    ("differences", "strict", "verdict"),
    [
        ([0.05, 0.06, 0.07], True, "yes"),
        ([0.05, -0.06, 0.02], True, "undecided"),
        ([-0.05, -0.06, -0.07], True, "opposite"),
        ([0.05, -0.06, 0.02], False, "none seen"),
        ([0.05, 0.06, 0.07], False, "yes"),
        ([-0.05, -0.06, -0.07], False, "opposite"),
        ([0.05], True, "one seed: as the paper"),
        ([-0.05], False, "one seed: not as the paper"),
        ([0.0], True, "one seed: not as the paper"),
        ([0.0], False, "one seed: as the paper"),
        ([], True, "–"),
    ],
)
def test_the_verdict_on_a_claim_comes_from_paired_differences(differences, strict, verdict):
    base = [0.3, 0.7, 0.5]  # spread far more than the differences
    both = dict(enumerate(zip(base, differences, strict=False)))
    first = {str(seed): {"t2i_r1": start + more} for seed, (start, more) in both.items()}
    second = {str(seed): {"t2i_r1": start} for seed, start in enumerate(base)}
    claim = page_maker.Claim("it gains", "one", "other", strict)
    assert page_maker.difference({"stages": {"one": first, "other": second}}, claim, "t2i_r1")[1] == verdict


def test_the_page_in_docs_is_what_its_results_make():
    page = ROOT / "docs" / "ablations.md"
    results = json.loads(page.with_suffix(".json").read_text())
    assert page.read_text() == page_maker.render(results, "ablations.svg", "ablations.json")


def test_a_folder_without_ablations_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no ablations"):
        page_maker.collect(tmp_path, [0])
