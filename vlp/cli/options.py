"""Options that several commands share, and how commands print results."""

import json
from typing import Annotated, Any

import typer

from vlp import config
from vlp.files import write_json

Json = Annotated[bool, typer.Option("--json", help="Print results as JSON.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings that override the file, as key.sub=value.")]
Precision = Annotated[config.Precision, typer.Option(help="Number format of the models.")]
Shards = Annotated[
    list[str], typer.Option("--shards", help="Shards: paths, globs, brace patterns or URLs; repeatable.")
]
ShardsFolder = Annotated[str, typer.Argument(help="New folder for the shards.")]
ShardSize = Annotated[int, typer.Option(min=1, help="Samples per shard.")]
MaxBadShare = Annotated[
    float, typer.Option(min=0, max=1, help="Largest share of bad samples that is skipped; above it, stop.")
]

Resume = Annotated[bool, typer.Option(help="Continue from the last complete checkpoint.")]
Out = Annotated[str | None, typer.Option("--out", help="Also write the numbers to this JSON file.")]


def print_values(values: dict[str, Any], as_json: bool) -> None:
    """Print results, one per line for people or as JSON for programs."""
    if as_json:
        print(json.dumps(values))
        return
    width = max(len(key) for key in values)
    for key, value in values.items():
        print(f"{key:<{width}}  {_readable(value)}")


def _readable(value: Any) -> str:
    """A value with four decimals if it is a float, or three digits if four decimals would make it zero."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if 1e-7 < abs(value) < 0.5e-4 else f"{value:.4f}"  # a BLEU of 1e-9 is zero


def save_results(results: dict[str, Any], out: str | None, as_json: bool) -> None:
    """Print results, and also write them to the JSON file `out` if it is given."""
    if out:
        write_json(out, results)
    print_values(results, as_json)
