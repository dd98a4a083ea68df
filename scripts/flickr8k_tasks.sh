#!/usr/bin/env bash
# Retrieval and captioning on Flickr8k: pretrain a small model, finetune it for each, and score all three on the validation
# images. Rerun it to continue.
# Use: scripts/flickr8k_tasks.sh FLICKR8K OUT [PRETRAIN_STEPS [RETRIEVAL_STEPS [CAPTIONING_STEPS]]]
# FLICKR8K holds captions.txt, images/, train.txt and val.txt, the names of the images of both splits.
# SEED=N in the environment sets the seed of the pretraining (default 0).
set -euo pipefail
command -v vlp >/dev/null || { echo "Activate an environment with vlp first, for example: . .venv/bin/activate" >&2; exit 2; }
[ $# -ge 2 ] || { sed -n '4s/^# //p' "$0" >&2; exit 2; }
configs="$(cd "$(dirname "$0")/../configs" && pwd)"
flickr8k=$1 out=$2 pretrain_steps=${3:-1500} retrieval_steps=${4:-350} captioning_steps=${5:-500}

for split in train val; do
    [ -e "$out/data/$split" ] || vlp data import flickr8k "$flickr8k/captions.txt" "$out/data/$split" \
        --images "$flickr8k/images" --names "$flickr8k/$split.txt"
done
[ -e "$out/tokenizer" ] || vlp tokenizer "$out/data/train/*.tar" "$out/tokenizer" --size 4000
data="data.sources=[{shards: \"$out/data/train/*.tar\"}]"
vlp pretrain "$configs/flickr8k.yaml" --resume output="$out/pretrained" tokenizer="$out/tokenizer" "$data" \
    steps="$pretrain_steps" seed="${SEED:-0}"

finetune() {  # RECIPE NAME STEPS: the recipe's settings are for large models, so its batch and learning rate do not fit
    vlp finetune "$configs/$1.yaml" --resume output="$out/$2" start_from="$out/pretrained/model" "$data" steps="$3" epochs=0 \
        image_size=0 batch_size=64 data.workers=1 data.augment.operations=0 objective.queue_size=0 objective.alpha=0 \
        optim.learning_rate=3e-4 optim.warmup_steps=30 optim.clip_norm=1
}
finetune retrieval retrieval "$retrieval_steps"
finetune captioning captioner "$captioning_steps"

evaluate() {  # TASK NAME [option ...]
    [ ! -e "$out/$2/$1.json" ] || return 0
    echo "$1 of $2:"
    vlp evaluate "$1" "$out/$2/model" "$out/data/val/*.tar" --dataset flickr8k/val --out "$out/$2/$1.json" "${@:3}"
}
for model in pretrained retrieval; do evaluate retrieval "$model" --rerank 16; done
for model in pretrained captioner; do evaluate captioning "$model" --prompt "a picture of"; done
