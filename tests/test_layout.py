"""Layout: imports run one way, files and functions stay short, public functions are typed."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "vlp").rglob("*.py"))
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
    ["errors", "transfers"],
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


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text()) for path in FILES}


def functions(trees):
    """The path, the node and the place of every function."""
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                yield path, node, f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"


def test_imports_run_one_way(trees):
    wrong = []
    for path, tree in trees.items():
        here = room(path)
        others = sorted(other for other in imported_rooms(tree) - {here} if LEVEL[other] <= LEVEL[here])
        wrong += [f"{path.relative_to(ROOT)} must not import {other}" for other in others]
    assert wrong == []


def test_every_file_states_its_purpose_and_stays_short(trees):
    assert [str(path) for path, tree in trees.items() if not ast.get_docstring(tree)] == []
    lengths = {str(path): len(path.read_text().splitlines()) for path in trees}
    assert {path: length for path, length in lengths.items() if length >= LONGEST_FILE} == {}


def test_functions_stay_short(trees):
    long = []
    for path, node, place in functions(trees):
        lines = node.end_lineno - node.lineno + 1
        allowed = (str(path.relative_to(ROOT / "vlp")), node.name) in LONG_FUNCTIONS
        long += [f"{place} has {lines} lines"] if lines > LONGEST_FUNCTION and not allowed else []
    assert long == []


def test_public_functions_are_typed(trees):
    untyped = []
    for _, node, place in functions(trees):
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        missing = [one.arg for one in arguments if one.annotation is None and one.arg not in ("self", "cls")]
        missing += ["->"] if node.returns is None else []
        untyped += [f"{place} {missing}"] if missing and not node.name.startswith("_") else []
    assert untyped == []
