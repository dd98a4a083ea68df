"""DataCompDR: shards whose samples hold synthetic captions, augmentation parameters and embeddings of teachers."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vlp.data.bad_samples import BadSample, BadSampleError
from vlp.data.importers.write import ImportedSample
from vlp.data.shard_index import IMAGE_EXTENSIONS, expand_shards, index_shard
from vlp.data.shards import make_sample, read_members
from vlp.errors import UserError

SYNTHETIC = "syn.json"  # the member {"syn_text": [5 captions]}; others are paug.json {"param_aug"} and npz
COLUMNS = pa.schema(
    [(name, pa.string()) for name in ("uid", "sha256", "url")] + [("syn_text", pa.list_(pa.string()))],
)


class DataCompDR:
    """Samples with images. Their synthetic captions join the captions, and all other members are kept."""

    def __init__(self, shards: str | list[str]):
        """Index the shards.

        Raises:
            UserError: no shard matches, the first has no synthetic captions, or it has no images.
        """
        self.paths = expand_shards(shards)
        members = next((members for _, members in read_members(self.paths[0])), {})
        if SYNTHETIC not in members:
            found = f"members {', '.join(members)}" if members else "no sample"
            raise UserError(f"{self.paths[0]} is no shard of DataCompDR: it has {found}, but no {SYNTHETIC}.")
        if not index_shard(self.paths[0]).keys:
            raise UserError(
                f"{self.paths[0]} has no images; download them as shards, and join the texts to these with "
                f"`vlp data import tables '*.tar' --shards IMAGES --name datacompdr`."
            )

    def __len__(self) -> int:
        return sum(len(index.keys) + len(index.bad) for index in map(index_shard, self.paths))

    def __iter__(self) -> Iterator[ImportedSample | BadSample]:
        for path in self.paths:
            yield from index_shard(path).bad  # these have no image, or are not among the members
            for key, members in read_members(path):
                extension = next((name for name in members if name in IMAGE_EXTENSIONS), None)
                if extension is None:
                    continue
                try:
                    yield _read(path, key, members, extension)
                except BadSampleError as error:
                    yield BadSample(path, key, error.reason)


def _read(path: str, key: str, members: dict[str, bytes], extension: str) -> ImportedSample:
    """Raises BadSampleError for broken JSON or text."""
    sample = make_sample(key, path, members[extension], members.get("txt"), members.get("json"))
    texts = list(zip(sample.captions, sample.sources, strict=True))
    if not texts:
        own = (sample.info.get(name) for name in ("text", "caption"))
        texts = [(text.strip(), "web") for text in own if isinstance(text, str) and text.strip()][:1]
    texts += [(text, "synthetic") for text in synthetic_texts(members)]
    extra = {name: data for name, data in members.items() if name not in (extension, "txt", "json")}
    captions, sources = [text for text, _ in texts], [source for _, source in texts]
    return ImportedSample(key, sample.image, extension, captions, sample.info, extra=extra, sources=sources)


def synthetic_texts(members: dict[str, bytes]) -> list[str]:
    """The synthetic captions of a sample, [] where it has none.

    Raises:
        BadSampleError: their JSON is broken.
    """
    try:
        facts = json.loads(members.get(SYNTHETIC, b"{}"))
        texts = facts.get("syn_text") or []
    except (ValueError, RecursionError, AttributeError):
        raise BadSampleError("bad json") from None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadSampleError("bad json")
    return [text.strip() for text in texts if text.strip()]


def write_rows(shard: str, table: Path) -> None:
    """Write the names and synthetic captions of a shard's samples, which need no images, as a parquet table.

    Raises:
        UserError: the shard is no shard of DataCompDR.
    """
    rows: list[dict] = []
    for _, members in read_members(shard):
        try:
            facts = json.loads(members.get("json", b"{}"))
            url = members.get("url.txt", b"").decode("utf-8", "replace").strip()
            names = {name: facts.get(name) for name in ("uid", "sha256")}
            names = {name: value if isinstance(value, str) else None for name, value in names.items()}
            rows.append({**names, "url": url or None, "syn_text": synthetic_texts(members)})
        except (ValueError, RecursionError, AttributeError, BadSampleError):
            continue  # a row without a name joins nothing
    if not any(row["syn_text"] for row in rows):
        raise UserError(f"{shard} is no table and no shard of DataCompDR: none of its samples has a {SYNTHETIC}.")
    pq.write_table(pa.Table.from_pylist(rows, COLUMNS), table)
