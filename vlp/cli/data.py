"""`vlp data`: make, import and inspect shards."""

import os
from collections import Counter
from typing import Annotated, Literal

import typer

from vlp.cli.data_import_tasks import import_app
from vlp.cli.options import Json, ShardsFolder, ShardSize, print_values

data_app = typer.Typer(no_args_is_help=True, help="Make, import and inspect shards.")
data_app.add_typer(import_app, name="import")


@data_app.command("make")
def data_make(
    output: ShardsFolder,
    num: Annotated[int, typer.Option(min=1, help="Number of samples.")] = 1000,
    split: Annotated[
        Literal["human", "web"], typer.Option(help="human (all texts right) or web (some texts wrong).")
    ] = "human",
    wrong: Annotated[float, typer.Option(min=0, max=1, help="Share of wrong texts in a web split.")] = 0.4,
    image_size: Annotated[int, typer.Option(min=16, max=4096, help="Side of the images in pixels.")] = 64,
    shard_size: ShardSize = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal shards.")] = 0,
) -> None:
    """Make synthetic scenes whose true captions are known, for tests and the demo.

    Example: vlp data make data/web --num 16000 --split web --wrong 0.4
    """
    from vlp.demo.scenes import write_scenes
    from vlp.log import Progress

    with Progress("samples", num) as bar:
        write_scenes(output, num, split, wrong, image_size, shard_size, seed, lambda count: bar.add("make", count))
    print(f"Wrote {num} samples to {output}.")


@data_app.command("index")
def data_index(
    shards: Annotated[list[str], typer.Argument(help="Shards: paths, globs, brace patterns or URLs.")],
    out: Annotated[str, typer.Option(help="Folder that sources name as `index`.")],
    workers: Annotated[int, typer.Option(min=0, help="Processes that scan shards; 0: one per core.")] = 0,
    as_json: Json = False,
) -> None:
    """Index shards once for all processes and machines; rerun it when shards have changed.

    Example: vlp data index 'data/web/*.tar' --out data/web-index
    """
    from pathlib import Path

    from vlp.data.data_index import open_index
    from vlp.data.index_writer import check_index_output, write_index
    from vlp.data.shard_index import expand_shards
    from vlp.log import Progress

    check_index_output(Path(out))
    paths = expand_shards(shards)
    with Progress("shards", len(paths), quiet=as_json) as bar:
        write_index(paths, Path(out), workers or len(os.sched_getaffinity(0)), bar.add)
    index = open_index(out, paths)
    size = sum(file.stat().st_size for file in Path(out).iterdir())
    bad = Counter(one.reason for one in index.bad())
    samples = int(index.counts.sum())
    facts = {"shards": len(paths), "samples": samples, "bad": dict(bad), "bytes": size, "index": out}
    print_values(facts, as_json)


@data_app.command("answers")
def data_answers(
    shards: Annotated[list[str], typer.Argument(help="Shards of questions: paths, globs, brace patterns or URLs.")],
    out: Annotated[str, typer.Option(help="JSON file for the list.")],
    min_count: Annotated[int, typer.Option(min=1, help="List the answers that occur at least so often.")] = 9,
) -> None:
    """List the frequent answers of training questions, for `vlp evaluate vqa --answers`.

    Example: vlp data answers 'data/vqa-train/*.tar' --out answer_list.json
    """
    from vlp.data.questions import frequent_answers
    from vlp.files import write_json

    found = frequent_answers(shards, min_count)
    write_json(out, found)
    print(f"{out}: {len(found)} answers")


@data_app.command("frame")
def data_frame(
    video: str,
    out: Annotated[str, typer.Option(help="Image to write: FILE.png or FILE.jpg.")],
    number: Annotated[int, typer.Option(min=1, help="Which of the frames, from 1.")] = 1,
    of: Annotated[int, typer.Option(min=1, help="Frames of the video, sampled uniformly.")] = 1,
) -> None:
    """Save a frame of a video. Example: vlp data frame clip.mp4 --number 8 --of 16 --out frame-8.png

    The commands that take a video sample its frames in the same way, with --frames.
    """
    from vlp.data.image_encoding import check_image_file, write_image
    from vlp.data.images import video_frame

    check_image_file(out)
    write_image(out, video_frame(video, number, of))
    print(f"{out}: frame {number} of {of}")


@data_app.command("inspect")
def data_inspect(
    shards: Annotated[list[str], typer.Argument(help="Shards: paths, globs, brace patterns or URLs.")],
    sheet: Annotated[str, typer.Option(help="PNG file for the contact sheet.")] = "contact-sheet.png",
    as_json: Json = False,
) -> None:
    """Count samples, bad samples, captions and image sizes, and draw a contact sheet.

    Example: vlp data inspect 'data/web/*.tar'
    """
    from vlp.data.inspect import inspect_shards
    from vlp.data.shard_index import expand_shards
    from vlp.data.shards import count_samples
    from vlp.files import writing
    from vlp.log import Progress
    from vlp.report.sheets import contact_sheet

    with Progress("samples", count_samples(expand_shards(shards)), quiet=as_json) as bar:
        facts = inspect_shards(shards, lambda stage, done: bar.add(stage, done))
    with writing(sheet) as temporary:
        temporary.write_bytes(contact_sheet(facts.pop("pictures")))
    print_values({**facts, "contact_sheet": sheet}, as_json)
