"""Errors of every kind become one sentence on stderr and an exit code."""

import errno
import logging
import os
import subprocess
import sys

import pytest

from vlp.cli.failures import OneLineFormatter, explain
from vlp.cli.main import main
from vlp.errors import UserError, WorkError


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UserError("Set steps."), 2, "Set steps."),
        (WorkError("The disk is full."), 1, "The disk is full."),
        (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "a/b"), 2, "a/b cannot be used: No such file"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a/b"), 1, "a/b cannot be used: No space left"),
        (OSError(errno.EIO, os.strerror(errno.EIO)), 1, "The output or a file cannot be read or written"),
        (MemoryError(), 1, "Memory ran out"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "Memory ran out"),
    ],
)
def test_errors_become_a_code_and_a_sentence(error, code, says):
    got, sentence = explain(error)
    assert got == code and says in sentence and "\n" not in sentence


def test_an_unexpected_error_keeps_its_traceback_in_a_file(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, sentence = explain(KeyError("lost\nkey"))
    (kept,) = tmp_path.iterdir()
    assert code == 1 and str(kept) in sentence and "\n" not in sentence
    assert "KeyError" in kept.read_text()


def test_names_with_control_characters_stay_on_one_line():
    record = logging.LogRecord("vlp", logging.WARNING, "", 0, "skipped %s", ("a\nb\0\x1b[31m é 🙂",), None)
    assert OneLineFormatter().format(record) == r"skipped a\nb\x00\x1b[31m é 🙂"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["caption", "--beam", "3"], "--beam"),
        (["nothing"], "nothing"),
        (["data", "make", "x", "--num", "many"], "--num"),
        (["match", "model"], "image"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(arguments, says, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["vlp", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("vlp: ") and says in error and error.count("\n") == 1


@pytest.mark.parametrize("redirect", [">&-", ">/dev/full", "2>&1 | true", ">&- 2>&-"])
def test_a_closed_or_full_output_leaves_no_traceback(redirect, tmp_path):
    command = f"{sys.executable} -m vlp data make {tmp_path}/out --num 2 {redirect}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, 1, 2)
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    if redirect == ">/dev/full":
        assert done.returncode == 1 and "The output or a file cannot be read or written: No space left" in done.stderr
