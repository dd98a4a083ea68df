"""The commands `vlp capfilt score`, `select`, `duplicates`, `export`, `report`, `run` and `review`."""

from typing import Annotated, Any, Literal

import typer

from vlp.capfilt import STOPPED
from vlp.cli.capfilt_review import capfilt_review
from vlp.cli.options import Json, Overrides, Precision, Shards, print_values
from vlp.config import CapFiltConfig
from vlp.config_reader import load_config

Engine = Literal["processes", "ray"]

capfilt_app = typer.Typer(no_args_is_help=True, help="Caption and filter shards.")
capfilt_app.command("review")(capfilt_review)


@capfilt_app.command("score")
def capfilt_score(
    shards: Shards,
    filter: Annotated[
        list[str], typer.Option(help="Filter: a model folder, or open_clip:NAME,PRETRAINED; repeatable.")
    ],
    captioner: Annotated[
        list[str] | None, typer.Option(help="Captioner: a model folder, or hf:NAME; repeatable.")
    ] = None,
    num_captions: Annotated[int, typer.Option(help="Captions per image and captioner.")] = 1,
    name: Annotated[str, typer.Option(help="Name of the tables: SHARD.NAME.parquet.")] = "capfilt",
    tables: Annotated[str, typer.Option(help="Folder or URL for the tables; default: next to the shards.")] = "",
    seed: int = 0,
    batch_size: int = 64,
    precision: Precision = "auto",
    part: Annotated[str, typer.Option(help="Score only a part of the shards: 3/16 is the third of 16.")] = "",
    failures: Annotated[
        str, typer.Option(help="File for the list of failed shards; default: next to the tables.")
    ] = "",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting, such as decoding.top_p=0.95; repeatable.")
    ] = None,
    engine: Annotated[
        Engine, typer.Option(help="What runs the models: processes of a launcher, or Ray.")
    ] = "processes",
    ray_address: Annotated[
        str, typer.Option(help="Ray cluster, such as auto; default: RAY_ADDRESS, or this machine.")
    ] = "",
    ray_cpus: Annotated[int, typer.Option(min=0, help="CPU cores for each of Ray's actors; 0 chooses.")] = 0,
    ray_gpus: Annotated[
        int | None, typer.Option(min=0, help="GPUs for each of Ray's actors; default: 1 if the cluster has any now.")
    ] = None,
) -> None:
    """Write score tables. Example: vlp capfilt score --shards 'web/*.tar' --captioner C --num-captions 4 --filter F"""
    models = {"captioner": captioner or [], "filter": filter, "num_captions": num_captions, "name": name}
    given = {**models, "tables": tables, "seed": seed, "batch_size": batch_size, "precision": precision}
    config = _capfilt_config(None, settings, shards=shards, **given)
    from vlp.training.stop_signals import stop_on_signals

    with stop_on_signals(STOPPED):  # also during these imports
        from vlp.distributed import is_main

        if engine == "ray":
            from vlp.capfilt.ray_engine import RayOptions, score_shards_on_ray

            counts = score_shards_on_ray(config, RayOptions(ray_address, ray_cpus, ray_gpus), part, failures)
        else:
            from vlp.capfilt.run import score_shards

            counts = score_shards(config, part, failures)
        if is_main():
            print_values(vars(counts), False)


