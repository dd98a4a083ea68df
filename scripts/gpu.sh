#!/usr/bin/env bash
# Measure on a GPU, in the active environment: tests, benchmarks, a training of ViT-B/16 from shards, and some minutes of
# training of a small model. Each part is meant to take less than ten minutes on an H100.
# Usage: scripts/gpu.sh OUT [PART ...]    the parts in OUT/summary.txt of a full run, such as bench-train; default: all
#        scripts/gpu.sh --small OUT       the same with small sizes, for a CPU
# Settings: TRAIN='data/train/*.tar' VALIDATION='data/val/*.tar' (default: generated scenes), MINUTES=8 of the small model.
# All results go to OUT, with a line per part in OUT/summary.txt. A part that fails does not stop the others; the exit code
# is then 1. Rerun the command to run only the parts that are not done.
set -uo pipefail
small=""
[ "${1:-}" = --small ] && { small=yes; shift; }
[ $# -ge 1 ] || { sed -n '4,6s/^# *//p' "$0" >&2; exit 2; }
repository="$(cd "$(dirname "$0")/.." && pwd)"
export PYTHONPATH="$repository${PYTHONPATH:+:$PYTHONPATH}" TOKENIZERS_PARALLELISM=false
python -c 'import vlp.errors' 2>/dev/null || { echo "Activate an environment with vlp's dependencies first, such as: . .venv/bin/activate" >&2; exit 2; }
mkdir -p "$1" || exit 2
out="$(cd "$1" && pwd)"
wanted=" ${*:2} "
train="${TRAIN:-}" validation="${VALIDATION:-}"
cuda="$(python -c 'import torch; print("yes" if torch.cuda.is_available() else "")')"
workers=$(($(nproc) > 13 ? 12 : $(nproc) - 1))
rm -f "$out/summary.txt"
mkdir -p "$out/done"
failed=0

part() { # NAME COMMAND...: run a command once, with its output in OUT/NAME.log
    local name=$1 code=0
    shift
    [[ $wanted = *[a-z]* && $wanted != *" $name "* ]] && return
    if [ -e "$out/done/$name" ]; then
        echo "$name: done before" | tee -a "$out/summary.txt"
        return
    fi
    local started=$SECONDS
    "$@" >"$out/$name.log" 2>&1 </dev/null || code=$?
    if [ "$code" = 0 ]; then
        touch "$out/done/$name"
        echo "$name: done in $((SECONDS - started)) s" | tee -a "$out/summary.txt"
    else
        failed=1
        echo "$name: failed ($code), see $name.log" | tee -a "$out/summary.txt"
    fi
}

machine() { python -c 'import platform, torch
print(platform.platform(), torch.__version__)
print(torch.cuda.get_device_properties(0) if torch.cuda.is_available() else "no GPU")'; }

tests() {
    # tests/conftest.py hides GPUs unless CUDA_VISIBLE_DEVICES is set
    CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}" python -m pytest -q -p no:cacheprovider "$repository"/tests/{models,generation,tasks,training,capfilt/test_pipeline.py}
}

train_from_shards() { # the recipe of ViT-B/16, for some steps
    python -m vlp pretrain "$repository/configs/pretrain-vit-b16.yaml" --resume output="$out/base" \
        tokenizer="$out/tokenizer" "data.sources=[{shards: \"$train\"}]" "${base_settings[@]}"
}

measure() { # NAME WHAT OPTIONS...: write the lines of a benchmark as JSON to OUT/bench-NAME.json
    python -m vlp bench "${@:2}" --json >"$out/bench-$1.json.part" && mv "$out/bench-$1.json.part" "$out/bench-$1.json"
}

make_scenes() {
    rm -rf "$out/scenes"
    python -m vlp data make "$out/scenes/train" --num "$1" --image-size 128 &&
        python -m vlp data make "$out/scenes/val" --num "$2" --image-size 128 --seed 9
}

make_tokenizer() { python -m vlp tokenizer "$train" "$out/tokenizer" --size 4000; }

pretrain() { # OUTPUT KEY=VALUE...
    python -m vlp pretrain "$repository/configs/flickr8k.yaml" --resume output="$1" tokenizer="$out/tokenizer" \
        "data.sources=[{shards: \"$train\"}]" "${settings[@]}" "${@:2}"
}

train_for_minutes() { # train for as many steps as fit in MINUTES by the speed of a short trial
    local steps=3
    if [ -z "$small" ]; then
        pretrain "$out/trial" steps=100 || return
        steps="$(python - "$out/trial" "${MINUTES:-8}" <<'PYTHON'
import json, sys
record = json.loads(open(f"{sys.argv[1]}/log.jsonl").readlines()[-1])
print(max(300, int(float(sys.argv[2]) * 60 * record["pairs_per_second"] / 64)))
PYTHON
        )" || return
        [ ! -e "$out/steps.txt" ] || steps="$(cat "$out/steps.txt")" # a second call keeps the schedule
        echo "$steps" >"$out/steps.txt"
    fi
    pretrain "$out/run" steps="$steps"
}

