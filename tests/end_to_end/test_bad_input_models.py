"""Model folders that are damaged, mixed up or of another kind: one sentence names the folder or the file."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.end_to_end.bad_input import picture, refused, run, tidy


def change_config(change):
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        values = json.loads(path.read_text())
        path.write_text(json.dumps(change(values)))

    return damage


def set_model(*keys: str, value: object):
    """Set a value deep inside the model's config."""

    def change(values: dict) -> dict:
        section = values["model"]
        for key in keys[:-1]:
            section = section[key]
        section[keys[-1]] = value
        return values

    return change_config(change)


def change_weights(change):
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        save_file(change(load_file(path)), path)

    return damage


def write(name: str, content: bytes | str):
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def remove(name: str):
    return lambda folder: (folder / name).unlink()


def as_folder(name: str):
    return lambda folder: ((folder / name).unlink(), (folder / name).mkdir())


def cut(name: str, size: int):
    def damage(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:size])

    return damage


class Evil:
    def __reduce__(self):
        return (print, ("the pickle ran",))


def change_tokenizer(change):
    def damage(folder: Path) -> None:
        path = folder / "tokenizer.json"
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))

    return damage


def without_special(values: dict) -> None:
    values["added_tokens"] = [token for token in values["added_tokens"] if token["content"] != "[ENC]"]


MODELS = {
    "no config": (remove("config.json"), "config.json"),
    "config a folder": (as_folder("config.json"), "config.json"),
    "empty config": (write("config.json", b""), "config.json"),
    "config cut": (cut("config.json", 50), "config.json"),
    "config of binary": (write("config.json", bytes(range(256))), "config.json"),
    "config a list": (write("config.json", b"[]"), "config.json"),
    "config nested deep": (write("config.json", b"[" * 100_000), "config.json"),
    "config with half a character": (change_config(lambda values: {**values, "model": "\ud800"}), "model"),
    "format of another version": (change_config(lambda values: {**values, "format": "vlp-blip-99"}), "format"),
    "format of another kind": (write("config.json", b'{"model_type": "llama"}'), "config.json"),
    "CLIP": (write("config.json", b'{"model_type": "clip"}'), "config.json"),
    "no model in the config": (change_config(lambda values: {"format": values["format"]}), "config.json"),
    "unknown key": (set_model("wings", value=2), "wings"),
    "width a text": (set_model("text_tower", "width", value="wide"), "width"),
    "width 0": (set_model("text_tower", "width", value=0), "width"),
    "negative layers": (set_model("image_encoder", "layers", value=-1), "layers"),
    "width of another model": (set_model("text_tower", "width", value=64), "model.safetensors"),
    "more layers": (set_model("text_tower", "layers", value=3), "model.safetensors"),
    "fewer layers": (set_model("text_tower", "layers", value=1), "model.safetensors"),
    "another vocabulary": (set_model("text_tower", "vocabulary", value=7), "7"),
    "unknown encoder": (set_model("image_encoder", "name", value="vgg"), "vgg"),
    "no weights": (remove("model.safetensors"), "model.safetensors"),
    "empty weights": (write("model.safetensors", b""), "model.safetensors"),
    "weights cut": (cut("model.safetensors", 5000), "model.safetensors"),
    "weights a folder": (as_folder("model.safetensors"), "model.safetensors"),
    "weights of random bytes": (write("model.safetensors", bytes(range(256)) * 9), "model.safetensors"),
    "weights with a huge header": (write("model.safetensors", b"\xff" * 8 + b"{}"), "model.safetensors"),
    "a pickle as weights": (write("model.safetensors", pickle.dumps(Evil())), "model.safetensors"),
    "a tensor missing": (change_weights(lambda state: dict(list(state.items())[1:])), "model.safetensors"),
    "a tensor too many": (change_weights(lambda state: {**state, "x": torch.ones(2)}), "model.safetensors"),
    "a wrong shape": (
        change_weights(lambda state: {name: value[None].clone() for name, value in state.items()}),
        "model.safetensors",
    ),
    "weights of NaN": (
        change_weights(lambda state: {name: torch.full_like(value, float("nan")) for name, value in state.items()}),
        "model.safetensors",
    ),
    "no tokenizer": (remove("tokenizer.json"), "tokenizer.json"),
    "tokenizer cut": (cut("tokenizer.json", 500), "tokenizer.json"),
    "empty tokenizer": (write("tokenizer.json", b""), "tokenizer.json"),
    "tokenizer of another kind": (write("tokenizer.json", b'{"model": {}}'), "tokenizer.json"),
    "tokenizer without [ENC]": (change_tokenizer(without_special), "[ENC]"),
}


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    path.write_bytes(picture())
    return path


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_cannot_be_used_is_named(name, tmp_path, models, photo, scenes, capfd):
    damage, says = MODELS[name]
    folder = tmp_path / "model"
    shutil.copytree(models[1], folder)
    damage(folder)
    refused(run("match", folder, photo, "a red circle"), says)
    if name in ("no config", "weights cut", "a pickle as weights", "no tokenizer", "weights of NaN"):
        refused(run("caption", folder, photo), says)
        refused(run("convert", folder, tmp_path / "out", "--to", "hf"), says)
        refused(run("capfilt", "score", "--shards", scenes / "00004.tar", "--filter", folder), says)
        refused(run("evaluate", "retrieval", folder, scenes / "00004.tar"), says)
        refused(run("search", folder, scenes / "00004.tar", "--query", "red"), says)
        assert not (tmp_path / "out").exists()
    assert "the pickle ran" not in capfd.readouterr().out
    tidy(tmp_path)


