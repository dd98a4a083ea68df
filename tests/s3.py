"""A real S3 server for the tests: moto's, on a free port of 127.0.0.1, with a new bucket for each test."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

_numbers = count()


@dataclass
class Bucket:
    """An empty bucket.

    Attributes:
        endpoint: the address of the server, `http://127.0.0.1:PORT`.
        url: the bucket, `s3://NAME`.
        files: the file system of fsspec.
    """

    endpoint: str
    url: str
    files: Any

    def upload(self, folder: str | Path, name: str) -> str:
        """Copy the files of a local folder; returns their address."""
        for path in sorted(Path(folder).iterdir()):
            self.files.put_file(str(path), f"{self.url}/{name}/{path.name}")
        return f"{self.url}/{name}"

    def names(self, under: str = "") -> list[str]:
        """The names of all objects below a folder, without the bucket's name."""
        self.files.invalidate_cache()
        return sorted(one.partition("/")[2] for one in self.files.find(f"{self.url}/{under}"))


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3 server that runs in this process."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # no line for every request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server, monkeypatch) -> Iterator[Bucket]:
    """An empty bucket. This process and those that it starts reach it through the environment."""
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem()
    bucket = f"bucket-{next(_numbers)}"
    files.mkdir(bucket)
    yield Bucket(s3_server, f"s3://{bucket}", files)
    s3fs.S3FileSystem.clear_instance_cache()
