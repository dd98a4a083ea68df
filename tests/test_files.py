"""Files and folders appear whole or not at all, and what killed writers left behind is removed."""

import os
import signal

import pytest

from tests.processes import run_code
from vlp import files
from vlp.errors import FullDiskError, UserError, WorkError
from vlp.files import prepare_output, remove_leftovers, scratch_folder, temporary_path, writing, writing_folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_only_at_the_end(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with writing(path) as temporary:
        temporary.write_text("old")
        assert not path.exists()
    with pytest.raises(ValueError), writing(path) as temporary:
        temporary.write_text("half")
        raise ValueError
    assert path.read_text() == "old" and names(path.parent) == ["a.txt"]


def test_a_folder_appears_only_at_the_end(tmp_path):
    path = tmp_path / "out"
    path.mkdir()  # an empty folder is replaced
    with pytest.raises(KeyboardInterrupt), writing_folder(path) as temporary:
        (temporary / "a").write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == ["out"] and not names(path)
    with writing_folder(path) as temporary:
        (temporary / "a").write_text("whole")
        assert not names(path)
    assert names(path) == ["a"] and names(tmp_path) == ["out"]


def test_nothing_is_overwritten(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path, tmp_path / "file"):
        for check in (prepare_output, lambda path: writing_folder(path).__enter__()):
            with pytest.raises(UserError, match="exists already; choose another name or remove it"):
                check(path)
    with pytest.raises(UserError, match="empty is a folder; name a file"), writing(tmp_path / "empty"):
        pass
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(UserError, match="the current folder; name a folder inside it"), writing_folder("."):
        pass


@pytest.mark.parametrize("kind", ("writing", "writing_folder", "scratch_folder"))
def test_what_a_killed_process_left_is_removed_by_the_next_one(tmp_path, kind):
    code = (
        "import os, signal, sys; from vlp import files\n"
        f"with files.{kind}(sys.argv[1]) as path:\n"
        "    (path / 'a' if path.is_dir() else path).write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = run_code(code, tmp_path / "out")
    assert killed.returncode == -signal.SIGKILL and len(names(tmp_path)) == 1
    with getattr(files, kind)(tmp_path / "out") as temporary:
        if not temporary.is_dir():
            temporary.write_text("whole")
        assert names(tmp_path) == [temporary.name]
    assert names(tmp_path) == ([] if kind == "scratch_folder" else ["out"])


def test_what_another_process_is_writing_is_left_alone(tmp_path):
    path, own = tmp_path / "a", temporary_path(tmp_path / "a").name
    alive = own.replace(f"-{os.getpid()}", f"-{os.getppid()}")
    elsewhere, abandoned = ".a.tmp-node1-7", ".a.tmp-node2-7"
    for name in (own, alive, elsewhere, abandoned, ".a.tmp-old", ".ab.tmp-old"):
        (tmp_path / name).write_text("half")
    os.utime(tmp_path / abandoned, (0, 0))
    remove_leftovers(path)
    assert names(tmp_path) == sorted([alive, elsewhere, ".ab.tmp-old"])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_one_sentence_with_the_name_that_the_user_gave(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(
            FullDiskError, match=r"^out/a cannot be written: no space left on device \([\d,]+ bytes free\); "
        ),
        writing_folder("out") as folder,
        writing(folder / "a") as temporary,
    ):
        temporary.symlink_to("/dev/full")
        temporary.write_text("text")
    assert not names(tmp_path)
    with pytest.raises(FullDiskError), writing("a"):  # as safetensors reports it
        raise RuntimeError("I/O error: No space left on device (os error 28)")


def test_other_errors_name_the_file(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(WorkError, match=r"file/a cannot be written: File exists \(.*/file\)\.$"),
        writing(tmp_path / "file/a"),
    ):
        pass
    no_file = pytest.raises(WorkError, match=r"a cannot be written: No such file or directory \(none\)\.$")
    with no_file, writing(tmp_path / "a"):
        os.unlink("none")


def test_a_pipe_is_written_to_directly(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with writing(tmp_path / "pipe") as path, scratch_folder(tmp_path / "pipe") as scratch:
        assert path == tmp_path / "pipe" and scratch.is_dir()
    assert names(tmp_path) == ["pipe"]
