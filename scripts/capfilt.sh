#!/usr/bin/env bash
# Clean web shards: finetune a captioner and a filter on clean human shards, then run CapFilt. Rerun it to continue.
# Use: scripts/capfilt.sh PRETRAINED_MODEL 'human/*.tar' 'web/*.tar' OUT [key=value for both finetunings ...]
set -euo pipefail
command -v vlp >/dev/null || { echo "Activate an environment with vlp first, for example: . .venv/bin/activate" >&2; exit 2; }
[ $# -ge 4 ] || { sed -n '3s/^# //p' "$0" >&2; exit 2; }
configs="$(cd "$(dirname "$0")/../configs" && pwd)"
model=$1 human=$2 web=$3 out=$4
shift 4
finetune() {  # NAME RECIPE [key=value ...]
    [ -e "$out/$1/results.json" ] || accelerate launch -m vlp finetune "$configs/$2.yaml" --resume start_from="$model" \
        output="$out/$1" "data.sources=[{shards: \"$human\"}]" "${@:3}"
}
finetune captioner captioning "$@"
finetune filter retrieval "$@"
accelerate launch -m vlp capfilt run "$configs/capfilt.yaml" captioner="$out/captioner/model" filter="$out/filter/model" \
    shards="$web" human="$human" output="$out/cleaned"
