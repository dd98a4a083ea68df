"""Layout: imports run one way, files and functions stay short, public functions are typed."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "vlp").rglob("*.py"))
IDS = [str(path.relative_to(ROOT)) for path in FILES]
# The rooms (packages and top-level modules of vlp). A room may import itself and the rooms in the lines below it.
ORDER = [
    ["__main__"],
    ["cli"],
    ["app", "bench", "demo"],
    ["capfilt"],
    ["training"],
    ["evaluation"],
    ["index"],
    ["model"],
    ["convert", "tasks", "report"],
    ["generation"],
    ["model_folder"],
    ["data", "models"],
    ["losses", "caption_metrics"],
    ["config_reader"],
    ["config"],
    ["config_model"],
    ["config_ranges"],
    ["distributed", "log"],
    ["extras", "files"],
    ["object_store"],
    ["processes", "remote"],
    ["errors"],
]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
LEVEL["__init__"] = LEVEL["cli"]  # exports the public API
LEVEL["__version__"] = len(ORDER)  # a constant of vlp/__init__.py
LONGEST_FILE, LONGEST_FUNCTION = 400, 60
LONG_FUNCTIONS = {("training/loop.py", "train_steps")}  # the training loop reads from top to bottom


def room(path: Path) -> str:
    return path.relative_to(ROOT / "vlp").with_suffix("").parts[0]


def imported_rooms(tree: ast.Module) -> set[str]:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [f"vlp.{alias.name}" for alias in node.names] if node.module == "vlp" else [node.module]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("vlp.")}


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_imports_run_one_way(path):
    here = room(path)
    wrong = {other for other in imported_rooms(ast.parse(path.read_text())) - {here} if LEVEL[other] <= LEVEL[here]}
    assert not wrong, f"{path.relative_to(ROOT)} must not import {wrong}"


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_files_and_functions_stay_short(path):
    text = path.read_text()
    tree = ast.parse(text)
    assert len(text.splitlines()) < LONGEST_FILE
    assert ast.get_docstring(tree), "the first line must state the purpose of the file"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            long = node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION
            allowed = (str(path.relative_to(ROOT / "vlp")), node.name) in LONG_FUNCTIONS
            assert allowed or not long, f"line {node.lineno}: {node.name} has more than {LONGEST_FUNCTION} lines"


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_public_functions_are_typed(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            untyped = [one.arg for one in arguments if one.annotation is None and one.arg not in ("self", "cls")]
            assert not untyped and node.returns is not None, f"line {node.lineno}: {node.name} {untyped}"
