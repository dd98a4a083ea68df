#!/usr/bin/env bash
# Pretrain on all GPUs of this machine (or on several: set what `accelerate config` asks for).
# Use: scripts/pretrain.sh configs/pretrain-vit-b16.yaml output=runs/mine 'data.sources=[{shards: "data/*.tar"}]'
set -euo pipefail
accelerate launch -m vlp pretrain "$@"
