"""Imports: no module of vlp changes the process that imports it, and `import vlp` is quick."""

import json
import os
import subprocess
import sys

# Imports the libraries first, so that only what vlp itself changes is seen.
IMPORT_EVERYTHING = """
import ast, importlib, json, os, pathlib, signal, sys, warnings
import vlp

root = pathlib.Path(vlp.__path__[0])
paths = sorted(path for path in root.rglob("*.py") if path.name != "__init__.py")
for path in paths:
    for node in ast.parse(path.read_text()).body:
        for inner in ast.walk(node) if isinstance(node, (ast.With, ast.Import, ast.ImportFrom)) else ():
            libraries = [one.name for one in inner.names] if isinstance(inner, ast.Import) else []
            libraries += [inner.module] if isinstance(inner, ast.ImportFrom) else []
            for library in libraries:
                if library.split(".")[0] not in ("vlp", "__future__"):
                    importlib.import_module(library)
import logging, matplotlib, random, resource, numpy, torch

def state():
    return {
        "matplotlib's backend": str(dict.__getitem__(matplotlib.rcParams, "backend")),
        "matplotlib's settings": str(sorted(dict.items(matplotlib.rcParams), key=str)),
        "threads of torch": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "torch's defaults": [str(torch.get_default_dtype()), torch.is_grad_enabled()],
        "CPU attention and matmul": [torch.get_float32_matmul_precision(), torch.backends.mkldnn.enabled],
        "random states": [hash(random.getstate()), torch.initial_seed(), str(numpy.random.get_state()[1][:4])],
        "warnings filters": [str(one) for one in warnings.filters],
        "signal handlers": {str(one): str(signal.getsignal(one)) for one in signal.valid_signals()},
        "log handlers": [str(logging.root.handlers), logging.root.level, logging.getLogger("vlp").level],
        "limits": [resource.getrlimit(one) for one in (resource.RLIMIT_NOFILE, resource.RLIMIT_AS)],
        "folder, excepthook and path": [os.getcwd(), str(sys.excepthook), sys.path],
    }

environment, before = dict(os.environ), state()
for path in paths:
    importlib.import_module(".".join(path.relative_to(root.parent).with_suffix("").parts))
after = state()
changed = dict(set(os.environ.items()) ^ set(environment.items()))
different = [f"{key}: {before[key]} -> {after[key]}" for key in before if before[key] != after[key]]
print(json.dumps(different + [f"{name} in the environment" for name in changed]))
"""


def run_python(code: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TOKENIZERS", "HF_"))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_import_changes_the_process():
    assert json.loads(run_python(IMPORT_EVERYTHING)) == []


def test_import_vlp_loads_neither_torch_nor_the_rest():
    loaded = run_python("import sys; import vlp; print(*sorted({name.split('.')[0] for name in sys.modules}))").split()
    assert not set(loaded) & {"accelerate", "numpy", "pyarrow", "timm", "torch", "transformers", "typer"}


def test_help_loads_no_torch():
    code = """
import sys
from typer.testing import CliRunner
from vlp.cli.main import app
for command in ([], ["pretrain"], ["capfilt", "score"]):
    assert CliRunner().invoke(app, [*command, "--help"]).exit_code == 0
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""
    assert not set(run_python(code).split()) & {"accelerate", "duckdb", "timm", "torch", "transformers"}


def test_training_starts_without_timm_and_torchvision():
    """They take half of the time to start, and only timm's towers need them."""
    loaded = run_python("import sys, vlp.training.loop; print(*sys.modules)").split()
    assert "torch" in loaded and not {"timm", "torchvision"} & set(loaded)
