"""The command line: commands run on real input, and wrong calls end with one sentence and exit code 2."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vlp.cli.main import app, main
from vlp.config_reader import save_config

ROOT = Path(__file__).parents[2]


def vlp(*arguments, code=0):
    """Run a command in this process and return its output."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def fails(capsys, monkeypatch, *arguments) -> str:
    """Run a command that must exit with code 2 and one sentence; returns the sentence."""
    monkeypatch.setattr(sys, "argv", ["vlp", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    error = capsys.readouterr().err
    assert stop.value.code == 2, error
    assert error.startswith("vlp: ")
    assert len(error.strip().splitlines()) == 1
    return error


def test_all_commands_from_scenes_to_captions(tmp_path, run_config):
    vlp("data", "make", tmp_path / "web", "--num", 24, "--split", "web", "--image-size", 32, "--shard-size", 12)
    out = vlp("data", "inspect", tmp_path / "web/*.tar", "--sheet", tmp_path / "sheet.png", "--json")
    assert json.loads(out)["samples"] == 24
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    vlp("tokenizer", tmp_path / "web/*.tar", tmp_path / "words", "--size", 150)
    config = run_config("run", f"tokenizer={tmp_path}/words", f"data.sources=[{{shards: '{tmp_path}/web/*.tar'}}]")
    save_config(config, tmp_path / "pretrain.yaml")
    vlp("pretrain", tmp_path / "pretrain.yaml", "steps=2")
    model = f"{config.output}/model"
    vlp(
        "finetune",
        tmp_path / "pretrain.yaml",
        "steps=2",
        "task=captioning",
        f"start_from={model}",
        f"output={tmp_path}/c",
    )
    vlp("capfilt", "score", "--shards", tmp_path / "web/*.tar", "--captioner", tmp_path / "c/model", "--filter", model)
    counts = json.loads(
        vlp(
            "capfilt",
            "select",
            "itm >= 0",
            "--scores",
            tmp_path / "web/*.capfilt.parquet",
            "--out",
            tmp_path / "new",
            "--json",
        )
    )
    assert counts["images"] == 24
    from PIL import Image

    Image.new("RGB", (30, 30), "red").save(tmp_path / "red.png")
    out = vlp("caption", model, tmp_path / "red.png", "--max-length", 8, "--json")
    assert list(json.loads(out)) == [str(tmp_path / "red.png")]
    several = ("--max-length", 8, "--beams", 0, "--num-captions", 3, "--ban", "red", "--json")
    texts = json.loads(vlp("caption", model, tmp_path / "red.png", *several))[str(tmp_path / "red.png")]
    assert len(texts) == 3 and all("red" not in text.split() for text in texts)
    assert "BlipForConditionalGeneration" in vlp("convert", f"{tmp_path}/c/model", tmp_path / "theirs", "--to", "hf")
    vlp("convert", tmp_path / "theirs", tmp_path / "back")
    there, back = (
        vlp("caption", folder, tmp_path / "red.png") for folder in (f"{tmp_path}/c/model", tmp_path / "back")
    )
    assert there == back
    hits = json.loads(vlp("search", model, tmp_path, "--query", "a red circle", "--rerank", 2, "--json"))
    assert {hit["name"] for hit in hits} >= {str(tmp_path / "red.png")}
    hits = json.loads(vlp("search", model, tmp_path / "web/*.tar", "--query", "a red circle", "--top", 5, "--json"))
    assert len(hits) == 5
    matches = json.loads(vlp("match", model, tmp_path / "red.png", "a red circle", "a blue square", "--json"))
    assert [one["text"] for one in matches] == ["a red circle", "a blue square"] and 0 <= matches[1]["itm"] <= 1
    scores = json.loads(vlp("evaluate", "retrieval", model, tmp_path / "web/*.tar", "--rerank", 3, "--json"))
    assert scores["metrics"]["images"] == 24
    vlp("evaluate", "captioning", model, tmp_path / "web/*.tar", "--limit", 5, "--out", tmp_path / "scores.json")
    assert json.loads((tmp_path / "scores.json").read_text())["metrics"]["images"] == 5


def test_the_documented_pretraining_from_a_converted_model_takes_its_tokenizer(tmp_path, models, scenes):
    page = (ROOT / "docs" / "convert.md").read_text().splitlines()
    (line,) = (line for line in page if "vlp pretrain configs/pretrain-vit-b16.yaml start_from=" in line)
    command = shlex.split(line.split(" # ")[0])[1:]
    command[1] = ROOT / command[1]
    small = [f"data.sources=[{{shards: '{scenes}/*.tar'}}]", "data.workers=0", "objective.queue_size=0"]
    small += ["batch_size=8", "steps=1", "epochs=0", f"start_from={models[1]}", f"output={tmp_path}/base"]
    vlp(*command, *small)
    assert (tmp_path / "base/model/tokenizer.json").read_text() == Path(models[1], "tokenizer.json").read_text()


def test_mistakes_are_one_sentence(tmp_path, capsys, monkeypatch, run_config, scenes):
    def fail(*arguments):
        return fails(capsys, monkeypatch, *arguments)

    save_config(run_config("run"), tmp_path / "run.yaml")
    assert "No shard matches" in fail("pretrain", tmp_path / "run.yaml", "data.sources=[{shards: 'no/*.tar'}]")
    assert "did you mean batch_size" in fail("pretrain", tmp_path / "run.yaml", "batchsize=3")
    assert "must be a whole number" in fail("pretrain", tmp_path / "run.yaml", "steps=many")
    assert "There is no config file" in fail("pretrain", tmp_path / "absent.yaml")
    assert "this command takes contrastive or pretrain" in fail("pretrain", tmp_path / "run.yaml", "task=captioning")
    assert "not a model folder" in fail("caption", tmp_path, tmp_path / "x.png")
    assert "exists already" in fail("data", "make", scenes)
    assert "exists already" in fail("pretrain", tmp_path / "run.yaml", f"output={scenes}")
    select = ("capfilt", "select", "itm >= 0.5", "--scores")
    assert "No score table matches" in fail(*select, f"{scenes}/*.capfilt.parquet", "--out", tmp_path / "o")
    assert "is not a score table" in fail(*select, f"{scenes}/*.tar", "--out", tmp_path / "o")
    assert "--also takes NAME=GLOB" in fail(*select, "x", "--out", tmp_path / "o", "--also", "if=x.parquet")
    assert "needs filter" in fail("capfilt", "score", "--shards", f"{scenes}/*.tar", "--filter", "")


def commands(group, name=()):
    """The words that call each command of the command line, such as ("data", "import", "folder")."""
    for one in group.registered_commands:
        yield (*name, one.name or one.callback.__name__)
    for one in group.registered_groups:
        yield from commands(one.typer_instance, (*name, one.name))


@pytest.mark.parametrize("words", list(commands(app)), ids=" ".join)
def test_the_help_of_every_command_has_an_example_of_it(words):
    example = f"Example: vlp {' '.join(words)} "
    assert example in " ".join(vlp(*words, "--help").split())


@pytest.mark.parametrize("group", [(), ("data",), ("data", "import"), ("capfilt",), ("evaluate",)], ids=" ".join)
def test_the_help_of_a_group_lists_its_commands(group):
    text = vlp(*group, "--help")
    below = [words for words in commands(app) if words[: len(group)] == group]
    assert below and all(words[len(group)] in text for words in below)


def test_help_is_quick():
    script = (
        "import sys; import vlp, vlp.cli.main; assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_server_of_workers_imports_for_all_of_them():
    script = """
import multiprocessing, sys
multiprocessing.get_all_start_methods = lambda: ["forkserver", "fork", "spawn"]
from vlp.cli.main import main
sys.argv = ["vlp", "--help"]
try:
    main()
except SystemExit:
    pass
check = "import sys; sys.exit(0 if 'vlp.data.sample_dataset' in sys.modules else 3)"
process = multiprocessing.get_context("forkserver").Process(target=exec, args=(check,))
process.start()
process.join(120)
sys.exit(process.exitcode)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
