"""A bucket on a real Ceph: when the server is away, when it lies, and what is never asked twice."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from contourcast.service.problems import DamagedError, DiskFullError, NotFoundError, StoreError
from contourcast.service.store.cache import LruCache
from contourcast.service.store.s3 import MIB, Bucket, BucketStore
from support.ceph import Ceph, ceph
from support.orthanc import free_ports
from support.stores import folder_name, nobody

pytestmark = pytest.mark.peer


@pytest.fixture(scope="module")
def server() -> Iterator[Ceph]:
    with ceph() as running:
        yield running


@pytest.fixture
def bucket(server: Ceph, tmp_path: Path) -> Bucket:
    name = folder_name(tmp_path)
    server.client().create_bucket(Bucket=name)
    return Bucket(
        name=name,
        endpoint=server.endpoint,
        access_key=server.access_key,
        secret_key=server.secret_key,
        attempts=2,
        part_bytes=5 * MIB,
    )


@pytest.fixture
def store(bucket: Bucket, tmp_path: Path) -> Iterator[BucketStore]:
    with opened(bucket, tmp_path / "cache") as one:
        yield one


def opened(bucket: Bucket, cache: Path) -> closing[BucketStore]:
    return closing(BucketStore(bucket, cache=LruCache(cache, limit_bytes=10**9)))


def file_of(folder: Path, content: bytes) -> Path:
    path = folder / f"incoming-{len(list(folder.iterdir()))}"
    path.write_bytes(content)
    return path


def test_nobody_at_the_address_is_told_as_such(bucket: Bucket, tmp_path: Path) -> None:
    away = replace(bucket, endpoint=f"http://127.0.0.1:{free_ports(1)[0]}")
    file = file_of(tmp_path, b"bytes")
    with opened(away, tmp_path / "cache") as store:
        for use in (store.get, store.has, store.delete, lambda key: list(store.list(key))):
            with pytest.raises(StoreError, match="cannot be reached"):
                use("a/b")
        with pytest.raises(StoreError, match="cannot be reached"):
            store.put({"a/b": file})
    assert file.read_bytes() == b"bytes"


def test_a_server_that_says_nothing_is_given_up(bucket: Bucket, tmp_path: Path) -> None:
    with nobody() as port:
        silent = replace(bucket, endpoint=f"http://127.0.0.1:{port}", read_s=0.2, attempts=1)
        with (
            opened(silent, tmp_path / "cache") as store,
            pytest.raises(StoreError, match="cannot be reached"),
        ):
            store.has("a/b")


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"secret_key": "wrong"}, "secret key"),
        ({"access_key": "nobody"}, "access key"),
        ({"name": "never-made"}, "make the bucket"),
    ],
)
def test_what_the_settings_got_wrong_is_said(
    bucket: Bucket, tmp_path: Path, change: dict[str, str], remedy: str
) -> None:
    with opened(replace(bucket, **change), tmp_path / "cache") as store:  # type: ignore[arg-type]
        with pytest.raises(StoreError) as told:
            store.put({"a/b": file_of(tmp_path, b"bytes")})
        assert remedy in told.value.remedy or "bucket" in told.value.remedy
        with pytest.raises(StoreError) as told:
            list(store.list(""))
        assert remedy in told.value.remedy
        assert "wrong" not in str(told.value)


def test_a_gateway_that_is_killed_loses_nothing(
    server: Ceph, store: BucketStore, bucket: Bucket, tmp_path: Path
) -> None:
    content = os.urandom(12 * MIB)  # three parts
    store.put({"a/small": file_of(tmp_path, b"bytes"), "a/big": file_of(tmp_path, content)})
    server.kill()
    assert store.get("a/big").read_bytes() == content  # from here
    with (
        opened(bucket, tmp_path / "other cache") as elsewhere,
        pytest.raises(StoreError, match="cannot be reached"),
    ):
        elsewhere.get("a/big")
    server.start()
    with opened(bucket, tmp_path / "other cache") as elsewhere:
        assert elsewhere.get("a/big").read_bytes() == content
        assert elsewhere.get("a/small").read_bytes() == b"bytes"


def test_damage_is_found_by_the_digest_beside_the_object(
    server: Ceph, store: BucketStore, bucket: Bucket, tmp_path: Path
) -> None:
    store.put({"results/a/RS.dcm": file_of(tmp_path, b"sound")})
    digest = server.client().head_object(Bucket=bucket.name, Key="results/a/RS.dcm")["Metadata"]
    server.client().put_object(
        Bucket=bucket.name, Key="results/a/RS.dcm", Body=b"soumd", Metadata=digest
    )
    with opened(bucket, tmp_path / "other cache") as elsewhere:
        with pytest.raises(DamagedError):
            elsewhere.get("results/a/RS.dcm")
        with pytest.raises(NotFoundError):
            elsewhere.get("results/a/RS.dcm")
    assert server.client().head_object(Bucket=bucket.name, Key=".damaged/results+a+RS.dcm")


def test_a_damaged_copy_is_fetched_again(store: BucketStore, tmp_path: Path) -> None:
    store.put({"a/b": file_of(tmp_path, b"sound")})
    store.get("a/b").write_bytes(b"soumd")
    assert store.get("a/b").read_bytes() == b"sound"


def test_a_list_goes_over_many_pages(server: Ceph, store: BucketStore, bucket: Bucket) -> None:
    client, keys = server.client(), [f"derived/{n:05d}" for n in range(1001)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: client.put_object(Bucket=bucket.name, Key=key), keys))
    assert list(store.list("derived/")) == keys


def test_uploads_that_were_never_finished_are_ended(
    server: Ceph, store: BucketStore, bucket: Bucket
) -> None:
    client = server.client()
    client.create_multipart_upload(Bucket=bucket.name, Key="a/b")
    assert store.discard_drafts() == 0  # it may be going on
    assert store.discard_drafts(datetime.now(UTC) + timedelta(days=2)) == 1
    assert not client.list_multipart_uploads(Bucket=bucket.name).get("Uploads")


def test_a_bucket_that_is_full_is_told_as_a_full_disk(
    server: Ceph, store: BucketStore, tmp_path: Path
) -> None:
    server.limit(objects=0)
    try:
        with pytest.raises(DiskFullError, match="full"):
            store.put({"a/b": file_of(tmp_path, b"bytes")})
        with pytest.raises(DiskFullError, match="full"):
            store.put({"a/big": file_of(tmp_path, b"x" * 6 * MIB)})
    finally:
        server.limit(objects=None)
    assert not store.has("a/b")
