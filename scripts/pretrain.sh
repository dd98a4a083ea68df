#!/usr/bin/env bash
# Pretrain on all GPUs of this machine (or on several: set what `accelerate config` asks for), in the active environment.
# Use: scripts/pretrain.sh configs/pretrain-vit-b16.yaml output=runs/mine 'data.sources=[{shards: "data/*.tar"}]'
set -euo pipefail
command -v vlp >/dev/null || { echo "Activate an environment with vlp first, such as: . .venv/bin/activate" >&2; exit 2; }
accelerate launch -m vlp pretrain "$@"
