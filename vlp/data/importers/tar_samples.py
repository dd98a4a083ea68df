"""Samples of other projects' tars with all their members, and those that are bad."""

from collections.abc import Iterator

from vlp.data.bad_samples import BadSample, BadSampleError
from vlp.data.importers.write import ImportedSample, told_sources
from vlp.data.shard_index import IMAGE_EXTENSIONS, index_shard
from vlp.data.shards import make_sample, read_members


def read_tar(path: str) -> Iterator[ImportedSample | BadSample]:
    """Every sample of a tar in order, after those that its index finds bad. Members beside image, text and JSON are
    kept as `extra`. Keys have neither dots nor slashes."""
    index = index_shard(path)
    yield from index.bad
    good = set(index.keys)
    for name, members in read_members(path):
        if name not in good:
            continue
        extension = next(one for one in members if one in IMAGE_EXTENSIONS)
        image, text, info = members.pop(extension), members.pop("txt", None), members.pop("json", None)
        try:
            sample = make_sample(name, path, image, text, info)
        except BadSampleError as error:
            yield BadSample(path, name, error.reason)
            continue
        key = name.replace("/", "_").replace(".", "_")
        yield ImportedSample(key, image, extension, sample.captions, sample.info, members, told_sources(sample))
