"""What a sample is, and how samples are read from webdataset shards."""

import json
import os
import tarfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from tarfile import BLOCKSIZE
from typing import IO

from vlp.data.bad_samples import BadSampleError, BadSamples
from vlp.data.byte_stream import Access, open_stream
from vlp.data.cache import status_stamp
from vlp.data.pairs import is_pair, read_right
from vlp.data.shard_index import ShardIndex, expand_shards, index_shard, open_shard, split_name
from vlp.remote import is_remote

TASK_TEXTS = ("caption", "dialog", "questions", "sentence", "wrong_texts")  # of the JSON, beside `captions`


@dataclass
class Sample:
    """One image with its texts, as stored in a shard.

    Attributes:
        image: the encoded file.
        right: that of the second image, where the sample is a pair.
        text: the content of the txt member, stripped; None where there is none.
        captions: `captions` of the JSON if it has any, else the text; each stripped and not empty. Empty for a sample
            without a text.
        info: the JSON member, {} where there is none; with `cls`, the text of the .cls member, where there is one and
            the JSON has no `cls` itself.
        sources: the source of each caption: "web" unless its entry in the JSON says "human" or "synthetic".
        right: the second encoded file, where the JSON says `"images": 2` and there is one.
        image_id: equal where samples of `shard` have the same image; empty: the key tells.
    """

    key: str
    shard: str
    image: bytes
    text: str | None
    captions: list[str]
    info: dict
    sources: list[str] = field(default_factory=list)
    right: bytes | None = None
    image_id: str = ""


class ShardReader:
    """Reads samples at any place of any shard, keeping the files that were used last open."""

    def __init__(self, most_open: int = 16) -> None:
        """`most_open` is the most files that are kept open."""
        self.most_open = most_open
        self.files: OrderedDict[str, IO[bytes]] = OrderedDict()  # the file used last is the last one

    def read(self, index: ShardIndex, row: int) -> Sample:
        """The sample in a row of a shard's index.

        Raises:
            BadSampleError: the sample is cut off, its text or JSON is broken, or the shard has changed since it was
                indexed.
        """
        key = index.keys[row]
        try:
            image, text, info = (self._part(index, *place) for place in index.places(row))
            sample = make_sample(key, index.path, image or b"", text, info, label=self._label(index, row))
            if is_pair(sample.info):
                sample.right = self._right(index, row)
            return sample
        except BadSampleError as error:
            raise BadSampleError(error.reason, index.path, key) from None
        except EOFError:
            raise BadSampleError("truncated", index.path, key) from None
        except OSError:
            raise BadSampleError("unreadable shard", index.path, key) from None

    def read_info(self, index: ShardIndex, row: int) -> dict:
        """The `info` of the sample in a row, read without its image and text; raises as `read` does."""
        try:
            info = self._part(index, *index.places(row)[2])
            return make_sample(index.keys[row], index.path, b"-", None, info, label=self._label(index, row)).info
        except BadSampleError as error:
            raise BadSampleError(error.reason, index.path, index.keys[row]) from None
        except EOFError:
            raise BadSampleError("truncated", index.path, index.keys[row]) from None
        except OSError:
            raise BadSampleError("unreadable shard", index.path, index.keys[row]) from None

    def close(self) -> None:
        """Close the files."""
        while self.files:
            self.files.popitem()[1].close()

    def _part(self, index: ShardIndex, offset: int, size: int) -> bytes | None:
        if not offset:
            return None
        file = self._open(index)
        file.seek(offset)
        data = file.read(size)
        if len(data) < size:
            raise EOFError
        return data

    def _label(self, index: ShardIndex, row: int) -> bytes | None:
        block = self._part(index, index.label_offset(row), BLOCKSIZE)
        return None if block is None else block.rstrip(b"\0")  # tar fills the rest of the block with zeros

    def _right(self, index: ShardIndex, row: int) -> bytes | None:
        places = [place for place in index.places(row) if place[0]]
        offset, size = min(places)
        return read_right(self._open(index), offset + size + -size % BLOCKSIZE, index.keys[row], set(dict(places)))

    def _open(self, index: ShardIndex) -> IO[bytes]:
        file = self.files.pop(index.path, None) or open_shard(index.path)
        self.files[index.path] = file
        if len(self.files) > self.most_open:
            self.files.popitem(last=False)[1].close()
        if _has_changed(file, index):
            raise BadSampleError("shard changed")
        return file


def _has_changed(file: IO[bytes], index: ShardIndex) -> bool:
    """Whether an open shard is another file than the one that was indexed. URLs are compared by size alone."""
    if not index.stamp:
        return False
    if not is_remote(index.path):
        return status_stamp(os.fstat(file.fileno())) != index.stamp
    size = getattr(file, "size", None)
    return size is not None and str(size) != index.stamp.split()[0]


