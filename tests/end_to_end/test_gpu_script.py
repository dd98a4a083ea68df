"""`scripts/gpu.sh --small`: it leaves all results, and a part that fails does not stop the others."""

import json
import os
import shutil
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "gpu.sh"
BENCHES = ("train", "caption", "rerank", "attention", "capfilt")


def run_small(folder: Path) -> tuple[int, str]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([SCRIPT, "--small", folder], capture_output=True, text=True, env=environment, timeout=600)
    return done.returncode, (folder / "summary.txt").read_text()


def test_every_part_leaves_its_results_and_a_failed_one_is_named(tmp_path):
    code, summary = run_small(tmp_path)
    assert code == 0 and "failed" not in summary, summary
    for what in BENCHES:
        lines = json.loads((tmp_path / f"bench-{what}.json").read_text())
        assert lines and all(line["ours"] > 0 for line in lines)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["step"] == 3
    assert json.loads((tmp_path / "retrieval.json").read_text())["metrics"]["images"] == 8
    assert (tmp_path / "contact-sheet.png").stat().st_size > 1000
    assert (tmp_path / "losses.svg").read_text().startswith("<svg")

    shutil.rmtree(tmp_path / "run" / "model")
    for name in ("retrieval", "machine"):
        (tmp_path / "done" / name).unlink()
    code, summary = run_small(tmp_path)
    parts = dict(line.split(": ", 1) for line in summary.splitlines())
    assert code == 1 and parts["retrieval"].startswith("failed")
    assert parts["machine"].startswith("done in") and parts["pictures"] == parts["bench-train"] == "done before"
