"""`vlp demo`: the whole loop on synthetic scenes."""

from typing import Annotated

import typer


def demo(
    output: Annotated[str, typer.Argument(help="Folder for everything the demo makes.")] = "demo",
    quick: Annotated[bool, typer.Option(help="A smoke test of a minute.")] = False,
    seed: int = 0,
) -> None:
    """The whole loop on synthetic scenes, with a report. Example: vlp demo runs/demo"""
    from vlp.demo.loop import run_demo

    run_demo(output, quick=quick, seed=seed)
