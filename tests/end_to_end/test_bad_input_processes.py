"""Kills, full disks, simultaneous runs and vanishing shards: outputs are whole or absent, and a rerun works.

The disks are small file systems in memory where this process may mount them, and a limit on the size of files anywhere.
"""

import json
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest

from tests.end_to_end.bad_input import good, picture, refused, run, succeeded, tidy, write_tar
from tests.processes import run_code, start_vlp

# Runs `vlp` in a process that kills itself where CALL is called for the NUMBER-th time.
KILLED = """
import os, signal, sys
from vlp.cli.main import main
module, _, name = {call!r}.rpartition(".")
owner = __import__(module.split(":")[0], fromlist=["x"])
for part in filter(None, module.partition(":")[2].split(".")):
    owner = getattr(owner, part)
left, original = [{number}], getattr(owner, name)
def call(*arguments, **named):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.{signal})
    return original(*arguments, **named)
setattr(owner, name, call)
main()
"""
RENAME, SAMPLE = "vlp.files:os.replace", "vlp.data.shard_writer:ShardWriter.write"


@pytest.fixture
def place(tmp_path, scenes, models) -> Path:
    """A folder with a scored shard (web), and photos with metadata."""
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "00000.tar").write_bytes((scenes / "00000.tar").read_bytes())
    succeeded(run("capfilt", "score", "--shards", tmp_path / "web" / "*.tar", "--filter", models[1]))
    (tmp_path / "photos").mkdir()
    for number in range(40):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(picture((300, 300), format="JPEG"))
    lines = [json.dumps({"file_name": f"{number}.jpg", "text": "a red circle"}) for number in range(40)]
    (tmp_path / "photos" / "metadata.jsonl").write_text("\n".join(lines))
    return tmp_path


def command(name: str, place: Path, output: Path, models: list[str]) -> list[str]:
    """The arguments of a command that writes `output`."""
    commands = {
        "make": ["data", "make", output, "--num", 40],
        "import": ["data", "import", "folder", place / "photos", output],
        "tokenizer": ["tokenizer", place / "web" / "*.tar", output, "--size", 150],
        "select": ["capfilt", "select", "itm >= 0", "--scores", place / "web" / "*.parquet", "--out", output],
        "select table": ["capfilt", "select", "itm >= 0", "--scores", place / "web" / "*.parquet", "--table", output],
        "convert": ["convert", models[1], output, "--to", "hf", "--kind", "retrieval"],
        "report": ["capfilt", "report", "--scores", place / "web" / "*.parquet", "--out", output],
    }
    return [str(word) for word in commands[name]]


def content(path: Path) -> dict[str, bytes]:
    """The files of an output, by name."""
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return {str(one.relative_to(path)): one.read_bytes() for one in files}


@pytest.mark.parametrize(
    ("name", "call", "number"),
    [
        ("import", SAMPLE, 25),
        ("import", RENAME, 2),
        ("tokenizer", RENAME, 1),
        ("select", SAMPLE, 10),
        ("select table", RENAME, 1),
        ("convert", RENAME, 1),
    ],
)
def test_a_killed_command_leaves_nothing_half_written(name, call, number, place, models):
    output = place / "out"
    arguments = command(name, place, output, models)
    script = KILLED.format(call=call, number=number, signal="SIGKILL")
    killed = run_code(script, *arguments)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not output.exists()
    succeeded(run(*arguments))
    tidy(place)
    succeeded(run(*command(name, place, place / "undisturbed", models)))
    assert {**content(output), "README.md": b""} == {**content(place / "undisturbed"), "README.md": b""}


def test_ctrl_c_ends_with_one_sentence_and_nothing_half_written(place, models):
    script = KILLED.format(call=SAMPLE, number=25, signal="SIGINT")
    arguments = command("import", place, place / "out", models)
    stopped = run_code(script, *arguments)
    assert stopped.returncode == 1
    assert stopped.stderr == "vlp: Interrupted; rerun the command to continue.\n"
    assert not (place / "out").exists()
    tidy(place)


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """No file can become larger than `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[None]:
    """A file system of its own in a folder; skips the test where nothing can be mounted."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


