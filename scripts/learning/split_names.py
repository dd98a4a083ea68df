"""Split a list of training images, so that recipes are chosen without the validation images.

    python scripts/learning/split_names.py train.txt lists --last 500 --pairs match_pairs.tsv

LISTS/develop.txt has the last names of the list, LISTS/train.txt the others, and LISTS/develop_pairs.tsv the labeled
pairs (as `vlp evaluate matching` reads them) of the images of develop.txt.
"""

import argparse
from pathlib import Path

from shared import run_script

from vlp.errors import UserError
from vlp.files import read_text, write_text


def split_names(names: list[str], last: int) -> tuple[list[str], list[str]]:
    """The names for training, and the last ones for development.

    Raises:
        UserError: there are too few, or one occurs twice.
    """
    if not 0 < last < len(names):
        raise UserError(f"The list has {len(names)} names; --last must be between 1 and {len(names) - 1}, not {last}.")
    if len(set(names)) < len(names):
        raise UserError("A name occurs twice in the list; remove it, or an image could be in both parts.")
    return names[:-last], names[-last:]


def main(arguments: list[str]) -> None:
    """Write the parts of a list."""
    parser = argparse.ArgumentParser("split_names.py", description=__doc__.split("\n")[0])
    parser.add_argument("names", help="text file with a name a line")
    parser.add_argument("output", type=Path, help="folder for the parts")
    parser.add_argument("--last", type=int, default=500, help="how many names to hold back")
    parser.add_argument("--pairs", help="labeled pairs; those of the images held back are written, too")
    given = parser.parse_args(arguments)
    train, develop = split_names(read_text(given.names).split(), given.last)
    for name, part in (("train", train), ("develop", develop)):
        write_text(given.output / f"{name}.txt", "".join(f"{one}\n" for one in part))
    if given.pairs:
        head, *lines = read_text(given.pairs).split("\n")
        held = set(develop)
        kept = [head, *(line for line in lines if line.partition("\t")[0] in held)]
        write_text(given.output / "develop_pairs.tsv", "".join(f"{line}\n" for line in kept))
    print(f"Wrote {len(train)} names for training and {len(develop)} for development to {given.output}.")


if __name__ == "__main__":
    run_script(main)
