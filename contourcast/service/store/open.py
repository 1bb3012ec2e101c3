"""From one setting to a store: ``file:///…``, ``s3://…`` or ``dicomweb+https://…``."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from contourcast.service.problems import SettingsError
from contourcast.service.store.blobs import PREFIX, Dated
from contourcast.service.store.cache import LruCache
from contourcast.service.store.files import FolderStore

GIB: Final = 1024**3
EXAMPLES: Final = (
    "CONTOURCAST_STORE is file:///FOLDER, s3://BUCKET/PREFIX?endpoint=https://HOST "
    "or dicomweb+https://HOST/PATH"
)
S3_OPTIONS: Final = frozenset({"endpoint", "region", "style", "insecure"})


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """What a store asks for; for a bucket, empty leaves it to boto3 (``AWS_…`` variables, roles).

    Attributes:
        user, password: Access key and secret key of a bucket; HTTP Basic of a PACS.
        token: Bearer token of a PACS.
        ca_file: Certificates to trust instead of the system's.
    """

    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    ca_file: Path | None = None


def open_store(
    url: str,
    *,
    folder: Path,
    cache_bytes: int = 50 * GIB,
    credentials: Credentials | None = None,
) -> Dated:
    """The store that a setting names; nothing is asked of a server yet.

    Args:
        url: ``file:///FOLDER``; ``s3://BUCKET/PREFIX?endpoint=https://HOST:PORT`` with, if need be,
            ``&region=NAME``, ``&style=virtual`` (the bucket stands in the host's name) and
            ``&insecure=yes`` (no TLS, on a network that is trusted); or
            ``dicomweb+https://HOST/PATH`` with ``?insecure=yes`` for ``dicomweb+http``.
        folder: The data folder of this machine, for ``cache/`` and, with a PACS, for ``store/``.
        cache_bytes: Of the copies of what lies elsewhere.
        credentials: For what lies elsewhere.

    Raises:
        SettingsError: It is none of these.
        StoreError: The folder cannot be made.
    """
    parts = _split(url)
    known = credentials or Credentials()
    if parts.scheme == "file":
        return FolderStore(_folder(parts))
    if parts.scheme == "s3":
        from contourcast.service.store.s3 import Bucket, BucketStore

        options = _options(parts, S3_OPTIONS)
        endpoint = options.get("endpoint", "")
        if endpoint:
            _require_tls(_split(endpoint), options)
        prefix = unquote(parts.path).strip("/")
        if not parts.hostname or not PREFIX.fullmatch(prefix):
            raise _unknown("the bucket's name or the prefix in it is none")
        return BucketStore(
            Bucket(
                name=parts.hostname,
                prefix=prefix,
                endpoint=endpoint,
                region=options.get("region", "us-east-1"),
                access_key=known.user,
                secret_key=known.password,
                ca_file=known.ca_file,
                path_style=options.get("style", "path") != "virtual",
            ),
            cache=LruCache(folder / "cache", limit_bytes=cache_bytes),
        )
    if parts.scheme in ("dicomweb+https", "dicomweb+http"):
        from contourcast.service.pacs.connection import Peer
        from contourcast.service.pacs.dicomweb import DicomWeb
        from contourcast.service.store.wado import PacsStore

        options = _options(parts, frozenset({"insecure"}))
        web = parts._replace(scheme=parts.scheme.removeprefix("dicomweb+"), query="")
        _require_tls(web, options)
        peer = Peer(
            name="store",
            url=web.geturl(),
            user=known.user,
            password=known.password,
            token=known.token,
            ca_file=known.ca_file,
        )
        return PacsStore(
            FolderStore(folder / "store"),
            DicomWeb(peer),
            cache=LruCache(folder / "cache", limit_bytes=cache_bytes),
        )
    raise _unknown(f"'{parts.scheme}' is no kind of store")


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  # raises where it is no number
    except ValueError as error:
        raise _unknown("the address of the store cannot be read") from error
    if parts.fragment or parts.username is not None or parts.password is not None:
        raise _unknown("the address of the store holds a password or a fragment")
    return parts


def _folder(parts: SplitResult) -> Path:
    if parts.netloc not in ("", "localhost") or parts.query or not parts.path.startswith("/"):
        raise _unknown("the folder of the store is not given from the root of the disk")
    return Path(unquote(parts.path))


def _options(parts: SplitResult, known: frozenset[str]) -> dict[str, str]:
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if not set(options) <= known:
        raise _unknown(f"the store takes no option but {', '.join(sorted(known))}")
    return options


def _require_tls(parts: SplitResult, options: dict[str, str]) -> None:
    """Patient data crosses no network in the clear unless the site says so."""
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _unknown("the server of the store has no https:// address")
    if parts.scheme == "http" and not _is_here(parts.hostname) and options.get("insecure") != "yes":
        raise SettingsError(
            "the store would be reached without TLS",
            remedy="name its https:// address, or add insecure=yes where the network is trusted",
        )


def _is_here(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _unknown(fault: str) -> SettingsError:
    return SettingsError(fault, remedy=EXAMPLES)