evaluate() { python -m vlp evaluate retrieval "$out/run/model" "$validation" --limit "$limit" --rerank 16 --out "$out/retrieval.json"; }

pictures() {
    python -m vlp data inspect "$train" --sheet "$out/contact-sheet.png" --json >"$out/data.json" &&
        python - "$out" <<'PYTHON'
import sys
from pathlib import Path
from vlp.report.curves import loss_curves
out = Path(sys.argv[1])
(out / "losses.svg").write_text(loss_curves({"run": out / "run" / "log.jsonl"}))
PYTHON
}

if [ -n "$small" ]; then
    sizes=(--size small --precision fp32) large=("${sizes[@]}") training=2 large_training=2 decoding=2 scoring=2
    repeats=(--repeats 1) peers=() limit=8
    settings=(data.workers=0 batch_size=4 log_every=1 data.max_tokens=16 model.image_encoder.layers=1 model.text_tower.layers=1)
    base_settings=("${settings[@]}" model.image_encoder.{width=32,heads=2} model.text_tower.{width=32,heads=2,feed_forward=64} steps=2 epochs=0)
else
    sizes=(--size base --precision bf16) large=(--size large --precision bf16) training=512 large_training=256
    decoding=64 scoring=256
    repeats=(--repeats 5) peers=(--peers) limit=1000
    settings=(data.workers="$workers" checkpoint_every=500)
    base_settings=(data.workers="$workers" batch_size=512 compile=true steps=60 epochs=0 log_every=10)
fi

part machine machine
if [ -n "$cuda" ]; then part tests tests; fi
# The peer of the training step is LAVIS (scripts/bench/install_peers.sh); those of the other benchmarks come with vlp.
part bench-train measure train train "${sizes[@]}" --batch "$training" "${repeats[@]}" --profile "$out/profile-train.txt"
if [ -n "$cuda" ]; then
    part bench-train-compiled measure train-compiled train "${sizes[@]}" --batch "$training" --compile \
        --profile "$out/profile-compiled.txt"
    part bench-train-large measure train-large train "${large[@]}" --batch "$large_training" --compile \
        --profile "$out/profile-large.txt"
fi
for what in caption rerank attention; do
    part "bench-$what" measure "$what" "$what" "${sizes[@]}" --batch "$decoding" "${peers[@]}"
done
part bench-capfilt measure capfilt capfilt "${sizes[@]}" --batch "$scoring" "${peers[@]}"
if [ -z "$train" ]; then
    part scenes make_scenes $([ -n "$small" ] && echo 24 8 || echo 20000 1000)
    train="$out/scenes/train/*.tar" validation="$out/scenes/val/*.tar"
fi
part tokenizer make_tokenizer
part train-base train_from_shards
part train train_for_minutes
if [ -n "$validation" ]; then part retrieval evaluate; fi
part pictures pictures
exit "$failed"
