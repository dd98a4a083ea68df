"""Write shards in img2dataset's layout; a shard appears when it is whole."""

import io
import json
import os
import tarfile
from pathlib import Path


class ShardWriter:
    """Writes `00000.tar`, `00001.tar`, ... into a folder; equal samples give equal bytes.

    Use it in a `with` block: an exception leaves no half-written shard behind.
    """

    def __init__(self, folder: str, samples_per_shard: int = 1000, first: int = 0):
        """`first` numbers the first shard."""
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.samples_per_shard = samples_per_shard
        self.number = first
        self.samples = 0
        self.archive: tarfile.TarFile | None = None

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self.archive is not None and kind is None:
            self._finish()
        elif self.archive is not None:
            self.archive.close()
            self._temporary().unlink(missing_ok=True)

    def write(
        self,
        key: str,
        image: bytes,
        extension: str,
        text: str | None,
        info: dict,
        extra: dict[str, bytes] | None = None,
    ) -> None:
        """Add a sample: its image as it is, its text, its JSON, and any further members by extension."""
        if self.archive is None:
            self.archive = tarfile.open(self._temporary(), "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        self._member(f"{key}.{extension}", image)
        if text is not None:
            self._member(f"{key}.txt", text.encode())
        self._member(f"{key}.json", json.dumps(info).encode())
        for name, data in (extra or {}).items():
            self._member(f"{key}.{name}", data)
        self.samples += 1
        if self.samples == self.samples_per_shard:
            self._finish()

    def _member(self, name: str, data: bytes) -> None:
        header = tarfile.TarInfo(name)  # time, owner and mode are TarInfo's constants
        header.size = len(data)
        self.archive.addfile(header, io.BytesIO(data))

    def _temporary(self) -> Path:
        return self.folder / f".{self.number:05d}.tar.tmp-{os.getpid()}"

    def _finish(self) -> None:
        self.archive.close()
        os.replace(self._temporary(), self.folder / f"{self.number:05d}.tar")
        self.archive, self.samples = None, 0
        self.number += 1
