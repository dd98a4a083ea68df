#!/usr/bin/env bash
# Pretrain on this machine, with one process per GPU. Rerun the command to continue an interrupted run.
#   one GPU       CUDA_VISIBLE_DEVICES=0 scripts/pretrain.sh configs/pretrain-vit-b16.yaml output=runs/mine 'data.sources=[{shards: "data/*.tar"}]'
#   all GPUs      scripts/pretrain.sh configs/pretrain-vit-b16.yaml output=runs/mine 'data.sources=[{shards: "data/*.tar"}]'
#   no GPU        PROCESSES=2 scripts/pretrain.sh ...      (default: one process, which uses all cores)
#   SLURM         sbatch --nodes=4 scripts/slurm/pretrain.sbatch ...
# Other clusters: start `torchrun --nnodes 4 --node-rank I --nproc-per-node 8 --master-addr HOST -m vlp pretrain --resume ...` on each machine.
set -euo pipefail
python -c 'import vlp.errors' 2>/dev/null || { echo "Activate an environment with vlp first, for example: . .venv/bin/activate" >&2; exit 2; }
processes="${PROCESSES:-$(python -c 'import torch; print(max(torch.cuda.device_count(), 1))')}"
[ "$processes" -gt 1 ] || exec python -m vlp pretrain --resume "$@"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # data workers and GPUs do the work
exec torchrun --standalone --nproc-per-node="$processes" -m vlp pretrain --resume "$@"
