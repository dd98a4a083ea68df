"""The page in a real browser: keys label what is shown, labels survive a reload, nothing is fetched from elsewhere."""

import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.app.serving import ROOT, SECONDS, needs_browser, opened_page, serious_problems, serving, status_of
from vlp.capfilt.review_labels import LabelStore
from vlp.data.score_tables import Scored, write_table
from vlp.data.shard_index import expand_shards
from vlp.data.shards import iterate_samples

SHOWN = "document.querySelector('#vlp-shown textarea, #vlp-shown input')?.value"


@pytest.fixture(scope="module")
def served(tmp_path_factory, web_scenes):
    """The address of a page on a copy of the scenes with scores and on two runs, and the folder of both."""
    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(web_scenes, folder / "web")
    rng = np.random.default_rng(0)
    for shard in expand_shards(str(folder / "web" / "*.tar")):
        rows = []
        for sample in iterate_samples([shard]):
            rows.append(Scored(sample.key, "web", sample.text, float(rng.random()), float(rng.random()), sample.key))
            made = Scored(sample.key, "synthetic", "<b>a made</b> one", float(rng.random()), 0.5, sample.key)
            rows.append(made)
        write_table(shard, rows, {})
    for number in range(2):
        run = folder / "runs" / f"run{number}"
        run.mkdir(parents=True)
        lines = [json.dumps({"step": 10 * step, "loss": 5 / step + number, "lm": 1.0}) for step in range(1, 9)]
        (run / "log.jsonl").write_text("\n".join(lines) + '\n{"step": 90, "lo')
        (run / "scores.json").write_text(json.dumps({"i2t_r1": 0.5 + number / 10}))
    with serving(folder, "--tables", "web", "--runs", "runs") as address:
        yield address, folder


@pytest.fixture
def page(browser, served):
    """The page, at the first row to review."""
    with opened_page(browser, served[0]) as opened:
        opened.wait_for_selector("#vlp-review-card .vlp-card")
        yield opened


def press(page, key):
    """Press a key and wait for the row that it leads to; returns the row that was shown before."""
    before = page.evaluate(SHOWN)
    page.keyboard.press(key)
    page.wait_for_function(f"before => {SHOWN} !== before", arg=before)
    page.wait_for_function(
        f"() => document.querySelector('#vlp-review-card .vlp-card').dataset.row === {SHOWN}.split(':')[1]"
    )
    page.wait_for_timeout(50)  # the script takes the next key after its next look
    return int(before.split(":")[1])


def current_text(page):
    return page.inner_text("#vlp-review-card .vlp-current .vlp-words")


@needs_browser
def test_twenty_rows_by_keyboard_a_reload_and_an_export(page, served):
    _, folder = served
    for tab in ("Runs", "Review CapFilt"):  # keys work after a click on a tab
        page.get_by_role("tab", name=tab).click()
    page.wait_for_selector("#vlp-review-card .vlp-card")
    said = []
    for number in range(20):
        text, key = current_text(page), "a" if number % 3 else "r"
        row = press(page, key)
        said.append((row, text, "accept" if key == "a" else "reject"))
    assert len({row for row, _, _ in said}) == 20
    stored = LabelStore(folder / "web").read().to_pylist()  # while the page is open
    assert [(one["text"], one["verdict"]) for one in stored] == [(text, verdict) for _, text, verdict in said]
    assert {one["shown"] for one in stored} == {"sample"}
    page.fill("#vlp-rule textarea", "itm >= 0.9")
    page.reload()
    page.wait_for_selector("#vlp-review-card .vlp-card")  # the tab is open again
    page.wait_for_function("() => document.querySelector('#vlp-slider-itm input').value === '0.9'")
    assert page.input_value("#vlp-rule textarea") == "itm >= 0.9"
    assert "20 labels: 13 accepted, 7 rejected" in page.inner_text("#vlp-progress")
    assert page.evaluate(SHOWN).startswith("20:")  # the first row without a label
    press(page, "ArrowLeft")
    assert page.inner_text("#vlp-review-card .vlp-current .vlp-mark") == "label: accepted"
    press(page, "u")
    assert "19 labels: 12 accepted, 7 rejected" in page.inner_text("#vlp-progress")
    before = current_text(page)
    press(page, "ArrowDown")  # the other text of the image
    assert current_text(page) != before
    page.fill("#vlp-name textarea, #vlp-name input", "../out")
    page.click("#vlp-export")
    page.wait_for_selector("#vlp-exported .vlp-error")
    page.fill("#vlp-name textarea, #vlp-name input", "reviewed")
    page.click("#vlp-export")
    page.wait_for_selector("text=12 accepted and 7 rejected texts are in")
    pairs = (folder / "web" / "reviewed" / "pairs.tsv").read_text().splitlines()
    assert len(pairs) == 20 and list((folder / "web" / "reviewed").glob("*.tar"))
    assert not (folder / "out").exists()