@capfilt_app.command("select")
def capfilt_select(
    rules: Annotated[str, typer.Argument(help="The texts to keep, as an expression; see docs/capfilt.md.")],
    scores: Annotated[list[str], typer.Option(help="Score tables: paths, URLs, globs or a folder; repeatable.")],
    output: Annotated[str, typer.Option("--out", help="Folder or URL for new shards.")] = "",
    uids: Annotated[str, typer.Option(help="File.npy for a uid list in DataComp's format.")] = "",
    table: Annotated[str, typer.Option(help="File.parquet for the selected rows.")] = "",
    human: Annotated[
        list[str] | None, typer.Option(help="With --out: clean shards to add unchanged; repeatable.")
    ] = None,
    also: Annotated[
        list[str] | None, typer.Option(help="NAME=GLOB: other tables, whose columns the rules use as NAME.itm.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Select texts. Example: vlp capfilt select 'itm >= 0.5 and best(1)' --scores 'web/*.capfilt.parquet' --out new"""
    from vlp.capfilt.selection import parse_also, select

    counts = select(scores, rules, output, uids, table, human, parse_also(also or []), quiet=as_json)
    print_values(vars(counts), as_json)


@capfilt_app.command("duplicates")
def capfilt_duplicates(
    shards: Shards,
    model: Annotated[str, typer.Option(help="Model folder whose image embeddings are compared.")] = "",
    against: Annotated[list[str] | None, typer.Option(help="Shards of evaluation sets; repeatable.")] = None,
    above: Annotated[float, typer.Option(help="Lowest cosine of near duplicates.")] = 0.95,
    by: Annotated[
        Literal["images", "captions", "both"], typer.Option(help="Compare bytes and embeddings, captions, or both.")
    ] = "images",
    keep: Annotated[
        str, typer.Option(help="Which image of several to keep: first, largest, or best:itm, best:itc, best:clip.")
    ] = "first",
    tables: Annotated[str, typer.Option(help="Folder or URL of the score tables; default: next to the shards.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Seed for the clusters.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once.")] = 64,
    precision: Precision = "auto",
    as_json: Json = False,
) -> None:
    """Find duplicates. Example: vlp capfilt duplicates --shards 'web/*.tar' --model M --against 'coco-test/*.tar'"""
    from vlp.capfilt.duplicates import find_duplicates

    counts = find_duplicates(
        shards, model, against or [], above, batch_size, precision, by, keep, tables, seed, quiet=as_json
    )
    print_values(vars(counts), as_json)


@capfilt_app.command("export")
def capfilt_export(
    shards: Shards,
    model: Annotated[str, typer.Option(help="Model folder for the embeddings.")],
    output: Annotated[str, typer.Option("--out", help="New folder or address for the files.")],
    layout: Annotated[
        Literal["clip-retrieval", "datacomp"], typer.Option(help="The tools that shall read the files.")
    ] = "clip-retrieval",
    scores: Annotated[str, typer.Option(help="Add the scores of the tables SHARD.NAME.parquet, such as capfilt.")] = "",
    tables: Annotated[str, typer.Option(help="Folder or URL of the score tables; default: next to the shards.")] = "",
    name: Annotated[str, typer.Option(help="With datacomp: arrays are called NAME_img and NAME_txt.")] = "blip",
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once.")] = 64,
    precision: Precision = "auto",
    as_json: Json = False,
) -> None:
    """Export embeddings. Example: vlp capfilt export --shards 'web/*.tar' --model M --layout datacomp --out metadata"""
    from vlp.capfilt.export import export

    counts = export(shards, model, layout, output, scores, tables, name, batch_size, precision, quiet=as_json)
    print_values(vars(counts), as_json)


@capfilt_app.command("report")
def capfilt_report(
    scores: Annotated[
        list[str], typer.Option("--scores", help="Score tables: paths, globs, braces or a folder; repeatable.")
    ],
    output: Annotated[str, typer.Option("--out", help="The page to write.")] = "report.html",
    selected: Annotated[
        str, typer.Option(help="Folder or table that `vlp capfilt select` wrote from these tables.")
    ] = "",
    failures: Annotated[str, typer.Option(help="The list of failed shards.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Seed for sampling images and texts.")] = 0,
) -> None:
    """Write a report of score tables. Example: vlp capfilt report --scores 'web/*.capfilt.parquet' --out report.html"""
    from vlp.log import Progress
    from vlp.report.capfilt_page import STEPS, write_capfilt_report

    with Progress("steps", STEPS) as progress:
        write_capfilt_report(scores, output, selected, failures, seed, progress.add)
    print(f"{output} is complete")


@capfilt_app.command("run")
def capfilt_run(config: str, overrides: Overrides = None) -> None:
    """Score, select and report, in rounds also train. Example: vlp capfilt run configs/capfilt.yaml output=cleaned"""
    settings = _capfilt_config(config, overrides)
    from vlp.training.stop_signals import stop_on_signals

    with stop_on_signals(STOPPED):  # also during these imports
        from vlp.capfilt.rounds import flat, run_rounds
        from vlp.capfilt.run import run_capfilt
        from vlp.distributed import is_main

        for report in run_rounds(settings) if settings.rounds.count else [run_capfilt(settings)]:
            if is_main():
                print_values(flat(report), False)


def _capfilt_config(path: str | None, overrides: list[str] | None, **values: Any) -> CapFiltConfig:
    return load_config(CapFiltConfig, path, overrides, values)
