"""`vlp demo`: the whole CapFilt loop on synthetic scenes."""

from typing import Annotated

import typer


def demo(
    output: Annotated[str, typer.Argument(help="Folder for the data, the models and the report.")] = "demo",
    quick: Annotated[bool, typer.Option("--quick", help="Only check that everything runs, in about a minute.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="For the scenes, the initial weights and all sampling.")] = 0,
    tasks: Annotated[
        str, typer.Option(help="Finetune the model of a finished demo on these tasks: names with commas, or all.")
    ] = "",
) -> None:
    """Run the whole CapFilt loop on synthetic scenes and report the gains. Example: vlp demo runs/demo

    The demo estimates how long it takes before it starts. Rerun an interrupted demo to resume it. After it, the model
    can learn tasks and be scored on them: vlp demo runs/demo --tasks retrieval
    """
    if tasks:
        from vlp.demo.tasks import run_tasks

        run_tasks(output, tasks, quick=quick, seed=seed)
        return
    from vlp.demo.loop import run_demo

    run_demo(output, quick=quick, seed=seed)
