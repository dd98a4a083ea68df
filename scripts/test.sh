#!/usr/bin/env bash
# Check everything that must hold before a change lands: lint, types, tests. Creates the environment on its first run.
# Usage: scripts/test.sh [PYTEST ARGUMENTS]    such as tests/models -k cached; -n 0 runs the tests in one process.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
ruff check .
ruff format --check .
pyright
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # the tests run in a process per core
python -m pytest -n logical --maxprocesses 8 --dist worksteal "$@"