NAMES = ["make", "import", "tokenizer", "select", "select table", "convert", "report"]


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_is_one_sentence_and_leaves_nothing(name, place, models):
    disk = place / "disk"
    with small_disk(disk, "size=4k"):
        outcome = run(*command(name, place, disk / "out", models))
        refused(outcome, str(disk / "out"), "No space left" if "No space" in outcome.err else "no space left")
        assert outcome.code == 1
        assert not list(disk.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_may_not_grow_is_one_sentence_and_leaves_nothing(name, place, models):
    arguments = command(name, place, place / "out", models)
    with small_files(2000):
        outcome = run(*arguments)
    refused(outcome, str(place / "out"))
    assert outcome.code == 1 and not (place / "out").exists()
    tidy(place)


@pytest.mark.parametrize("name", NAMES)
def test_a_read_only_disk_is_one_sentence(name, place, models):
    with small_disk(place / "disk", "ro"):
        refused(run(*command(name, place, place / "disk" / "out", models)), str(place / "disk"))


def test_a_full_disk_ends_scoring_with_one_sentence(tmp_path, models, scenes):
    disk = tmp_path / "disk"
    with small_disk(disk, "size=100k"):
        (disk / "s.tar").write_bytes((scenes / "00000.tar").read_bytes())
        (disk / "filler").write_bytes(bytes(100 * 1024 - (disk / "s.tar").stat().st_size - 12_000))
        with open(disk / "rest", "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        refused(run("capfilt", "score", "--shards", disk / "s.tar", "--filter", models[1]), "s.capfilt.parquet")
        assert sorted(path.name for path in disk.iterdir()) == ["filler", "rest", "s.tar"]


def test_a_full_disk_ends_training_with_one_sentence(tmp_path, run_config):
    from vlp.config_reader import save_config

    disk = tmp_path / "disk"
    save_config(run_config("run", "steps=2", f"output={disk}/run"), tmp_path / "run.yaml")
    with small_disk(disk, "size=300k"):
        refused(run("pretrain", tmp_path / "run.yaml"), str(disk))
        assert not (disk / "run" / "model").exists()
        tidy(disk)


def together(folder: Path, arguments: list[str]) -> list[tuple[int, str]]:
    """Run a command twice at the same time; returns the exit codes and what is printed to stderr."""
    started = [start_vlp(folder / name, *arguments) for name in ("first", "second")]
    return [(code, program.err) for program in started for code in program.finish()]


def test_two_runs_that_write_the_same_output(place, models, tmp_path_factory):
    arguments = command("tokenizer", place, place / "out", models)
    for code, errors in together(tmp_path_factory.mktemp("printed"), arguments):
        assert code in (0, 1, 2) and "Traceback" not in errors
        assert not code or errors.startswith("vlp: ")
    tidy(place)
    succeeded(run(*command("tokenizer", place, place / "alone", models)))
    assert content(place / "out") == content(place / "alone")


def test_two_runs_that_write_the_same_tables(tmp_path, scenes, models, tmp_path_factory):
    for name in ("00000.tar", "00001.tar"):
        (tmp_path / name).write_bytes((scenes / name).read_bytes())
    score = ["capfilt", "score", "--shards", f"{tmp_path}/*.tar", "--filter", models[1]]
    for code, errors in together(tmp_path_factory.mktemp("printed"), score):
        assert code == 0 and "Traceback" not in errors, errors
    outcome = run(*score)
    succeeded(outcome)
    assert "skipped_shards  2\n" in outcome.out
    tidy(tmp_path)


GONE: dict[str, tuple[str, Callable[[Path, list[str]], list]]] = {
    "inspect": ("vlp.data.shards.index_shard", lambda shard, models: ["data", "inspect", shard]),
    "tokenizer": (
        "vlp.data.shards.index_shard",
        lambda shard, models: ["tokenizer", shard, shard.with_name("words"), "--size", 100],
    ),
    "score": (
        "vlp.capfilt.score.shard_state",
        lambda shard, models: ["capfilt", "score", "--shards", shard, "--filter", models[1]],
    ),
    "search": (
        "vlp.data.shards.index_shard",
        lambda shard, models: ["search", models[1], shard, "--query", "red"],
    ),
    "retrieval": (
        "vlp.data.evaluation_loader.cached_index",
        lambda shard, models: ["evaluate", "retrieval", models[1], shard],
    ),
}


@pytest.mark.parametrize("name", GONE)
def test_a_shard_that_vanishes_is_named(name, tmp_path, models, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shard = write_tar(tmp_path / "s.tar", good())
    where, arguments = GONE[name]
    module, _, function = where.rpartition(".")
    owner = __import__(module, fromlist=["x"])
    if not hasattr(owner, function):
        pytest.fail(f"{where} has moved")
    original = getattr(owner, function)

    def remove_first(*given, **named):
        shard.unlink(missing_ok=True)
        return original(*given, **named)

    with mock.patch.object(owner, function, remove_first):
        outcome = run(*arguments(shard, models))
    if outcome.code:
        assert "s.tar" in outcome.err
        refused(outcome)
    else:
        succeeded(outcome, "s.tar")
    tidy(tmp_path)
