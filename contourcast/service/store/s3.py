"""A store in a bucket of an S3-compatible server, through boto3.

The SHA-256 of each file travels three times: signed with the request, so that the server refuses
what was changed on the way; as metadata of the object; and in most keys. What comes back is
compared with it. Nothing is asked of a server that older ones do not know: no checksum trailers,
no conditional writes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from contourcast.service.problems import DiskFullError, NotFoundError, StoreError
from contourcast.service.store.blobs import (
    PARALLEL,
    Detail,
    damaged,
    digest_in,
    digest_of,
    in_parallel,
    require_key,
    require_prefix,
)
from contourcast.service.store.cache import LruCache

MIB: Final = 1024 * 1024
DIGEST: Final = "sha256"  # the metadatum: x-amz-meta-sha256
DAMAGED: Final = ".damaged/"
MISSING: Final = ("404", "NoSuchKey", "NotFound")
FULL: Final = ("QuotaExceeded", "507", "InsufficientStorage", "XMinioStorageFull")
FORBIDDEN: Final = ("401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch")
# An upload in parts that was begun so long ago and not completed never will be.
STALE: Final = timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Where a bucket is, and how it is asked.

    Attributes:
        endpoint: Of the server; empty: that of AWS's region.
        prefix: Before every key, without slashes at its ends; empty: none.
        access_key, secret_key: Empty: what boto3 finds by itself (``AWS_ACCESS_KEY_ID`` and
            ``AWS_SECRET_ACCESS_KEY``, its files, the machine's role).
        path_style: Whether the bucket stands in the path and not in the name of the host.
        part_bytes: Files above are sent in parts of this size.
        attempts: Of each request, with growing pauses.
    """

    name: str
    prefix: str = ""
    endpoint: str = ""
    region: str = "us-east-1"
    access_key: str = ""
    secret_key: str = field(default="", repr=False)
    ca_file: Path | None = None
    path_style: bool = True
    part_bytes: int = 16 * MIB
    connect_s: float = 5.0
    read_s: float = 30.0
    attempts: int = 4


