"""Outputs in an object store, on a real S3 server: whole or recognizably incomplete, never overwritten."""

import json
import os
import signal
import tempfile
from multiprocessing.forkserver import ensure_running

import pytest

from tests.processes import run_code
from vlp import files
from vlp.data.bad_samples import BadSample
from vlp.data.importers.write import write_imported
from vlp.data.shard_index import expand_shards
from vlp.demo.scenes import write_scenes
from vlp.errors import FullDiskError, UserError, WorkError
from vlp.files import prepare_output, scratch_folder, write_text, writing, writing_folder, writing_shards
from vlp.processes import this_process


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """An empty folder for temporary files."""
    ensure_running()  # the server of the tests' processes has a socket among temporary files; not in this folder
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_file_is_uploaded_at_the_end(s3, scratch):
    url = f"{s3.url}/new/a.txt"
    with writing(url) as temporary:
        temporary.write_text("old")
        assert not s3.names()
    with pytest.raises(ValueError), writing(url) as temporary:
        temporary.write_text("half")
        raise ValueError
    assert s3.files.cat_file(url) == b"old" and not list(scratch.iterdir())
    write_text(url, "new")
    assert s3.files.cat_file(url) == b"new" and s3.names() == ["new/a.txt"]


def test_files_of_a_folder_are_uploaded_one_by_one_and_the_marker_last(s3, scratch):
    with writing_shards(f"{s3.url}/out/") as folder:
        write_text(f"{folder}/0.tar", "zero")
        assert s3.names() == ["out/0.tar", "out/_STARTED"] and not list(scratch.iterdir())
        write_text(f"{folder}/1.tar", "one")
    assert s3.names() == ["out/0.tar", "out/1.tar", "out/_SUCCESS"]
    for check in (prepare_output, lambda url, remote: writing_shards(url).__enter__()):
        with pytest.raises(UserError, match="out exists already; choose another name or remove it"):
            check(f"{s3.url}/out", remote=True)
    write_text(f"{s3.url}/out/report.html", "added")  # a complete folder can get further files


def test_an_error_removes_what_was_uploaded(s3):
    write_text(f"{s3.url}/other/0.tar", "mine")
    with pytest.raises(KeyboardInterrupt), writing_shards(f"{s3.url}/out") as folder:
        write_text(f"{folder}/0.tar", "zero")
        raise KeyboardInterrupt
    assert s3.names() == ["other/0.tar"]


def test_a_folder_of_something_else_is_left_alone(s3):
    write_text(f"{s3.url}/web/0.tar", "mine")
    for url in (f"{s3.url}/web", f"{s3.url}/web/0.tar", s3.url):
        with pytest.raises(UserError, match="exists already"), writing_shards(url):
            pass
    assert s3.names() == ["web/0.tar"]


