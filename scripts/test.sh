#!/usr/bin/env bash
# Everything that must hold before a change lands: environment, lint, tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
ruff check .
ruff format --check .
python -m pytest "$@"
