"""Write shards in img2dataset's layout, each whole or not at all."""

import io
import json
import tarfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from vlp.data.pairs import RIGHT_EXTENSIONS
from vlp.files import writing


class ShardWriter:
    """Writes `00000.tar`, `00001.tar`, ... into a folder; equal samples give equal bytes.

    Use it in a `with` block: after an exception the shard in progress is removed.
    """

    def __init__(self, folder: str | Path, samples_per_shard: int = 1000, first: int = 0):
        """`folder` may be an address that `writing` accepts; `first` is the number of the first shard."""
        self.folder = str(folder)
        self.samples_per_shard = samples_per_shard
        self.number = first
        self.samples = 0  # in the shard in progress
        self.archive: tarfile.TarFile | None = None
        self._files = ExitStack()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *error: Any) -> None:
        self._files.__exit__(*error)

    def write(
        self,
        key: str,
        image: bytes,
        extension: str,
        text: str | None,
        info: dict,
        extra: dict[str, bytes] | None = None,
    ) -> None:
        """Add a sample: its encoded image, its text, its JSON, and any further members by extension.

        The second image of a pair is the further member `right.EXTENSION`, which is put directly after the first.
        """
        right = {name: data for name, data in (extra or {}).items() if name in RIGHT_EXTENSIONS}
        rest = {name: data for name, data in (extra or {}).items() if name not in right}
        if self.archive is None:
            temporary = self._files.enter_context(writing(f"{self.folder}/{self.number:05d}.tar"))
            archive = tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
            self.archive = self._files.enter_context(archive)
        self._add(f"{key}.{extension}", image)
        for name, data in right.items():
            self._add(f"{key}.{name}", data)
        if text is not None:
            self._add(f"{key}.txt", text.encode())
        self._add(f"{key}.json", json.dumps(info).encode())
        for name, data in rest.items():
            self._add(f"{key}.{name}", data)
        self.samples += 1
        if self.samples == self.samples_per_shard:
            self._files.close()
            self.archive, self.samples = None, 0
            self.number += 1

    def _add(self, name: str, data: bytes) -> None:
        assert self.archive is not None
        header = tarfile.TarInfo(name)  # with its default time, owner and mode
        header.size = len(data)
        self.archive.addfile(header, io.BytesIO(data))