@needs_browser
def test_a_slider_and_the_rule_box_count_as_the_command_does(page, served):
    _, folder = served
    itm = np.concatenate([pq.read_table(one)["itm"].to_numpy() for one in sorted((folder / "web").glob("0*.parquet"))])
    slider = page.locator("#vlp-slider-itm input[type=range]")
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("text=--scores")
    slider.fill("0.7")
    page.wait_for_function("document.querySelector('#vlp-rule textarea').value === 'itm >= 0.7'")
    kept = int((itm >= 0.7).sum())
    texts = page.locator("#vlp-counts tbody tr")
    deadline = time.monotonic() + 30
    while True:
        numbers = [
            int(row.split(" texts\t")[1].split(" of ")[0]) for row in texts.all_inner_texts() if " texts\t" in row
        ]
        if sum(numbers) == kept or time.monotonic() > deadline:
            break
        page.wait_for_timeout(50)
    assert sum(numbers) == kept and len(numbers) == 2
    page.fill("#vlp-rule textarea", "itm >= 0.25 and beauty")
    page.wait_for_selector("#vlp-counts >> text=There is no column beauty in rules")
    page.fill("#vlp-rule textarea", "itm >= 0.25 or best(1)")
    page.wait_for_selector("#vlp-counts table")
    page.locator("#vlp-rule textarea").blur()
    page.wait_for_function("document.querySelector('#vlp-slider-itm input[type=range]').value === '0.25'")
    widest = page.locator("#vlp-slider-itc input[type=range]")
    page.fill("#vlp-rule textarea", "itc >= 0.6")
    page.locator("#vlp-rule textarea").blur()
    page.wait_for_function("document.querySelector('#vlp-slider-itc input[type=range]').value === '0.6'")
    page.wait_for_selector("#vlp-review-card [aria-label$='the rule is itc >= 0.6']")  # the verdicts are its
    page.fill("#vlp-rule textarea", "itm >= 0.25 or best(1)")
    page.locator("#vlp-rule textarea").blur()
    page.wait_for_function("document.querySelector('#vlp-slider-itc input').value !== '0.6'")
    assert widest.input_value() == widest.get_attribute("min")  # no limit is in the rule
    page.click("#vlp-suggest")
    page.wait_for_selector("#vlp-suggestion >> text=labels count for itm")
    assert "<b>" in page.inner_text("#vlp-review-card")  # a text is never HTML


@needs_browser
def test_both_tabs_are_accessible_and_fit_three_widths(page, axe):
    page.focus("#vlp-rule textarea")
    for _ in range(5):  # the rule, then number, reset and range of the first sliders
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("Tab")
    for tab, ready in (("Review CapFilt", "#vlp-counts table"), ("Runs", "#vlp-curves svg")):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_selector(ready)
        for width in (1280, 800, 400):
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_timeout(200)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate("document.querySelector('#vlp-counts table').getBoundingClientRect().right") <= width
        if axe:
            assert serious_problems(page, axe) == []
    assert page.locator("#vlp-curves svg").bounding_box()["width"] >= 600  # it scrolls rather than shrinks
    assert "0.6000" in page.inner_text("#vlp-scores") and page.locator("#vlp-curves svg").count() == 1
    page.evaluate("document.body.classList.add('dark')")  # the curves have dark labels
    ground = "getComputedStyle(document.querySelector('#vlp-curves svg')).backgroundColor"
    assert page.evaluate(ground) == "rgb(248, 250, 252)"
    if not axe:
        pytest.skip("axe-core could not be fetched with npm, so only the width is checked")


def test_no_file_is_served_and_large_uploads_are_refused(served):
    address, folder = served
    (folder / "secret.txt").write_text("secret")
    for path in (*sorted((folder / "web").glob("*"))[:2], folder / "secret.txt", "/etc/passwd", "secret.txt"):
        assert status_of(address, f"gradio_api/file={path}") in (403, 404), path
    boundary = "limit"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'.encode()
    body = head + bytes(21 * 2**20) + f"\r\n--{boundary}--\r\n".encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    assert status_of(address, "gradio_api/upload", body, kind) == 413
    assert status_of(address, "") == 200


@needs_browser
def test_another_host_needs_passwords_and_a_read_only_folder_loses_no_label(served, browser):
    _, folder = served
    command = [sys.executable, "-m", "vlp", "app", "--runs", "runs", "--host", "0.0.0.0"]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 2 and "could use the page; add --auth USER:PASSWORD." in done.stderr
    with serving(folder, "--tables", "web", "--labels", "none", "--auth", "ann:secret") as address:
        assert status_of(address, "config") == 401
        page = browser.new_context().new_page()
        page.set_default_timeout(SECONDS)
        page.goto(address)
        page.fill("input[type=password]", "secret")
        page.locator("input:not([type=password]), textarea").first.fill("ann")
        page.get_by_role("button", name="Login").click()
        page.wait_for_selector("#vlp-review-card .vlp-card")
        shown = page.evaluate(SHOWN)
        press(page, "a")
        page.wait_for_selector("#vlp-error >> text=There is no folder none for the labels")
        assert page.evaluate(SHOWN).split(":")[:2] == shown.split(":")[:2]  # the row stays
        (folder / "none").mkdir()
        press(page, "a")
        assert LabelStore(folder / "none").read()["reviewer"].to_pylist() == ["ann"]
        page.context.close()
