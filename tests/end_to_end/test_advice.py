"""Sentences about wrong calls say what to change, in the words of the command that was called."""

import shlex

import datasets
import pytest

from tests.end_to_end.bad_input import picture, refused, run
from vlp.data.shard_writer import ShardWriter

QUESTION = {"question": "what is it?", "question_id": 1}


@pytest.fixture(scope="module")
def world(tmp_path_factory, scenes, models) -> dict[str, str]:
    """What the commands below name, by the words that stand for it."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "photos").mkdir()
    (folder / "photos" / "a.png").write_bytes(picture())
    (folder / "empty").mkdir()
    datasets.Dataset.from_dict({"size": [1], "name": ["a"]}).save_to_disk(str(folder / "columns"))
    for name, answers in (("asked", []), ("answered", ["a dog"])):
        with ShardWriter(str(folder / name), 10) as writer:
            writer.write("a", picture(), "png", None, {"questions": [{**QUESTION, "answers": answers}]})
    return {
        "MODEL": models[1],
        "SHARDS": f"{scenes}/*.tar",
        "SHARD": f"{scenes}/00004.tar",
        "PHOTO": str(folder / "photos" / "a.png"),
        **{name.upper(): str(folder / name) for name in ("photos", "empty", "columns", "out")},
        **{name.upper(): str(folder / name / "*.tar") for name in ("asked", "answered")},
    }


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("caption MODEL PHOTOS", "photos is a folder; add --out captions.csv."),
        ("caption MODEL SHARD", "00004.tar is a shard; add --out captions.csv."),
        ("runs EMPTY", "there is no log.jsonl in it or two levels below; name the folder of a run."),
        ("data answers SHARDS --out OUT", "The shards hold no questions; name shards of `vlp data import vqa`."),
        (
            "data answers ASKED --out OUT",
            "The questions of the shards have no answers; name shards of a training split.",
        ),
        ("data answers ANSWERED --out OUT", "in the 1 different ones of the shards; lower --min-count."),
        ("classify MODEL PHOTO", 'Give --labels, such as --labels "a dog,a cat"'),
        ("data import hf COLUMNS OUT", "(columns: size, name); give --image."),
        (
            "evaluate captions PHOTOS SHARDS",
            "photos is a folder; name the results file, [{image_id, caption}], and then",
        ),
        ("evaluate captions none.json SHARDS", "There is no results file none.json."),
        ("index nofolder OUT --model MODEL", "There is no folder, file or shard nofolder."),
        ("search MODEL nofolder --query red", "There is no folder, file or shard nofolder."),
    ],
)
def test_advice(world, command, sentence):
    refused(run(*(world.get(word, word) for word in shlex.split(command))), sentence)
