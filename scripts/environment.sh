# Sourced by other scripts: activates a virtual environment with vlp and its test tools, and creates it if needed.
# VLP_VENV sets its location (default .venv), VLP_PYTHON the interpreter that creates it.
venv="${VLP_VENV:-.venv}"
if [ ! -x "$venv/bin/python" ]; then
    "${VLP_PYTHON:-python3}" -m venv "$venv"
fi
# shellcheck disable=SC1091
. "$venv/bin/activate"
stamp="$venv/.vlp-installed"
if [ ! -f "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
    python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
    touch "$stamp"
fi
if ! python -c 'import torch, torchvision' 2>"$venv/import-error"; then
    tail -n 1 "$venv/import-error" >&2
    echo "The installed torch and torchvision are incompatible, such as a CPU-only torch with a CUDA torchvision: remove $venv and rerun this script to install both." >&2
    exit 1
fi
