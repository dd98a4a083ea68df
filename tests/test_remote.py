"""Remote file systems: a real S3 server, and errors in one sentence."""

import fsspec

from vlp.data.shard_index import expand_shards


def test_the_s3_server_serves_what_was_uploaded(s3, tmp_path):
    (tmp_path / "0.tar").write_bytes(b"zero")
    folder = s3.upload(tmp_path, "web")
    assert expand_shards(f"{folder}/*.tar") == [f"{folder}/0.tar"]
    with fsspec.open(f"{folder}/0.tar") as file:
        assert file.read() == b"zero"
    assert s3.names() == ["web/0.tar"]