def test_what_a_killed_process_left_is_incomplete_and_replaced(s3, scratch):
    code = (
        "import os, signal, sys; from vlp.files import write_text, writing, writing_shards\n"
        "with writing_shards(sys.argv[1]) as folder:\n"
        "    write_text(f'{folder}/0.tar', 'old'); write_text(f'{folder}/1.tar', 'old')\n"
        "    with writing(f'{folder}/2.tar') as temporary:\n"
        "        temporary.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = run_code(code, f"{s3.url}/out")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert s3.names() == ["out/0.tar", "out/1.tar", "out/_STARTED"]
    with pytest.raises(UserError, match="out is incomplete"):
        expand_shards(f"{s3.url}/out/*.tar")
    with writing_shards(f"{s3.url}/out") as folder:
        assert s3.names() == ["out/_STARTED"]
        write_text(f"{folder}/2.tar", "whole")
        assert [path.name for path in scratch.iterdir()] == []
    assert s3.names() == ["out/2.tar", "out/_SUCCESS"]
    assert expand_shards(f"{s3.url}/out/*.tar") == [f"{s3.url}/out/2.tar"]


def test_a_complete_folder_stays_where_its_first_marker_cannot_be_removed(s3, monkeypatch):
    url = f"{s3.url}/out"

    def fail(path):
        raise OSError(f"{path} cannot be removed")

    monkeypatch.setattr(s3.files, "rm_file", fail)
    with writing_shards(url) as folder:
        write_text(f"{folder}/0.tar", "zero")
    assert s3.names() == ["out/0.tar", "out/_STARTED", "out/_SUCCESS"], "also what a kill before the removal leaves"
    assert expand_shards(f"{url}/*.tar") == [f"{url}/0.tar"]
    with pytest.raises(UserError, match="out exists already"), writing_shards(url):
        pass
    assert s3.names() == ["out/0.tar", "out/_STARTED", "out/_SUCCESS"]


def test_a_removal_that_stops_halfway_leaves_no_complete_folder(s3, monkeypatch):
    remove, mark = s3.files.rm, s3.files.pipe_file

    def answer_lost(path, data):
        mark(path, data)
        if path.endswith("_SUCCESS"):
            raise ConnectionError("the answer of the store was lost")

    def halfway(paths):
        monkeypatch.setattr(s3.files, "rm", None)
        remove(paths[:1])

    monkeypatch.setattr(s3.files, "pipe_file", answer_lost)
    with pytest.raises(WorkError, match="the answer of the store was lost"), writing_shards(f"{s3.url}/out") as folder:
        write_text(f"{folder}/0.tar", "zero")
        write_text(f"{folder}/1.tar", "one")
        monkeypatch.setattr(s3.files, "rm", halfway)
    with pytest.raises(UserError, match="out is incomplete"):
        expand_shards(f"{s3.url}/out/*.tar")


def test_two_writers_of_one_folder(s3):
    url = f"{s3.url}/out"
    other = {"token": "other", **this_process()}
    s3.files.pipe_file(f"{url}/_STARTED", json.dumps(other).encode())
    with pytest.raises(WorkError, match=r"Another run is writing .*/out; wait for it or choose another name"):
        prepare_output(url, remote=True)
    elsewhere = json.dumps({**other, "host": "node1"}).encode()  # a run of another machine may be dead
    s3.files.pipe_file(f"{url}/_STARTED", elsewhere)
    with pytest.raises(WorkError, match="Another run is writing"), writing_shards(url) as folder:
        write_text(f"{folder}/0.tar", "zero")
        s3.files.pipe_file(f"{url}/_STARTED", elsewhere)  # the other run starts anew
        write_text(f"{folder}/1.tar", "one")
    assert s3.names() == ["out/0.tar", "out/_STARTED"], "what the other run writes is left alone"


def test_the_scratch_folder_of_an_address_is_local(s3, scratch):
    with scratch_folder(f"{s3.url}/out") as folder:
        (folder / "a").touch()
        assert folder.parent == scratch
    assert not list(scratch.iterdir()) and not s3.names()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_local_disk_names_the_folder_for_temporary_files(s3, scratch):
    url = f"{s3.url}/a"
    sentence = rf"^{url} cannot be written: no space left on device in {scratch} \([\d,]+ bytes free\), .*TMPDIR"
    with pytest.raises(FullDiskError, match=sentence), writing(url), open("/dev/full", "wb") as file:
        file.write(b"all")


def test_errors_name_the_address(s3, monkeypatch):
    with pytest.raises(UserError, match="s3://no-such-bucket-7/a does not exist; check the address"):
        write_text("s3://no-such-bucket-7/a", "text")
    with (
        pytest.raises(UserError, match="no-such-bucket-7/out does not exist"),
        writing_shards("s3://no-such-bucket-7/out"),
    ):
        pass
    with pytest.raises(UserError, match=r"https://host/a is read-only; name a local path, or an address such as s3://"):
        write_text("https://host/a", "text")
    with pytest.raises(UserError, match="is an address, but this output is written to a local disk"):
        writing_folder(f"{s3.url}/model").__enter__()
    assert files.remove_leftovers(f"{s3.url}/a") is None


def test_shards_are_written_to_a_bucket_as_to_a_folder(s3, tmp_path):
    for output in (str(tmp_path / "out"), f"{s3.url}/out"):
        write_scenes(output, 7, "human", 0, 32, 5, seed=1)
    assert s3.names() == ["out/00000.tar", "out/00001.tar", "out/_SUCCESS"]
    for name in ("00000.tar", "00001.tar"):
        assert s3.files.cat_file(f"{s3.url}/out/{name}") == (tmp_path / "out" / name).read_bytes()


def test_an_import_that_fails_leaves_nothing_in_the_bucket(s3):
    bad = [BadSample("table.csv", str(number), "no image") for number in range(3)]
    with pytest.raises(WorkError, match="3 of 3 samples are bad"):
        write_imported(bad, f"{s3.url}/out")
    assert not s3.names()
