"""Starts the processes that `accelerate launch --cpu` was asked for: by itself, without MPI, it starts only one."""

import os
import sys

from vlp.errors import UserError

# What launchers that do start every process leave in the environment.
STARTED = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "MPI_LOCALNRANKS")


def start_missing_processes(arguments: list[str]) -> None:
    """Replace this process by as many as `accelerate launch --cpu --num_processes N` was asked for.

    Does nothing under any other launcher, and nothing with one process.

    Args:
        arguments: of `vlp`, without the program's name.

    Raises:
        UserError: accelerate was asked for several processes and how many cannot be found.
    """
    alone = os.environ.get("ACCELERATE_USE_CPU") == "True" and not any(name in os.environ for name in STARTED)
    if not alone or "MASTER_PORT" not in os.environ:  # accelerate sets a port when it was asked for more than one
        return
    asked = _asked_for()
    if asked is None:
        raise UserError(
            "accelerate started one process of several; start them with "
            f"torchrun --nproc-per-node N -m vlp {' '.join(arguments)}."
        )
    del os.environ["MASTER_PORT"]
    processes, restarts = asked
    launch = ["--standalone", "--nproc-per-node", str(processes), "--max-restarts", str(restarts)]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "torch.distributed.run", *launch, "-m", "vlp", *arguments])


def _asked_for() -> tuple[int, int] | None:
    """`--num_processes` and `--max_restarts` of the accelerate launcher that started this process.

    None where the processes are of several machines, or cannot be read.
    """
    import psutil
    from accelerate.commands.launch import launch_command_parser

    try:
        words = psutil.Process().parent().cmdline()
    except (psutil.Error, AttributeError):
        return None
    for place, word in enumerate(words):
        if word in ("launch", "accelerate.commands.launch") or word.endswith("accelerate-launch"):
            asked, _ = launch_command_parser().parse_known_args(words[place + 1 :])
            several = (asked.num_machines or 1) > 1 or asked.num_processes is None
            return None if several else (asked.num_processes, asked.max_restarts or 0)
    return None
