#!/usr/bin/env bash
# The whole loop on synthetic scenes, from a fresh machine: environment, install, demo. Arguments go to `vlp demo`.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
vlp demo "$@"
