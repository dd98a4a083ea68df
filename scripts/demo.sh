#!/usr/bin/env bash
# Run the whole loop on synthetic scenes on a fresh machine: create the environment, install vlp, run the demo.
# Usage: scripts/demo.sh [OUTPUT] [--quick]    Arguments go to `vlp demo`.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
vlp demo "$@"
