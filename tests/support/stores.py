"""Stores of every kind for one test-suite, each opened by the address that a site would write."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from contourcast.service.store.blobs import Dated
from contourcast.service.store.open import Credentials, open_store
from support.orthanc import free_ports

BUCKET: Final = "contourcast"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a store lies, and how to meddle with what lies in it.

    Attributes:
        overwrite: Puts other bytes under a key, behind the store's back.
        writing: Whether something is on its way in.
        unreachable: What the address would be if nobody answered; empty: it makes no difference.
    """

    url: str
    folder: Path
    overwrite: Callable[[str, bytes], object]
    writing: Callable[[], bool]
    unreachable: str
    credentials: Credentials = field(default_factory=Credentials)

    def open(self, *, machine: str = "one") -> Dated:
        """The store as a machine sees it that shares nothing with another one but the store."""
        return open_store(self.url, folder=self.folder / machine, credentials=self.credentials)

    def put_in_child(self, key: str, path: Path) -> subprocess.Popen[bytes]:
        """A process of its own that puts a file, to be killed."""
        known = self.credentials
        program = (
            "import sys; from pathlib import Path;"
            "from contourcast.service.store.open import Credentials, open_store;"
            "a = sys.argv;"
            "open_store(a[1], folder=Path(a[2]), credentials=Credentials(user=a[3], password=a[4]))"
            ".put({a[5]: Path(a[6])})"
        )
        words = (self.url, str(self.folder / "child"), known.user, known.password, key, str(path))
        return subprocess.Popen([sys.executable, "-c", program, *words])


def folder_place(folder: Path) -> Place:
    """A folder."""
    place = folder / "store"
    return Place(
        url=place.as_uri(),
        folder=folder,
        overwrite=lambda key, content: (place / key).write_bytes(content),
        writing=lambda: any(one.stat().st_size for one in (place / ".drafts").glob("*")),
        unreachable="",
    )


def pacs_place(folder: Path) -> Place:
    """A PACS that nothing was released to yet, so nobody needs to be there."""
    place = folder / "one" / "store"
    return Place(
        url=f"dicomweb+http://127.0.0.1:{free_ports(1)[0]}/dicom-web",
        folder=folder,
        overwrite=lambda key, content: (place / key).write_bytes(content),
        writing=lambda: any(
            one.stat().st_size for one in (folder / "child" / "store" / ".drafts").glob("*")
        ),
        unreachable="",
    )


def bucket_place(folder: Path, *, endpoint: str, client: Any, user: str, password: str) -> Place:
    """A bucket of its own on a server that runs."""
    client.create_bucket(Bucket=folder_name(folder))
    name = folder_name(folder)
    return Place(
        url=f"s3://{name}/some/where?endpoint={endpoint}",
        folder=folder,
        overwrite=lambda key, content: client.put_object(
            Bucket=name, Key=f"some/where/{key}", Body=content
        ),
        writing=lambda: bool(client.list_multipart_uploads(Bucket=name).get("Uploads")),
        unreachable=f"s3://{name}?endpoint=http://127.0.0.1:{free_ports(1)[0]}",
        credentials=Credentials(user=user, password=password),
    )


def folder_name(folder: Path) -> str:
    """A name for the bucket of a test, from its folder's."""
    letters = "".join(c if c.isalnum() else "-" for c in folder.name.lower())
    return f"{BUCKET}-{letters}"[:60].rstrip("-")


@contextmanager
def nobody() -> Iterator[int]:
    """A port whose server takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield silent.getsockname()[1]
