"""The demo: what it announces, what it leaves, and that a killed one resumes."""

import json
import re
import signal
import time

import pytest

from tests.processes import start_code
from vlp.demo.loop import run_demo
from vlp.demo.page import write_demo_page
from vlp.errors import UserError

TINY = """
import os, sys, torch
torch.set_num_threads(1)
from vlp.demo import loop as demo
demo.QUICK = demo.DemoSizes(human=64, web=48, held_out=16, pretrain_steps=6, captioner_steps=3, filter_steps=3,
    warmup_steps=2, batch_size=16, filter_batch_size=16, image_size=32, width=32, layers=2, heads=2)
demo.run_demo(sys.argv[1], quick=True, seed=3)
"""
MEASURED = {"noisy", "bootstrapped", "filter_auc", "web_texts_kept_right", "web_texts_kept_wrong", "synthetic_kept"}


def start_demo(folder, number):
    """The demo, started for the NUMBER-th time."""
    return start_code(folder.parent / f"{folder.name} {number}", TINY, folder)


def finished(demo):
    """What a demo prints."""
    assert demo.finish() == [0], demo.err[-3000:]
    return demo.out


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a demo that ran undisturbed, and what it printed."""
    folder = tmp_path_factory.mktemp("demo") / "whole"
    demo = start_demo(folder, 1)
    output = finished(demo)
    assert "Warning" not in demo.err, demo.err[-3000:]
    return folder, output


def scores(folder):
    report = json.loads((folder / "report.json").read_text())
    assert report.keys() >= MEASURED | {"seconds", "seed"}
    for name in ("noisy", "bootstrapped"):
        assert report[name].keys() >= {"i2t_r1", "t2i_r1", "caption_exact"}
    assert report.pop("seconds") > 0
    nested = [report.pop("noisy"), report.pop("bootstrapped")]
    return {**report, **{f"{number} {key}": value for number, one in enumerate(nested) for key, value in one.items()}}


def check_announcement(output):
    """The stages and their estimates come before the first stage, and each stage tells the time left."""
    announcement, *stages = re.split(r"^\[\d\d:\d\d\] ", output, flags=re.MULTILINE)
    assert len(stages) == 7 and all(re.search(r"about \d+ (s|min) of \d+ (s|min) left", stage) for stage in stages)
    titles = [stage.split(":")[0] for stage in stages]
    estimates = re.findall(r"^  (.+?) +(\d+) (s|min)$", announcement, flags=re.MULTILINE)
    assert [title for title, *_ in estimates] == [*titles, "in all, about"]
    seconds = [int(number) * {"s": 1, "min": 60}[unit] for _, number, unit in estimates]
    rounded = 30 * sum(unit == "min" for *_, unit in estimates)  # on a busy machine
    assert abs(sum(seconds[:-1]) - seconds[-1]) <= 4 + rounded
    assert stages[-1].splitlines()[-1].startswith("Done after ")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_demo_resumes_and_ends_the_same(tmp_path, whole):
    check_announcement(whole[1])
    markers = ("noisy", "data/web/00000.capfilt.parquet", "bootstrapped")  # kill it as soon as this exists
    for number, marker in enumerate(markers):
        (demo,) = start_demo(tmp_path / "killed", number).processes
        until = time.monotonic() + 200
        while demo.is_alive() and not (tmp_path / "killed" / marker).exists():
            assert time.monotonic() < until
            demo.join(0.01)
        assert demo.is_alive(), "the demo ended before it could be killed"
        demo.kill()
        demo.join()
    output = finished(start_demo(tmp_path / "killed", len(markers)))
    assert "Measuring" not in output and re.search(r"pretrain on the noisy data +done", output)
    assert scores(tmp_path / "killed") == pytest.approx(scores(whole[0]), nan_ok=True)
    kept = json.loads((tmp_path / "killed" / "capfilt.json").read_text())["selected"]["kept_texts"]
    assert sum(kept.values()) > 0
    for name in ("captioner", "filter"):
        assert (tmp_path / "killed" / name / "model.safetensors").exists()
    page = (tmp_path / "killed" / "report.html").read_text()
    assert not re.findall(r"<(?:link|script|iframe)|(?:src|href)=\"(?!data:|#)", page), "the page must load nothing"


def test_a_finished_demo_is_not_run_again(whole):
    folder, _ = whole
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    output = finished(start_demo(folder, 2))
    assert len(output.splitlines()) == 1 and output.startswith("Done after ")
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    task = {"metrics": {"accuracy": 0.875}, "metric": "accuracy", "target": 0.9, "seconds": 90.0}
    (folder / "tasks.json").write_text(json.dumps({"retrieval": task, "vqa": {"seconds": 1.0}}))
    write_demo_page(folder)
    page = (folder / "report.html").read_text()
    assert "0.875" in page and "1.5" in page and "vqa" not in page  # an unfinished task is left out


@pytest.mark.parametrize("mark", ["{}", "not JSON"])
def test_a_folder_of_another_demo_is_refused(tmp_path, mark):
    (tmp_path / "demo.json").write_text(mark)
    with pytest.raises(UserError, match="holds a demo with other settings"):
        run_demo(str(tmp_path))


def test_a_folder_or_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    for name in ("other", "other/file"):
        with pytest.raises(UserError, match="does not hold a demo"):
            run_demo(str(tmp_path / name))
