"""A browser, and the checker of accessibility, for the tests of the page."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from tests.app.serving import CHROMIUM


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def axe(tmp_path_factory):
    """The source of axe-core, kept in the user's cache; empty without npm or its registry."""
    cached = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vlp-tests" / "axe-core-4.10.2.tgz"
    try:
        if not cached.exists():
            cached.parent.mkdir(parents=True, exist_ok=True)
            packed = tmp_path_factory.mktemp("axe")
            subprocess.run(["npm", "pack", "axe-core@4.10.2"], cwd=packed, check=True, capture_output=True, timeout=60)
            shutil.copy(next(packed.glob("*.tgz")), cached)
        command = ["tar", "-xzOf", str(cached), "package/axe.min.js"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.SubprocessError, StopIteration):
        return ""
