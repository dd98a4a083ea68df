"""Damaged, hostile and odd shards: what they hold is read, and what cannot be read is counted and named."""

import os
import tarfile
from pathlib import Path

import pytest

from tests.end_to_end.bad_input import good, picture, refused, run, sample, succeeded, tidy, write_tar

GOOD = 6  # samples in front of the odd ones


def header(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.size, made.linkname = kind, size, link
    return made


def after_good(*members, format=tarfile.PAX_FORMAT):
    """A builder of a shard of good samples and then `members`."""
    return lambda path: write_tar(path, [*good(GOOD), *members], format)


def raw_header(name: str, size: int) -> bytes:
    return header(name, size=size).tobuf(tarfile.GNU_FORMAT)


def damaged(change):
    """A builder of a shard of good samples whose bytes are changed."""

    def build(path: Path) -> None:
        write_tar(path, good(GOOD))
        path.write_bytes(change(bytearray(path.read_bytes())))

    return build


def overwritten(name: bytes, offset: int, data: bytes):
    """Bytes in the header of the member `name`."""

    def change(content: bytearray) -> bytes:
        start = content.index(name) + offset
        content[start : start + len(data)] = data
        return bytes(content)

    return damaged(change)


def extended(record: bytes):
    """An extended (pax) header of any content before a last sample."""
    return after_good((header("pax", tarfile.XHDTYPE, len(record)), record), *sample("last"))


def append(data: bytes):
    return damaged(lambda content: bytes(content[: content.rindex(b"good5.txt") + 1024]) + data)


# Builder, good samples, bad ones by reason, and a name that the log must show.
READABLE = {
    "empty file": (lambda path: path.write_bytes(b""), 0, {"zero bytes": 1}, "s.tar"),
    "text": (lambda path: path.write_bytes(b"hello world " * 2000), 0, {"unreadable shard": 1}, "s.tar"),
    "random bytes": (lambda path: path.write_bytes(os.urandom(20_000)), 0, {"unreadable shard": 1}, "s.tar"),
    "gzip": (lambda path: write_tar(path, good(), mode="w:gz"), 0, {"unreadable shard": 1}, "s.tar"),
    "no member": (lambda path: write_tar(path, []), 0, {}, ""),
    "only a text": (lambda path: write_tar(path, [("a.txt", b"hi")]), 0, {"no image": 1}, " a:"),
    "cut within a member": (damaged(lambda content: bytes(content[:-14_000])), 4, {"truncated": 1}, "good4"),
    "cut within a header": (append(raw_header("x.png", 9)[:300]), GOOD, {"truncated": 1}, "s.tar"),
    "header size of a TiB": (append(raw_header("huge.png", 2**40) + b"xx"), GOOD, {"truncated": 1}, "huge"),
    "header size of 4 EiB": (append(raw_header("huge.png", 2**62) + b"xx"), GOOD, {"truncated": 1}, "huge"),
    "checksum of a header": (overwritten(b"good3.png", 148, b"77777777"), 3, {"truncated": 1}, "s.tar"),
    "letters as a size": (overwritten(b"good3.png", 124, b"zzzzzzzzzzz\0"), 3, {"truncated": 1}, "s.tar"),
    "negative size": (overwritten(b"good3.png", 124, b"\xff" * 12), 3, {"truncated": 1}, "s.tar"),
    "extended header without length": (extended(b"0 path=x\n"), GOOD, {"truncated": 1}, "s.tar"),
    "extended header with letters": (extended(b"x path=x\n"), GOOD + 1, {}, ""),
    "extended negative size": (extended(b"13 size=-500\n"), GOOD, {"truncated": 1}, "s.tar"),
    "extended size that loops": (extended(b"14 size=-1536\n"), GOOD, {"truncated": 1}, "s.tar"),
    "name of line breaks": (after_good(("a\nb\x1b[31m.txt", b"x")), GOOD, {"no image": 1}, r"a\nb\x1b[31m"),
    "long names (GNU)": (after_good(*sample("x" * 5000), format=tarfile.GNU_FORMAT), GOOD + 1, {}, ""),
    "long names (pax)": (after_good(*sample("x" * 5000)), GOOD + 1, {}, ""),
    "absolute path": (after_good(*sample("/etc/passwd")), GOOD + 1, {}, ""),
    "path to a parent": (after_good(*sample("../../evil")), GOOD + 1, {}, ""),
    "nested folders": (after_good((header("a", tarfile.DIRTYPE), b""), *sample("a/b/c")), GOOD + 1, {}, ""),
    "symbolic link": (
        after_good((header("link.png", tarfile.SYMTYPE, link="/etc/passwd"), b""), ("link.txt", b"hi")),
        GOOD,
        {"no image": 1},
        "link",
    ),
    "hard link": (
        after_good((header("link.png", tarfile.LNKTYPE, link="good0.png"), b""), ("link.txt", b"hi")),
        GOOD,
        {"no image": 1},
        "link",
    ),
    "device": (after_good((header("tty.png", tarfile.CHRTYPE), b""), ("tty.txt", b"x")), GOOD, {"no image": 1}, "tty"),
    "pipe": (after_good((header("p.png", tarfile.FIFOTYPE), b""), ("p.txt", b"x")), GOOD, {"no image": 1}, " p:"),
    "sparse file": (
        after_good((header("s.png", tarfile.GNUTYPE_SPARSE, 100), b"x" * 100), ("s.txt", b"hi")),
        GOOD,
        {"zero bytes": 1},
        " s:",
    ),
    "duplicate key": (after_good(*sample("good0")), GOOD, {"duplicate key": 1}, "good0"),
    "name that is not UTF-8": (after_good(*sample("\udcff")), GOOD + 1, {}, ""),
    "capital letters": (after_good(("U.PNG", picture()), ("U.TXT", b"a circle")), GOOD + 1, {}, ""),
    "30 MB that are no image": (after_good(*sample("b", bytes(30_000_000))), GOOD, {"image undecodable": 1}, " b:"),
}


@pytest.mark.parametrize("name", READABLE)
def test_an_odd_shard_is_read_as_far_as_it_goes(name, tmp_path, models):
    build, samples, bad, named = READABLE[name]
    shard = tmp_path / "s.tar"
    build(shard)
    seen = run("data", "inspect", shard, "--sheet", tmp_path / "sheet.png", "--json")
    if samples:
        succeeded(seen, *[named] * bool(bad))
        assert (seen.values()["samples"], seen.values()["bad"]) == (samples, bad)
    else:
        refused(seen, str(shard), *bad)
    scored = run("capfilt", "score", "--shards", shard, "--filter", models[1], "--set", "max_bad_share=0.5")
    if samples or not bad:
        succeeded(scored, *[named] * bool(bad))
        assert f"images          {samples}\n" in scored.out
    else:
        refused(scored, str(shard))
        assert not (tmp_path / "s.capfilt.parquet").exists()
    tidy(tmp_path)


def test_a_shard_of_another_program_leads_nowhere_outside(tmp_path, models):
    """Members named after files outside are written as samples of these names, never to these places."""
    shard = tmp_path / "in" / "s.tar"
    write_tar(shard, [*sample("/etc/passwd"), *sample("../../evil")])
    succeeded(run("capfilt", "score", "--shards", shard, "--filter", models[1]))
    table = tmp_path / "in" / "s.capfilt.parquet"
    succeeded(run("capfilt", "select", "itm >= 0", "--scores", table, "--out", tmp_path / "in" / "new"))
    files = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert files == ["00000.tar", "s.capfilt.parquet", "s.tar"]


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def link(target: str):
    def build(path: Path) -> Path:
        path.symlink_to(target)
        return path

    return build


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


# What is given as a shard, and what the sentence must hold.
ABSENT = {
    "nothing": (lambda path: path, "s.tar"),
    "empty name": (lambda path: "", "shard"),
    "folder": (folder, "s.tar"),
    "link to nothing": (link("/nonexistent"), "s.tar"),
    "link to itself": (link("s.tar"), "s.tar"),
    "named pipe": (pipe, "s.tar"),
    "device": (lambda path: "/dev/zero", "/dev/zero"),
    "name that is too long": (lambda path: "x" * 5000, "xxx"),
    "inside a file": (lambda path: write_tar(path, good()) / "inner.tar", "inner.tar"),
    "pattern without a match": (lambda path: path.parent / "*.tar", "*.tar"),
    "pattern of folders": (lambda path: folder(path).parent / "*", "*"),
    "broken pattern": (lambda path: path.parent / "a**.tar", "a**.tar"),
    "open bracket": (lambda path: path.parent / "[.tar", "[.tar"),
    "open brace": (lambda path: path.parent / "{a,b.tar", "{a,b.tar"),
    "numbers that are missing": (lambda path: path.parent / "{000..127}.tar", "000.tar"),
    "too many numbers": (lambda path: path.parent / "{0..9999999999}.tar", "{0..9999999999}"),
    "unknown protocol": (lambda path: "nosuch://host/s.tar", "nosuch"),
    "file URL of nothing": (lambda path: f"file://{path}", "s.tar"),
}


@pytest.mark.parametrize("name", ABSENT)
def test_a_shard_that_is_not_there_is_named(name, tmp_path, models, monkeypatch):
    make, says = ABSENT[name]
    shard = make(tmp_path / "s.tar")
    monkeypatch.chdir(tmp_path)
    if name != "file URL of nothing":  # which may be a shard that a store does not have at the moment
        refused(run("data", "inspect", shard), says)
        refused(run("tokenizer", shard, tmp_path / "words"), says)
    refused(run("capfilt", "score", "--shards", shard, "--filter", models[1]), says)
    refused(run("evaluate", "retrieval", models[1], shard))
    assert not (tmp_path / "words").exists()
    tidy(tmp_path)
