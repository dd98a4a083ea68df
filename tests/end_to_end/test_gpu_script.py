"""`scripts/gpu.sh --small`: it leaves all results, and a part that fails does not stop the others."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from vlp.cli.main import app

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "gpu.sh"
BENCHES = ("train", "caption", "rerank", "attention", "capfilt")
# Benchmarks, which have tests of their own, only leave their arguments in $CALLS and print a line.
PYTHON = f"""#!/usr/bin/env bash
[ "$1 $2 $3" = "-m vlp bench" ] || exec {sys.executable} "$@"
printf '%s\\t' "${{@:3}}" >>"$CALLS"; echo >>"$CALLS"
echo '[{{"ours": 1.5}}]'
"""


@pytest.fixture
def run_small(tmp_path):
    """A function that runs the script into a folder; the benchmarks leave their arguments in the file `calls`."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(PYTHON)
    python.chmod(0o755)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "CALLS": str(tmp_path / "calls")}
    environment["PATH"] = f"{python.parent}:{os.environ['PATH']}"

    def run(folder: Path, *parts: str) -> tuple[int, str]:
        done = subprocess.run([SCRIPT, "--small", folder, *parts], capture_output=True, env=environment, timeout=600)
        return done.returncode, (folder / "summary.txt").read_text()

    return run


def test_every_part_leaves_its_results_and_a_failed_one_is_named(run_small, tmp_path):
    out = tmp_path / "out"
    assert re.fullmatch(r"machine: done in \d+ s\n", run_small(out, "machine")[1])
    code, summary = run_small(out)
    assert code == 0 and "failed" not in summary, summary
    calls = [line.rstrip("\t").split("\t") for line in (tmp_path / "calls").read_text().splitlines()]
    assert [call[1] for call in calls] == list(BENCHES)
    for name, *words in calls:
        given = typer.main.get_command(app).commands[name].make_context(name, words).params  # raises for a wrong option
        assert (given["size"], given["precision"], given["batch"]) == ("small", "fp32", 2)
        assert json.loads((out / f"bench-{given['what']}.json").read_text()) == [{"ours": 1.5}]
    assert json.loads((out / "run" / "results.json").read_text())["step"] == 3
    assert json.loads((out / "retrieval.json").read_text())["metrics"]["images"] == 8
    assert (out / "contact-sheet.png").stat().st_size > 1000
    assert (out / "losses.svg").read_text().startswith("<svg")

    shutil.rmtree(out / "run" / "model")
    for name in ("retrieval", "machine"):
        (out / "done" / name).unlink()
    code, summary = run_small(out)
    parts = dict(line.split(": ", 1) for line in summary.splitlines())
    assert code == 1 and parts["retrieval"].startswith("failed")
    assert parts["machine"].startswith("done in") and parts["pictures"] == parts["bench-train"] == "done before"
