# Sourced by the other scripts: a virtual environment with vlp in it, made once and used again.
# VLP_VENV names another place for it; VLP_PYTHON another interpreter.
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
    echo "torch and torchvision do not fit together (a CPU-only torch beside the registry's torchvision does this): remove $venv and let this script install both." >&2
    exit 1
fi
