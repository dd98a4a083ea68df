"""The notebook docs/tour.ipynb runs from top to bottom, here with small sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
EXECUTE = "import sys; from nbclient.cli import main; main(sys.argv[1:])"


def test_the_tour_runs(tmp_path):
    notebook = json.loads((ROOT / "docs" / "tour.ipynb").read_text())
    (parameters,) = [cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", ())]
    parameters["source"] = [
        f"FOLDER, CONFIG = {str(tmp_path / 'tour')!r}, {str(ROOT / 'configs' / 'scenes.yaml')!r}\n",
        "SCENES, HELD_OUT, STEPS = 64, 8, 2",
    ]
    path = tmp_path / "tour.ipynb"
    path.write_text(json.dumps(notebook))
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "IPYTHONDIR": str(tmp_path),
        "JUPYTER_RUNTIME_DIR": str(tmp_path),
    }
    command = [sys.executable, "-c", EXECUTE, str(path), "--inplace", "--timeout=600", "--kernel_name=python3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    cells = json.loads(path.read_text())["cells"]
    shown = [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]
    printed = "".join("".join(output.get("text", "")) for output in shown)
    assert "The right image is the first for" in printed and "texts kept:" in printed
    assert sum("image/png" in output.get("data", {}) for output in shown) == 3  # scenes, losses, attention


def test_the_stored_notebook_is_small():
    """Outputs, where stored, are those of a whole run; large ones would grow the repository with every change."""
    assert (ROOT / "docs" / "tour.ipynb").stat().st_size < 300_000
