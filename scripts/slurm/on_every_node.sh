# Sourced by the sbatch files: run a vlp command on every node of a SLURM job, and requeue the job before its time limit.
# shellcheck shell=bash

on_every_node() { # RESTARTS ARGUMENT...: run `vlp ARGUMENT...` with one torchrun per node and one process per GPU
    local restarts=$1 job=$SLURM_JOB_ID nodes port step code signaled stopping=""
    shift
    # One job of an array has the number of the whole array, so that its number alone would mean all of them.
    [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || job="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
    # The nodes meet at the first node of the job. The port has to be free there.
    mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    port="${RENDEZVOUS_PORT:-$((20000 + SLURM_JOB_ID % 10000))}"

    # A checkpoint may take longer than the 30 seconds that torchrun leaves its processes between SIGTERM and SIGKILL.
    export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=240
    # Nodes that restart meet in a new store, so they need not agree on the number of restarts.
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    # srun does not take the number of cores from the job.
    [ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"

    # --wait ends the job after the loss of a node: srun ends the other nodes 240 seconds after the first has ended.
    # srun runs in the background, so that this shell can handle signals.
    srun --wait=240 torchrun \
        --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="${SLURM_GPUS_ON_NODE:-1}" --max-restarts="$restarts" \
        --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="${nodes[0]}:$port" \
        -m vlp "$@" &
    step=$!

    # SLURM sends USR1 to this shell before the time limit (#SBATCH --signal). SIGTERM to the processes makes training
    # write a checkpoint and scoring keep its finished tables. `scancel --signal` does not signal this shell.
    trap 'signaled=yes stopping=yes; scancel --signal=TERM "$job"' USR1
    while :; do
        signaled="" code=0
        wait "$step" || code=$?
        [ -n "$signaled" ] || break # otherwise the signal ended `wait`, not the step
    done
    trap - USR1

    if [ -n "$stopping" ] && [ "$code" -ne 0 ]; then
        echo "Stopped before the time limit; the job goes back into the queue and will continue."
        scontrol requeue "$job" # runs the sbatch file again, with the same arguments and job number
        exit 0
    fi
    return "$code"
}
