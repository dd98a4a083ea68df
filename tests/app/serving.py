"""The page in a process of its own, opened in a browser."""

import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM = "/usr/bin/chromium"
ROOT = Path(__file__).parent.parent.parent
SECONDS = 60_000  # milliseconds that a busy machine may take
needs_browser = pytest.mark.skipif(not os.path.exists(CHROMIUM), reason=f"there is no browser {CHROMIUM}")


class serving:
    """`vlp app` in a process of its own; yields its address."""

    def __init__(self, folder, *arguments):
        self.command = [sys.executable, "-m", "vlp", "app", "--port", "0", *arguments]
        self.folder = folder

    def __enter__(self):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        # A proxy must not be asked for the page.
        environment |= {"http_proxy": "http://127.0.0.1:9", "no_proxy": "", "NO_PROXY": ""}
        self.process = subprocess.Popen(
            self.command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, self.process.communicate()
        return found[0]

    def __exit__(self, *error):
        self.process.terminate()
        _, errors = self.process.communicate(timeout=60)
        assert self.process.returncode == 0 and "Traceback" not in errors, errors


@contextmanager
def opened_page(browser, address):
    """The page at 1280 pixels. Every other address is blocked; it fails if one is asked for, or on an error."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(SECONDS)
    elsewhere, errors = [], []

    def only_here(route):
        if route.request.url.startswith((address, "data:", "blob:")):
            route.continue_()
        else:
            elsewhere.append(route.request.url)
            route.abort()

    context.route("**/*", only_here)
    opened = context.new_page()
    opened.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(address)
    yield opened
    context.close()
    assert elsewhere == [] and errors == []


def serious_problems(page, axe):
    """What axe finds that is serious or critical."""
    page.add_script_tag(content=axe)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]


def status_of(address, path, data=None, headers=None):
    try:
        request = urllib.request.Request(address + path, data, headers or {})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
