#!/usr/bin/env bash
# Pretrain on all GPUs of this machine, or on several machines after `accelerate config`. Run it in an active environment.
# On CPUs, start several processes with `torchrun --nproc_per_node N -m vlp pretrain ...` instead.
# Use: scripts/pretrain.sh configs/pretrain-vit-b16.yaml output=runs/mine 'data.sources=[{shards: "data/*.tar"}]'
set -euo pipefail
command -v vlp >/dev/null || { echo "Activate an environment with vlp first, for example: . .venv/bin/activate" >&2; exit 2; }
accelerate launch -m vlp pretrain "$@"