PICKLES = {
    "code": lambda path: path.write_bytes(pickle.dumps(Evil())),
    "cut": lambda path: (torch.save({"a": torch.ones(100)}, path), path.write_bytes(path.read_bytes()[:300])),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello"),
    "zip of something else": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)),
    "number": lambda path: torch.save(3, path),
    "list": lambda path: torch.save([torch.ones(2)], path),
    "another model": lambda path: torch.save({"model": {"layer.weight": torch.ones(2, 2)}}, path),
    "names that are numbers": lambda path: torch.save({1: torch.ones(2)}, path),
    "folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("name", PICKLES)
def test_a_checkpoint_that_cannot_be_converted_is_named(name, tmp_path, capfd):
    PICKLES[name](tmp_path / "blip.pth")
    refused(run("convert", tmp_path / "blip.pth", tmp_path / "out"), "blip.pth")
    assert "the pickle ran" not in capfd.readouterr().out
    assert not (tmp_path / "out").exists()
    tidy(tmp_path)


THEIRS = {
    "no weights": {"config.json": b'{"model_type": "blip"}'},
    "bert without settings": {"config.json": b'{"model_type": "bert"}', "model.safetensors": b""},
    "index of nothing": {
        "config.json": b'{"model_type": "bert"}',
        "model.safetensors.index.json": b'{"weight_map": {"a": "no.safetensors"}}',
    },
    "index a list": {"config.json": b'{"model_type": "bert"}', "model.safetensors.index.json": b"[]"},
    "map a list": {"config.json": b'{"model_type": "bert"}', "model.safetensors.index.json": b'{"weight_map": [1]}'},
    "index that leads outside": {
        "config.json": b'{"model_type": "bert"}',
        "model.safetensors.index.json": b'{"weight_map": {"a": "../../etc/passwd"}}',
    },
    "type a number": {"config.json": b'{"model_type": 3}'},
    "type a list": {"config.json": b'{"model_type": []}'},
    "unknown type": {"config.json": b'{"model_type": "gpt2"}'},
}


@pytest.mark.parametrize("name", THEIRS)
def test_a_transformers_folder_that_cannot_be_converted_is_named(name, tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    for file, content in THEIRS[name].items():
        (folder / file).write_bytes(content)
    refused(run("convert", folder, tmp_path / "out"), "theirs")
    assert not (tmp_path / "out").exists()
    tidy(tmp_path)
