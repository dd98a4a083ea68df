#!/usr/bin/env bash
# The paper's ablations in the small, on synthetic scenes, in the active environment; docs/ablations.md is its page.
# Use: scripts/ablations.sh OUT [--seeds 0 1 2] [--jobs 2] [--quick] [--page PAGE.md] [--page-only]
# Called again it goes on where it was stopped. Each job has one thread unless OMP_NUM_THREADS says otherwise.
set -euo pipefail
command -v vlp >/dev/null || { echo "Activate an environment with vlp first, such as: . .venv/bin/activate" >&2; exit 2; }
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec python "$(dirname "$0")/ablations.py" "$@"
