"""`vlp config`: the whole config that a recipe stands for."""

from typing import Annotated

import typer

from vlp.cli.options import Overrides
from vlp.config import RunConfig
from vlp.config_reader import as_yaml, command_of, load_any_config


def config(
    recipe: Annotated[str, typer.Argument(help="A YAML file for training or for CapFilt.")], overrides: Overrides = None
) -> None:
    """Print a recipe with every setting, including the defaults. Example: vlp config configs/captioning.yaml seed=1

    The keys of the recipe tell whether it is for training or for CapFilt; the first line of the output says which.
    """
    resolved = load_any_config(recipe, overrides)
    command = command_of(type(resolved), resolved.task if isinstance(resolved, RunConfig) else "")
    print(f"# for vlp {command}\n{as_yaml(resolved)}", end="")
