#!/usr/bin/env bash
# Run the paper's ablations on synthetic scenes, in the active environment; it writes a page like docs/ablations.md.
# Usage: scripts/ablations.sh OUT [--seeds 0 1 2] [--jobs 2] [--quick] [--page PAGE.md] [--page-only]
# Rerun an interrupted call to continue it. Each job has one thread unless OMP_NUM_THREADS is set.
set -euo pipefail
command -v vlp >/dev/null || { echo "Activate an environment with vlp first, such as: . .venv/bin/activate" >&2; exit 2; }
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec python "$(dirname "$0")/ablations.py" "$@"
