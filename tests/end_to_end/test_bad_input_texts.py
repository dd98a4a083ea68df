"""Odd and hostile texts and JSON members: every sample is used, or skipped, counted and named."""

import json

import pytest

from tests.end_to_end.bad_input import good, run, sample, succeeded, tidy, write_tar


def captions(value: object) -> bytes:
    return json.dumps({"captions": value}).encode()


# The text and the JSON of a sample, and the number of texts that it has.
ODD = {
    "nothing": (None, None, 0),
    "empty": (b"", None, 0),
    "white space": (b" \n\t", None, 0),
    "punctuation": (b"...!!!", None, 1),
    "emoji": ("🙂🙃 👨‍👩‍👧".encode(), None, 1),
    "right to left": ("שלום \u202eevil".encode(), None, 1),
    "zero byte": (b"a\0b", None, 1),
    "control characters": (b"\x1b[31mred\x07", None, 1),
    "line breaks": (b"a\r\nb\r\nc", None, 1),
    "byte order mark": (b"\xef\xbb\xbfhello", None, 1),
    "1 MB of words": (b"word " * 200_000, None, 1),
    "1 MB in one word": (b"w" * 1_000_000, None, 1),
    "empty JSON": (b"hi", b"", 1),
    "JSON with a byte order mark": (b"hi", b"\xef\xbb\xbf" + captions(["a", "b"]), 2),
    "captions null": (b"hi", captions(None), 1),
    "captions empty": (b"hi", captions([]), 1),
    "captions a text": (b"hi", captions("abc"), 1),
    "captions an object": (b"hi", captions({"a": 1}), 1),
    "captions numbers": (b"hi", captions([1, 2.5, None, True]), 1),
    "captions lists": (b"hi", captions([["a"], []]), 1),
    "captions objects": (b"hi", captions([{"text": 3}, {"no": 1}, {"text": "ok", "source": []}]), 1),
    "captions without a text": (None, captions(["one two", "three four"]), 2),
    "500 captions": (b"hi", captions(["a b"] * 500), 500),
    "nested 900 deep": (b"hi", b'{"a":' * 900 + b"1" + b"}" * 900, 1),
    "NaN and infinity": (b"hi", b'{"x": NaN, "y": 1e999}', 1),
    "uid a number": (b"hi", b'{"uid": 3}', 1),
    "uid with half a character": (b"hi", rb'{"uid": "\ud800"}', 1),
    "key twice": (b"hi", b'{"captions": ["a"], "captions": ["b"]}', 1),
    "source with half a character": (b"hi", rb'{"captions": [{"text": "a", "source": "\ud800"}]}', 1),
}
BAD = {
    "text in Latin-1": ("café".encode("latin-1"), None, "text not UTF-8"),
    "text in UTF-16": ("hello".encode("utf-16"), None, "text not UTF-8"),
    "caption with half a character": (None, rb'{"captions": ["\ud800 hi"]}', "text not UTF-8"),
    "JSON list": (b"hi", b"[1, 2]", "bad json"),
    "JSON null": (b"hi", b"null", "bad json"),
    "JSON number": (b"hi", b"3", "bad json"),
    "JSON text": (b"hi", b'"x"', "bad json"),
    "JSON cut": (b"hi", b"{", "bad json"),
    "JSON in Latin-1": (b"hi", b'{"captions": ["\xe9"]}', "bad json"),
    "nested 100,000 deep": (b"hi", b"[" * 100_000 + b"]" * 100_000, "bad json"),
    "number of 6,000 digits": (b"hi", b'{"x": ' + b"9" * 6000 + b"}", "bad json"),
}


def shard_with(folder, text, info):
    more = {} if info is None else {"json": info}
    return write_tar(folder / "s.tar", [*good(), *sample("odd", text=text, **more), *sample("last")])


@pytest.mark.parametrize("name", ODD)
def test_an_odd_text_is_scored_and_selected(name, tmp_path, models):
    text, info, texts = ODD[name]
    shard = shard_with(tmp_path, text, info)
    scored = run("capfilt", "score", "--shards", shard, "--filter", models[1])
    succeeded(scored)
    assert "images          8\n" in scored.out and f"texts           {7 + texts}\n" in scored.out
    succeeded(run("data", "inspect", shard, "--sheet", tmp_path / "sheet.png"))
    table = tmp_path / "s.capfilt.parquet"
    kept = run("capfilt", "select", "itm >= 0", "--scores", table, "--out", tmp_path / "new", "--json")
    succeeded(kept)
    assert kept.values()["images"] == (8 if texts else 7)
    tidy(tmp_path)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_text_is_skipped_and_named(name, tmp_path, models):
    text, info, reason = BAD[name]
    shard = shard_with(tmp_path, text, info)
    scored = run("capfilt", "score", "--shards", shard, "--filter", models[1], "--set", "max_bad_share=0.5")
    succeeded(scored, f"odd: {reason}")
    assert "images          7\n" in scored.out and "texts           7\n" in scored.out
    tidy(tmp_path)


def test_odd_texts_are_trained_on_and_reported(tmp_path, models):
    members = list(good())
    for number, (text, info, _) in enumerate(ODD.values()):
        members += sample(f"odd{number}", text=text, **({} if info is None else {"json": info}))
    shard = write_tar(tmp_path / "s.tar", members)
    succeeded(run("tokenizer", shard, tmp_path / "words", "--size", 200))
    succeeded(run("capfilt", "score", "--shards", shard, "--filter", models[1]))
    succeeded(run("capfilt", "report", "--scores", tmp_path / "s.capfilt.parquet", "--out", tmp_path / "page.html"))
    succeeded(run("evaluate", "retrieval", models[1], shard, "--rerank", 2))
    tidy(tmp_path)
