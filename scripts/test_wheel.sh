#!/usr/bin/env bash
# Build a wheel, install it into a fresh environment, and use it from an empty folder, as a user would.
# Usage: scripts/test_wheel.sh    VLP_PYTHON chooses the interpreter; needs 7 GB in TMPDIR while it runs.
set -euo pipefail
cd "$(dirname "$0")/.."
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH
mkdir "$work/source" "$work/empty"

# setuptools leaves its build folders in the source tree and reads them again, so build from a copy.
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents --target-directory "$work/source"
"${VLP_PYTHON:-python3}" -m venv "$work/venv"
PATH="$work/venv/bin:$PATH"
install() { python -m pip install --quiet --disable-pip-version-check "$@"; }
python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$work" "$work/source"
wheel="$(ls "$work"/vlp-*.whl)"

cd "$work/empty"
install "$wheel"
python - <<'PYTHON'
"""Without extras: every module imports, or asks for an extra in one sentence; package data is there."""
import importlib, pathlib, sys
import vlp
from vlp.errors import UserError

root = pathlib.Path(vlp.__file__).parent
assert root.is_relative_to(sys.prefix), root
assert (root / "py.typed").is_file() and list((root / "report").glob("*.j2")) and list((root / "demo").glob("*.j2"))
for path in sorted(root.rglob("*.py")):
    name = ".".join(path.relative_to(root.parent).with_suffix("").parts)
    try:
        importlib.import_module(name)
    except UserError as error:
        assert "pip install 'vlp[" in str(error), f"{name}: {error}"
PYTHON
vlp --help >help.txt

install "$wheel[all]"
vlp demo out --quick
test -s out/report.html
echo "The wheel works: $(basename "$wheel")"
