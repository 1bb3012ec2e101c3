"""One HTTP connection to an archive that the settings name.

Nothing that an archive says leads anywhere else: its redirects are refused, URLs in its answers are
never followed, proxies and credentials of the environment are not used, its certificate is checked,
and each of its answers has a bound. What goes wrong is a `PeerError` that quotes no answer, since
an answer may hold a patient's name.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import httpx

from contourcast.service.problems import (
    PeerError,
    PeerGoneError,
    PeerUnreachableError,
    SettingsError,
)

MIB: Final = 1024 * 1024
PIECE: Final = MIB
# Connections to one archive at a time; Orthanc 1.10.1 gains nothing from more.
PARALLEL: Final = 4
# Orthanc closes an idle connection after a second: ours are given up before.
KEPT_S: Final = 0.5
CONNECT_S: Final = 5.0
READING: Final = frozenset({"GET", "HEAD"})

T = TypeVar("T")
R = TypeVar("R")

# It writes every URL, and the URL of a query holds what was asked for, such as a patient's ID.
logging.getLogger("httpx").setLevel(logging.WARNING)


@dataclass(frozen=True, kw_only=True)
class Peer:
    """An archive, as the settings name it.

    Attributes:
        name: What it is called in settings, logs and errors.
        url: Of its REST API or DICOMweb root, without credentials.
        user, password: For HTTP Basic; empty: none.
        token: For a Bearer header, instead of user and password.
        ca_file: Certificates to trust instead of the system's.
        timeout_s: Without a byte, after which a request is given up.
        answer_limit_bytes: Of an answer that is no file.
        file_limit_bytes: Of a DICOM file.

    Raises:
        SettingsError: The URL is none that we would send patient data to.
    """

    name: str
    url: str
    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    ca_file: Path | None = None
    timeout_s: float = 30.0
    answer_limit_bytes: int = 64 * MIB
    file_limit_bytes: int = 256 * MIB

    def __post_init__(self) -> None:
        try:
            url = httpx.URL(self.url)
        except httpx.InvalidURL:
            url = httpx.URL()
        if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
            fault = "is no plain http:// or https:// address"
        elif url.userinfo:
            fault = "holds a password, which every log would show"
        elif not (self.user + self.password + self.token).isprintable():
            fault = "has credentials of characters that cannot be sent"
        else:
            return
        raise SettingsError(
            f"the URL of '{self.name}' {fault}",
            remedy="give scheme, host, port and path; user and password have settings of their own",
        )


class Connection:
    """Requests to one archive; threads may share it."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        # Uncompressed: Orthanc deflates for whoever allows it, at 6.5 instead of 238 MB/s.
        headers = {"Accept-Encoding": "identity"}
        if peer.token:
            headers["Authorization"] = f"Bearer {peer.token}"
        self._http = httpx.Client(
            base_url=peer.url,
            auth=(peer.user, peer.password) if peer.user else None,
            headers=headers,
            verify=_trusted(peer),
            timeout=httpx.Timeout(peer.timeout_s, connect=min(CONNECT_S, peer.timeout_s)),
            limits=httpx.Limits(max_connections=2 * PARALLEL, keepalive_expiry=KEPT_S),
            follow_redirects=False,
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes its sockets."""
        self._http.close()

    @contextmanager
    def stream(
        self, method: str, path: str, *, expect: Iterable[int] = (200,), **options: Any
    ) -> Iterator[httpx.Response]:
        """An answer whose body is still to be read.

        Args:
            method: Of HTTP.
            path: Below the URL of the peer, without a leading slash.
            expect: The statuses that are no error.
            options: As httpx takes them: ``params``, ``json``, ``content``, ``headers``.

        Raises:
            PeerUnreachableError: There is no answer, or its body stops in the middle.
            PeerError: The status is another one, or the body is packed.
        """
        try:
            with closing(self._answer(method, path, **options)) as answer:
                if answer.status_code not in expect:
                    raise self._refused(answer.status_code)
                if answer.headers.get("Content-Encoding", "identity") != "identity":
                    raise self.error("packs its answers although it is asked not to")
                yield answer
        except httpx.TransportError as error:
            raise PeerUnreachableError(
                f"'{self.peer.name}' does not answer",
                remedy="look whether it runs, its URL in the settings is right and, with https, "
                "its certificate is one that is trusted",
            ) from error

    def _answer(self, method: str, path: str, **options: Any) -> httpx.Response:
        """An answer as far as its headers.

        A connection that was kept may be closed at the other end at the moment that it is used;
        what only reads is asked once more. Whoever is not there, or is silent, is not.
        """
        request = self._http.build_request(method, path, **options)
        try:
            return self._http.send(request, stream=True)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            if method not in READING:
                raise
            return self._http.send(request, stream=True)

    def request(
        self, method: str, path: str, *, expect: Iterable[int] = (200,), **options: Any
    ) -> tuple[int, bytes]:
        """Status and body of an answer of bounded size.

        Raises:
            PeerError: As in `stream`, or the body is beyond the bound.
        """
        with self.stream(method, path, expect=expect, **options) as answer:
            body = bytearray()
            for piece in answer.iter_raw():
                body += piece
                if len(body) > self.peer.answer_limit_bytes:
                    raise self.error(
                        f"answered with more than {self.peer.answer_limit_bytes // MIB} MiB"
                    )
            return answer.status_code, bytes(body)

    def download(self, path: str, into: Path, *, watch: Callable[[bytes], object]) -> None:
        """Writes the body of an answer to a new file; nothing is left of one that failed.

        Args:
            path: Below the URL of the peer.
            into: A file that is not there yet.
            watch: Is shown every piece.

        Raises:
            PeerError: As in `stream`, or the file is beyond the bound.
        """
        with self.stream("GET", path) as answer, new_file(into) as write:
            for piece in self.pieces(answer):
                watch(piece)
                write(piece)

    def pieces(self, answer: httpx.Response) -> Iterator[bytes]:
        """The body of an answer that is a file, in pieces.

        Raises:
            PeerError: It has more bytes than we take.
        """
        size = 0
        for piece in answer.iter_raw(PIECE):
            size += len(piece)
            if size > self.peer.file_limit_bytes:
                raise self.error(
                    f"sent a file of more than {self.peer.file_limit_bytes // MIB} MiB"
                )
            yield piece

    def error(
        self, what: str, *, uid: str = "", remedy: str = "", kind: type[PeerError] = PeerError
    ) -> PeerError:
        """An error that names this peer."""
        return kind(f"'{self.peer.name}' {what}", uid=uid, remedy=remedy or "look into its own log")

    def _refused(self, status: int) -> PeerError:
        if status in (401, 403):
            remedy = "check its user and password in the settings"
        elif 300 <= status < 400:
            remedy = "redirects are not followed: put the address that it leads to in the settings"
        else:
            remedy = ""
        kind = PeerGoneError if status in (404, 410) else PeerError
        return self.error(f"answered with status {status}", remedy=remedy, kind=kind)


@contextmanager
def new_file(path: Path) -> Iterator[Callable[[bytes], object]]:
    """Writes a file that was not there; when that fails, it is not there either."""
    with path.open("xb") as file:
        try:
            yield file.write
        except BaseException:
            path.unlink()
            raise


def in_parallel(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Does the same with each item, a few at a time; the results in the order of the items.

    The first error is raised once those that had begun have ended; no further ones begin.
    """
    with ThreadPoolExecutor(PARALLEL) as pool:
        begun = [pool.submit(work, item) for item in items]
        try:
            return [one.result() for one in begun]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _trusted(peer: Peer) -> ssl.SSLContext | bool:
    if peer.ca_file is None or not peer.url.startswith("https:"):
        return True
    try:
        return ssl.create_default_context(cafile=peer.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"the certificates to trust for '{peer.name}' cannot be read",
            file=peer.ca_file.name,
            remedy="give a readable file of certificates in PEM",
        ) from error
