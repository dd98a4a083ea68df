"""The documentation's site builds without network and without warnings, and holds every page, command and room."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
# Attributes whose address a browser loads by itself. Links (`<a href>`) are not loaded.
LOADED = re.compile(r"<(?!a\b)\w+[^>]*?\b(?:src|href|poster)=[\"']?((?:https?:)?//[^\"' >]+)")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site, made by a process without a way out: its proxy is a closed port."""
    folder = tmp_path_factory.mktemp("site")
    closed = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    command = [sys.executable, str(ROOT / "scripts" / "docs_site.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env={**os.environ, **closed})
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_has_every_page_in_its_navigation(site):
    named = set(re.findall(r" ([\w/.-]+\.md)$", (site / "mkdocs.yml").read_text(), re.MULTILINE))
    written = {str(path.relative_to(site / "docs")) for path in (site / "docs").rglob("*.md")}
    assert named == written
    for page in written:
        folder, name = os.path.split(page.removesuffix(".md"))
        assert (site / "site" / folder / ("" if name == "index" else name) / "index.html").is_file(), page


def test_no_page_loads_anything_from_elsewhere(site):
    for page in (site / "site").rglob("*.html"):
        assert LOADED.findall(page.read_text()) == [], page
    for style in (site / "site").rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//", style.read_text()), style


def test_the_reference_has_every_command_and_the_public_api(site):
    from vlp.cli.main import app

    commands = "".join(path.read_text() for path in (site / "docs" / "commands").glob("*.md"))
    for command in app.registered_commands:
        assert f"\n## vlp {command.name or command.callback.__name__.replace('_', '-')}\n" in commands
    assert "## vlp capfilt select\n" in commands and "## vlp data import coco\n" in commands
    assert "--min-length" in commands and "vlp capfilt score --shards" in commands
    api = (site / "docs" / "python" / "index.md").read_text()
    assert "## vlp.load_model" in api and "### Model.embed_images" in api and "**Raises**" in api
    home = (site / "site" / "index.html").read_text()
    assert "Python in ten lines" in home and 'src="report.png"' in home


def test_a_broken_link_fails_the_build(site):
    page = site / "docs" / "own-shards.md"
    page.write_text(page.read_text().replace("(data.md)", "(nowhere.md)"))
    builder = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(builder, cwd=site, capture_output=True, text=True)
    assert done.returncode != 0 and "page does not exist" in done.stdout + done.stderr
