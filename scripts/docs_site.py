"""Build the documentation as a site, without network: README.md, docs/, the tour and the reference as web pages.

    python scripts/docs_site.py build/site      # open build/site/site/index.html

The reference is written anew by every build. Warnings (broken links, missing anchors) fail the build.
"""

import argparse
import base64
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from docs_reference import api_pages, command_pages, recipes_page

ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for the pages' sources (docs/) and the site (site/)")
    sys.exit(build(parser.parse_args().output))


def build(output: Path) -> int:
    """Write the sources and build the site; the exit code of the builder."""
    write_sources(output)
    builder = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    return subprocess.run(builder, cwd=output, check=False).returncode


def write_sources(output: Path) -> None:
    """Collect every page in output/docs, beside a copy of mkdocs.yml."""
    pages = output / "docs"
    for old in (pages, output / "site"):
        shutil.rmtree(old, ignore_errors=True)
    shutil.copytree(ROOT / "docs", pages, ignore=shutil.ignore_patterns("*.ipynb"))
    shutil.copy(ROOT / "CITATION.cff", pages)
    shutil.copy(ROOT / "CONTRIBUTING.md", pages / "contributing.md")
    (pages / "index.md").write_text(start_page((ROOT / "README.md").read_text()))
    (pages / "recipe-files.md").write_text(recipes_page())
    for notebook in sorted((ROOT / "docs").glob("*.ipynb")):
        write_notebook(notebook, pages)
    navigation = (ROOT / "mkdocs.yml").read_text()
    for folder, written in (("python", api_pages()), ("commands", command_pages())):
        (pages / folder).mkdir()
        for name, text in written.items():
            (pages / folder / f"{name}.md").write_text(text)
        start = f"          - {folder}/index.md\n"  # followed by the pages beside it
        beside = "".join(f"          - {folder}/{name}.md\n" for name in written if name != "index")
        navigation = navigation.replace(start, start + beside)
    unlisted = [path.name for path in sorted(pages.glob("*.md")) if f" {path.name}\n" not in navigation]
    navigation += "  - More:\n" + "".join(f"      - {name}\n" for name in unlisted) if unlisted else ""
    (output / "mkdocs.yml").write_text(navigation)


def start_page(readme: str) -> str:
    """README.md with links that hold in the site."""
    links = {"](docs/": "](", "](CONTRIBUTING.md)": "](contributing.md)", ".ipynb)": ".md)"}
    for old, new in links.items():
        readme = readme.replace(old, new)
    return readme


def write_notebook(path: Path, pages: Path) -> None:
    """A notebook as a page: its texts, its code, and the outputs that are stored in it."""
    text = ""
    for number, cell in enumerate(json.loads(path.read_text())["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            text += f"{source}\n\n"
            continue
        text += f"```python\n{source}\n```\n\n"
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                picture = f"{path.stem}-{number}.png"
                (pages / picture).write_bytes(base64.b64decode("".join(data["image/png"])))
                text += f"![Output of the cell above]({picture})\n\n"
            elif shown := "".join(output.get("text", data.get("text/plain", ""))):
                text += f"```text\n{re.sub(r'`{3,}', '', shown.rstrip())}\n```\n\n"
    (pages / f"{path.stem}.md").write_text(text)


if __name__ == "__main__":
    main()