class BucketStore:
    """Each key is an object; files are read from a cache on this machine."""

    def __init__(self, bucket: Bucket, *, cache: LruCache) -> None:
        self.bucket = bucket
        self.cache = cache
        self._before = f"{bucket.prefix}/" if bucket.prefix else ""
        self._client = _client(bucket)
        self._transfer = TransferConfig(
            multipart_threshold=bucket.part_bytes,
            multipart_chunksize=bucket.part_bytes,
            max_concurrency=PARALLEL,
        )

    def close(self) -> None:
        """Closes its sockets."""
        self._client.close()

    def put(self, files: Mapping[str, Path]) -> None:
        """See `Blobs.put`; what was sent becomes the copy in the cache."""
        for key in files:
            require_key(key)
        in_parallel(lambda one: self._send(*one), files.items())

    def get(self, key: str) -> Path:
        """See `Blobs.get`."""
        require_key(key)
        return self.cache.get(key) or self.cache.fill(key, lambda draft: self._bring(key, draft))

    def has(self, key: str) -> bool:
        """See `Blobs.has`; the server is asked, not the cache."""
        with _told():
            try:
                self._client.head_object(**self._object(key))
            except ClientError as error:
                if _code(error) in MISSING:
                    return False
                raise
            return True

    def delete(self, key: str) -> None:
        """See `Blobs.delete`. Copies in the caches of other machines go when room is needed."""
        with _told():
            self._client.delete_object(**self._object(key))
        self.cache.discard(key)

    def list(self, prefix: str) -> Iterator[str]:
        """See `Blobs.list`."""
        return (detail.key for detail in self.details(prefix))

    @property
    def disk(self) -> None:
        """See `Dated.disk`."""

    def details(self, prefix: str) -> Iterator[Detail]:
        """See `Dated.details`."""
        require_prefix(prefix)
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket.name, Prefix=self._before + prefix
        )
        with _told():
            for page in pages:
                for one in page.get("Contents", ()):
                    key = one["Key"].removeprefix(self._before)
                    if not key.startswith("."):
                        yield Detail(key=key, size_bytes=one["Size"], put_at=one["LastModified"])

    def discard_drafts(self, at: datetime | None = None) -> int:
        """Ends uploads in parts that a killed process left; they cost room that no list shows.

        Args:
            at: The time; those begun a day before it or earlier are ended.

        Returns:
            How many.
        """
        before = (at or datetime.now(UTC)) - STALE
        pages = self._client.get_paginator("list_multipart_uploads").paginate(
            Bucket=self.bucket.name, Prefix=self._before
        )
        ended = 0
        with _told():
            for page in pages:
                for one in page.get("Uploads", ()):
                    if one["Initiated"] <= before:
                        self._client.abort_multipart_upload(
                            Bucket=self.bucket.name, Key=one["Key"], UploadId=one["UploadId"]
                        )
                        ended += 1
        return ended

    def _object(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket.name, "Key": self._before + require_key(key)}

    def _send(self, key: str, file: Path) -> None:
        if self.has(key):
            return
        with _told():
            self._client.upload_file(
                str(file),
                **self._object(key),
                ExtraArgs={"Metadata": {DIGEST: digest_of(file)}},
                Config=self._transfer,
            )
        self.cache.adopt(key, file)

    def _bring(self, key: str, draft: Path) -> None:
        with _told():
            try:
                told = self._client.head_object(**self._object(key))
                self._client.download_file(
                    **self._object(key), Filename=str(draft), Config=self._transfer
                )
            except ClientError as error:
                if _code(error) in MISSING:
                    raise NotFoundError(
                        "the store has no such file", remedy="send it again"
                    ) from error
                raise
        promised = digest_in(key) or told.get("Metadata", {}).get(DIGEST)
        if promised and digest_of(draft) != promised:
            self._set_aside(key)
            raise damaged()

    def _set_aside(self, key: str) -> None:
        """Moves an object out of the way of its successor."""
        there = self._object(key)
        aside = f"{self._before}{DAMAGED}{key.replace('/', '+')}"
        with _told():
            self._client.copy_object(
                Bucket=self.bucket.name,
                Key=aside,
                CopySource={"Bucket": self.bucket.name, "Key": there["Key"]},
            )
            self._client.delete_object(**there)


def _client(bucket: Bucket) -> Any:
    """A client of its own session: boto3's default session is not for many threads."""
    session = boto3.session.Session(
        aws_access_key_id=bucket.access_key or None,
        aws_secret_access_key=bucket.secret_key or None,
        region_name=bucket.region,
    )
    return session.client(
        "s3",
        endpoint_url=bucket.endpoint or None,
        verify=str(bucket.ca_file) if bucket.ca_file else None,
        config=Config(
            signature_version="s3v4",
            connect_timeout=bucket.connect_s,
            read_timeout=bucket.read_s,
            max_pool_connections=PARALLEL * PARALLEL,
            retries={"mode": "standard", "total_max_attempts": bucket.attempts},
            s3={
                "addressing_style": "path" if bucket.path_style else "virtual",
                "payload_signing_enabled": True,
            },
            # Servers of before 2025 take its checksum trailers for part of the file, or refuse them
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Faults of the server as ours; its text stays behind."""
    try:
        yield
    except ClientError as error:
        code = _code(error)
        if code in FULL:
            raise DiskFullError(
                "the bucket of the store is full",
                remedy="raise its quota, or free space on its server, then send again",
            ) from error
        remedy = "look into the server's own log, then send again"
        if code in FORBIDDEN:
            remedy = "check the access key, the secret key and what they may do in the bucket"
        elif code == "NoSuchBucket":
            remedy = "make the bucket, or name another one: CONTOURCAST_STORE"
        raise StoreError(f"the store's server answered {code}", remedy=remedy) from error
    except (BotoCoreError, Boto3Error) as error:
        if isinstance(cause := error.__context__, ClientError):  # the transfer wraps it in words
            with _told():
                raise cause from None
        raise StoreError(
            "the store's server cannot be reached",
            remedy="look whether it runs, and its address in CONTOURCAST_STORE is right",
        ) from error


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "unknown"))
