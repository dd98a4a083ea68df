#!/usr/bin/env bash
# From a pretrained model and clean human shards to cleaned web shards: captioner, filter, CapFilt.
# Use: scripts/capfilt.sh PRETRAINED_MODEL 'human/*.tar' 'web/*.tar' OUT
set -euo pipefail
model=$1 human=$2 web=$3 out=$4
for task in captioner filter; do
    accelerate launch -m vlp finetune "configs/$task.yaml" start_from="$model" output="$out/$task" \
        "data.sources=[{shards: \"$human\"}]"
done
accelerate launch -m vlp capfilt run configs/capfilt.yaml captioner="$out/captioner/model" filter="$out/filter/model" \
    shards="$web" human="$human" output="$out/cleaned"
