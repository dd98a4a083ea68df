"""Write reference pages as Markdown: the Python API from its docstrings, the commands from their help, the recipes from
their comments. `scripts/docs_site.py` calls it; nothing that it writes is stored in the repository."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
SECTIONS = {
    "Args": "Arguments",
    "Returns": "Returns",
    "Raises": "Raises",
    "Attributes": "Attributes",
    "Yields": "Yields",
}
ITEM = re.compile(r"    (\*{0,2}\w+(?:, \*{0,2}\w+)*)(?: \(.*?\))?: (.*)")
HELP_WIDTH = "82"  # columns of a code block in the site

Definition = ast.FunctionDef | ast.ClassDef


# --- The Python API


def api_pages() -> dict[str, str]:
    """A page for each room (a package or a top-level module of vlp) and `index` for what `import vlp` offers."""
    package = ROOT / "vlp"
    rooms = {
        path.name if path.is_dir() else path.stem: path
        for path in sorted(package.iterdir())
        if (path / "__init__.py").is_file() or (path.suffix == ".py" and not path.name.startswith("__"))
    }
    pages = {f"vlp.{name}": room_page(name, path) for name, path in rooms.items() if name != "cli"}
    start = "# Python API\n\nWhat `import vlp` offers, then a page for each room of the package.\n\n"
    for module, name in (
        ("model/loading.py", "load_model"),
        ("model/model.py", "Model"),
        ("models/cpu/optimise.py", "optimise_for_cpu"),
    ):
        source = (package / module).read_text()
        (node,) = [one for one in public(ast.parse(source)) if one.name == name]
        start += definition(node, source, "vlp", "##")
    purposes = "".join(f"- [{name}]({name}.md): {purpose(rooms[name.removeprefix('vlp.')])}\n" for name in pages)
    return {"index": f"{start}## Rooms\n\n{purposes}", **pages}


def purpose(path: Path) -> str:
    """The first line of a module's or package's docstring."""
    source = path / "__init__.py" if path.is_dir() else path
    return (ast.get_docstring(ast.parse(source.read_text())) or path.stem).partition("\n")[0]


def room_page(name: str, path: Path) -> str:
    """The page of a room: its modules, each with its public functions and classes."""
    text = f"# vlp.{name}\n\n{prose(purpose(path))}\n\n"
    for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
        source = file.read_text()
        tree = ast.parse(source)
        definitions = list(public(tree))
        if not definitions:
            continue
        module = ".".join(("vlp", *file.relative_to(ROOT / "vlp").with_suffix("").parts)).removesuffix(".__init__")
        text += f"## {module}\n\n{docstring(tree)}"
        text += "".join(definition(node, source, module, "###") for node in definitions)
    return text


def public(tree: ast.Module | ast.ClassDef) -> Iterator[Definition]:
    """The public functions and classes of a module, or the public methods of a class."""
    for node in tree.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node


def definition(node: Definition, source: str, owner: str, level: str) -> str:
    """A function or class as Markdown: signature, docstring, and for a class its fields and public methods."""
    text = f"{level} {owner.rpartition('.')[2]}.{node.name}\n\n"
    text += f"```python\n{signature(node, source)}\n```\n\n{docstring(node)}"
    if isinstance(node, ast.ClassDef):
        text += "".join(definition(method, source, node.name, f"{level}#") for method in public(node))
    return text


def signature(node: Definition, source: str) -> str:
    """The first lines of a definition, on several lines where they are long; for a class also its fields."""
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        lines = [f"class {node.name}" + (f"({bases})" if bases else "")]
        for one in node.body:
            if isinstance(one, ast.FunctionDef) and one.name == "__init__":
                lines.append("    " + signature(one, source).replace("\n", "\n    "))
            elif isinstance(one, ast.AnnAssign):  # with its comment
                lines += source.splitlines()[one.lineno - 1 : one.end_lineno]
        return "\n".join(lines)
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"def {node.name}({ast.unparse(node.args)}){returns}"
    if len(line) <= 100:
        return line
    arguments = re.split(r", (?=\*{0,2}\w+(?::|=|,|$)|\*,)", ast.unparse(node.args))
    return f"def {node.name}(\n" + "".join(f"    {one},\n" for one in arguments) + f"){returns}"


def docstring(node: Definition | ast.Module) -> str:
    """A docstring as Markdown: its sections become headed lists."""
    lines = (ast.get_docstring(node) or "").splitlines()
    out: list[str] = []
    section = ""
    for line in lines:
        if line.rstrip(":") in SECTIONS and line.endswith(":"):
            section = line.rstrip(":")
            out += ["", f"**{SECTIONS[section]}**", ""]
        elif section and (item := ITEM.fullmatch(line)):
            out.append(f"- `{item[1]}`: {prose(item[2])}")
        elif section and line.startswith("    "):
            out.append("    " * out[-1].startswith(("- ", "    ")) + prose(line.strip()))
        else:
            section = section if not line else ""
            out.append(line if line.startswith("    ") else prose(line))
    return "\n".join(out).strip() + "\n\n"


def prose(line: str) -> str:
    """A line of a docstring in which brackets are no links and angle brackets no tags; code spans stay."""
    parts = line.split("`")
    parts[::2] = [re.sub(r"([\[\]<>*_])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


# --- The commands


def command_pages() -> dict[str, str]:
    """A page for each group of commands, and `index` for the commands without a group; from their help."""
    import typer

    from vlp.cli.main import app

    commands = vars(typer.main.get_command(app))["commands"]
    groups = {name: one for name, one in commands.items() if hasattr(one, "commands")}
    pages = {}
    for name, group in groups.items():
        texts = [command_text(one, *words) for *words, one in leaves(group, name)]
        pages[name] = f"# vlp {name}\n\n{help_text(group)}" + "".join(texts)
    single = "".join(command_text(one, name) for name, one in commands.items() if name not in groups)
    listed = "".join(f"- [vlp {name}]({name}.md): {help_text(group).strip()}\n" for name, group in groups.items())
    intro = "# Commands\n\n`vlp COMMAND --help` prints the same. Groups have pages of their own:\n\n"
    return {"index": f"{intro}{listed}\n{single}", **pages}


def leaves(group: object, *words: str) -> Iterator[tuple]:
    """The words and the command of every command in a group and in the groups within it."""
    for name, one in vars(group)["commands"].items():
        if hasattr(one, "commands"):
            yield from leaves(one, *words, name)
        else:
            yield *words, name, one


def command_text(command: object, *words: str) -> str:
    """One command: its help with the examples, and its arguments and options as `--help` prints them."""
    from typer.testing import CliRunner

    from vlp.cli.main import app

    plain = {"COLUMNS": HELP_WIDTH, "TERMINAL_WIDTH": HELP_WIDTH, "NO_COLOR": "1", "TERM": "dumb"}
    result = CliRunner().invoke(app, [*words, "--help"], env=plain)
    assert result.exit_code == 0, result.output
    boxes = result.output[result.output.index("╭") :]
    lines = []
    for line in boxes.splitlines():
        if line.startswith("╭"):
            lines += ["", line.strip("╭─╮ ").upper()]
        elif line.startswith("│"):
            lines.append(line.strip("│").rstrip())
    options = "\n".join(lines).strip("\n")
    return f"## vlp {' '.join(words)}\n\n{help_text(command)}```text\n{options}\n```\n\n"


def help_text(command: object) -> str:
    """A command's help, each example (`vlp ...`) as a code block."""
    text = vars(command)["help"] or ""
    out = ""
    for paragraph in re.split(r"\n\s*\n", text.replace("\b", "").strip()):
        words, example, call = re.sub(r"\s*\n\s*", " ", paragraph).partition(": vlp ")
        out += f"{prose(words)}:\n\n    vlp {call}\n\n" if example else f"{prose(words)}\n\n"
    return out


# --- The recipes


def recipes_page() -> str:
    """Every recipe of configs/ with its first comment: command, time and scores to expect."""
    text = "# Recipes of configs/\n\n"
    text += "A recipe says what differs from the defaults. `vlp config RECIPE` prints all settings.\n\n"
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        lines = path.read_text().splitlines()
        count = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
        comment = "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[:count])
        # Commands are indented by two or three spaces in the comments, and by four in Markdown.
        comment = re.sub(r"^ {2,3}(?=\S)", "    ", comment, flags=re.MULTILINE)
        blocks = "\n".join(line if line.startswith("    ") else prose(line) for line in comment.splitlines())
        text += f"## {path.relative_to(ROOT)}\n\n{blocks}\n\n"
    return text
