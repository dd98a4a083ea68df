"""The samples of one shard in sequence, as `ShardReader` reads them at any place: same keys, same bad samples.

Grouping is webdataset's. Its tar reader is not used: it takes a damaged header for the end of the shard.
"""

import tarfile
from collections.abc import Generator, Iterator
from typing import Any, Protocol

from vlp.data.bad_samples import BadSample, BadSampleError, BadSamples
from vlp.data.byte_stream import BLOCK, Access, open_stream
from vlp.data.pairs import RIGHT_EXTENSIONS
from vlp.data.shard_index import DAMAGE, IMAGE_EXTENSIONS, split_name
from vlp.data.shards import Sample, make_sample

PARTS = {
    **dict.fromkeys(IMAGE_EXTENSIONS, "image"),
    "txt": "text",
    "json": "info",
    "cls": "label",
    **dict.fromkeys(RIGHT_EXTENSIONS, "right"),
}


class _Cut(Exception):
    """The shard ends within a sample; `key` is the sample's."""

    def __init__(self, key: str):
        super().__init__(key)
        self.key = key


class Digest(Protocol):
    """A hash of `hashlib`."""

    def update(self, data: bytes, /) -> None: ...


def read_shard(
    path: str, access: Access | None = None, digest: Digest | None = None
) -> Generator[Sample | BadSample, None, None]:
    """Every sample of a shard in order, bad ones included; with an empty key, what is wrong with the shard itself.

    Args:
        access: for addresses with a scheme.
        digest: gets all bytes of the shard.

    Raises:
        UserError: a remote shard does not exist, or access is denied.
        WorkError: a remote shard cannot be read in spite of all attempts.
    """
    try:
        with open_stream(path, access or Access()) as stream:
            if digest is None:
                yield from _samples(path, stream)
                return
            hashed = _Hashed(stream, digest)
            yield from _samples(path, hashed)
            while hashed.read(BLOCK):
                pass
    except OSError:  # of a local shard
        yield BadSample(path, "", "unreadable shard")


class _Hashed:
    """A stream whose bytes are added to a hash."""

    def __init__(self, stream: Any, digest: Digest):
        self.stream, self.digest = stream, digest

    @property
    def size(self) -> int | None:
        return self.stream.size

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.digest.update(data)
        return data


def stream_samples(
    path: str, bad: BadSamples, access: Access | None = None, digest: Digest | None = None
) -> Iterator[Sample]:
    """The good samples of a shard in order; the others are counted in `bad`. Otherwise as `read_shard`."""
    for sample in read_shard(path, access, digest):
        if isinstance(sample, BadSample):
            bad.add(sample)
        else:
            bad.seen()
            yield sample


def _samples(path: str, stream: Any) -> Iterator[Sample | BadSample]:
    from webdataset.tariterators import group_by_keys

    seen: set[str] = set()
    grouping, good = _Grouping(), 0
    try:
        members = _members(path, stream, grouping)
        for group in group_by_keys(members, keys=grouping, lcase=False, suffixes=set(PARTS.values())):
            sample = _make(path, group["__key__"].partition(" ")[2], group, seen)
            good += isinstance(sample, Sample)
            yield sample
    except _Cut as cut:
        yield BadSample(path, cut.key, "truncated")
    except DAMAGE as error:
        whole = not good and grouping.key is None
        reason = "zero bytes" if "empty file" in str(error) else "unreadable shard" if whole else "truncated"
        yield BadSample(path, "", reason)


class _Grouping:
    """Members to samples: a sample ends where the key changes, or where a part of it comes again.

    The second image of a pair counts after another part of its sample, and further ones are passed over: `read_right`,
    which knows where the sample's other parts are, finds the same one.
    """

    def __init__(self) -> None:
        self.key: str | None = None
        self.number = 0
        self.parts: set[str] = set()

    def __call__(self, name: str) -> tuple[str, str]:
        key, extension = split_name(name)
        part = PARTS.get(extension, "")
        if key != self.key or (part in self.parts and part != "right"):
            self.key, self.number, self.parts = key, self.number + 1, set()
        if part == "right" and ("right" in self.parts or not self.parts):
            part = ""
        if part:
            self.parts.add(part)
        return f"{self.number} {key}", part  # the number tells samples with one key apart


def _make(path: str, key: str, group: dict[str, Any], seen: set[str]) -> Sample | BadSample:
    if key in seen:
        return BadSample(path, key, "duplicate key")
    seen.add(key)
    if "image" not in group:
        return BadSample(path, key, "no image")
    try:
        return make_sample(
            key, path, group["image"], group.get("text"), group.get("info"), group.get("right"), group.get("label")
        )
    except BadSampleError as error:
        return BadSample(path, key, error.reason)


class _Tail:
    """A stream that keeps the block it returned last, in which the archive ends."""

    def __init__(self, stream: Any):
        self.stream = stream
        self.start = self.end = 0
        self.block = b""

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        if data:
            self.start, self.block = self.end, data
            self.end += len(data)
        return data

    def at(self, position: int) -> bytes:
        """The header-sized block at a position of the last block."""
        return self.block[position - self.start :][: tarfile.BLOCKSIZE]


def _members(path: str, stream: Any, grouping: _Grouping) -> Iterator[dict[str, Any]]:
    """The files of a tar as webdataset's grouping takes them; {} ends a sample.

    Raises:
        _Cut: a member is cut off.
        tarfile.TarError and others of `DAMAGE`: the archive is damaged; the sample before the damage is kept.
    """
    tail, position = _Tail(stream), -1
    try:
        with tarfile.open(fileobj=tail, mode="r|") as archive:  # type: ignore[call-overload]
            for header in archive:
                archive.members = []  # or every header is kept
                if header.size < 0 or header.offset <= position:  # hostile: it would be read for ever
                    raise tarfile.ReadError("negative size")
                position = header.offset
                data = _content(archive, header, stream.size)
                if data is None:
                    key = split_name(header.name)[0]
                    if key != grouping.key:
                        yield {}  # the sample before the cut is whole
                    raise _Cut(key)
                if header.isfile():
                    yield {"fname": header.name, "data": data, "__url__": path}
            # The iteration ends at a damaged header as it does at the end of the archive, which is a block of zeros.
            if tail.at(archive.offset).strip(b"\0"):
                raise tarfile.ReadError("damaged header")
    except DAMAGE:
        yield {}
        raise


def _content(archive: tarfile.TarFile, header: tarfile.TarInfo, end: int | None) -> bytes | None:
    """The content of a member; None if it is cut off."""
    if end is not None and header.offset_data + header.size > end:
        return None
    file = archive.extractfile(header) if header.isfile() else None
    if file is None:
        return b""
    try:
        return file.read()
    except tarfile.ReadError:
        return None