def make_sample(
    key: str,
    shard: str,
    image: bytes,
    text: bytes | None,
    info: bytes | None,
    right: bytes | None = None,
    label: bytes | None = None,
) -> Sample:
    """A sample from its members; `right` counts only where the JSON says that the sample is a pair.

    Raises:
        BadSampleError: the image has no bytes, the JSON is broken, or a text is not UTF-8.
    """
    if not image:
        raise BadSampleError("zero bytes")
    facts = _facts(info) if info else {}
    try:
        words = None if text is None else text.decode("utf-8").strip()
        texts = _captions(facts) or ([(words, "web")] if words else [])
        # JSON can hold half of a surrogate pair, which no tokenizer takes.
        "".join(text for text, _ in texts).encode()
        json.dumps([facts[name] for name in TASK_TEXTS if name in facts], ensure_ascii=False).encode()
    except UnicodeError:
        raise BadSampleError("text not UTF-8") from None
    if label:
        facts.setdefault("cls", label.decode("ascii", "replace").strip())
    captions, sources = [text for text, _ in texts], [source for _, source in texts]
    return Sample(key, shard, image, words, captions, facts, sources, (right or None) if is_pair(facts) else None)


def iterate_samples(shards: str | list[str], bad: BadSamples | None = None) -> Iterator[Sample]:
    """All samples in order, those without a text included. Bad ones are skipped, named, and counted in `bad`.

    Raises:
        UserError: no shard matches, or a remote one does not exist or denies access.
        WorkError: too many samples are bad, or a remote shard cannot be read.
    """
    from vlp.data.shard_stream import stream_samples  # which builds on this file

    bad = bad or BadSamples(max_share=1.0)
    reader = ShardReader(most_open=1)
    for path in expand_shards(shards):
        if is_remote(path):
            yield from stream_samples(path, bad)
            continue
        index = index_shard(path)
        for one in index.bad:
            bad.add(one)
        for row in range(len(index.keys)):
            try:
                sample = reader.read(index, row)
            except BadSampleError as error:
                bad.add(error.sample)
                continue
            bad.seen()
            yield sample
    reader.close()


def count_samples(paths: list[str]) -> int | None:
    """The number of samples by the headers of shards; None where some are remote, which would read them whole."""
    if any(map(is_remote, paths)):
        return None
    return sum(len(index_shard(path).keys) for path in paths)


def read_members(path: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Every sample of a shard with all its members by extension, in order; for rewriting shards.

    Samples that repeat an earlier key, and a sample that is cut off, are left out.

    Raises:
        UserError, WorkError: a remote shard cannot be read.
    """
    seen: set[str] = set()
    key, members = "", {}
    try:
        with _open_archive(path) as archive:
            for member in archive:
                if not member.isfile():
                    continue
                name, extension = split_name(member.name)
                if name != key or extension in members:
                    if members and key not in seen:
                        yield key, members
                    seen.add(key)
                    key, members = name, {}
                content = archive.extractfile(member)
                members[extension] = content.read() if content else b""
    except (tarfile.ReadError, OSError, EOFError):
        members = {}  # `index_shard` names the damage
    if members and key not in seen:
        yield key, members


@contextmanager
def _open_archive(path: str) -> Iterator[tarfile.TarFile]:
    """A shard as a tar; a remote one is read in sequence by one request."""
    if is_remote(path):
        with (
            open_stream(path, Access()) as stream,
            tarfile.open(fileobj=stream, mode="r|") as archive,  # type: ignore[call-overload]
        ):
            yield archive
    else:
        with open_shard(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            yield archive


def _facts(info: bytes) -> dict:
    """The object in a sample's JSON."""
    try:
        facts = json.loads(info)
    except (ValueError, RecursionError):  # RecursionError: thousands of nested brackets
        raise BadSampleError("bad json") from None
    if not isinstance(facts, dict):
        raise BadSampleError("bad json")
    return facts


def _captions(facts: dict) -> list[tuple[str, str]]:
    """Texts and sources of the JSON's `captions`: strings, or objects with a `text` and perhaps a `source`."""
    listed = facts.get("captions")
    if not isinstance(listed, list):
        return []
    entries = [entry if isinstance(entry, dict) else {"text": entry} for entry in listed]
    texts = [(entry.get("text"), entry.get("source")) for entry in entries]
    return [
        (text.strip(), source if source in ("human", "synthetic") else "web")
        for text, source in texts
        if isinstance(text, str) and text.strip()
    ]
