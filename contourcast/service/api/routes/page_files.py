"""The review page itself, as `make page` built it: files that hold nothing of any patient.

Whatever the page does goes through the API, under the caller's own session. What it may load is
told to the browser: scripts, styles, pictures and connections of this very address alone.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import re
from pathlib import Path
from typing import Annotated, Final, NamedTuple

from fastapi import APIRouter, Header, Response
from fastapi.responses import RedirectResponse

from contourcast.service.api.conditional import takes_gzip
from contourcast.service.api.context import Context, in_thread
from contourcast.service.problems import NotFoundError

BUILT: Final = Path(__file__).parents[2] / "static"
INDEX: Final = "index.html"
POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "font-src 'self'",
        "worker-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
SAFE: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
# What is built has the digest of its content in its name; the page that names it has not.
FOR_EVER: Final = "public, max-age=31536000, immutable"
ASK_AGAIN: Final = "no-cache"
KINDS: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
    ".woff2": "font/woff2",
}
SMALLER_BY_GZIP: Final = frozenset({".css", ".html", ".js", ".json", ".svg", ".txt", ".wasm"})
NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}", re.ASCII)


class _File(NamedTuple):
    content: bytes
    compressed: bytes | None
    tag: str


def routes(context: Context, *, built: Path = BUILT) -> APIRouter:
    """The routes over one built page."""
    del context
    router = APIRouter(include_in_schema=False)

    async def give(folder: Path, name: str, accept_encoding: str) -> Response:
        if not (built / INDEX).is_file():
            raise NotFoundError("the review page is not built", remedy="run `make page`")
        path = folder / name
        if not NAME.fullmatch(name) or path.suffix not in KINDS or not path.is_file():
            raise NotFoundError("the review page has no such file", remedy="open /review/")
        file = await in_thread(_read, path, path.stat().st_mtime_ns)
        headers = SAFE | {
            "Cache-Control": FOR_EVER if folder != built else ASK_AGAIN,
            "ETag": f'"{file.tag}"',
            "Vary": "Accept-Encoding",
        }
        content = file.content
        if file.compressed is not None and takes_gzip(accept_encoding):
            content = file.compressed
            headers |= {"Content-Encoding": "gzip", "ETag": f'"{file.tag}-gzip"'}
        return Response(content, media_type=KINDS[path.suffix], headers=headers)

    @router.get("/")
    @router.get("/review")
    async def go_to_page() -> Response:
        """The page, wherever somebody comes in."""
        if not (built / INDEX).is_file():
            raise NotFoundError("the review page is not built", remedy="run `make page`")
        return RedirectResponse("/review/", headers=SAFE)

    @router.get("/review/")
    async def get_page(accept_encoding: Annotated[str, Header()] = "") -> Response:
        """The page."""
        return await give(built, INDEX, accept_encoding)

    @router.get("/review/assets/{name}")
    async def get_asset(name: str, accept_encoding: Annotated[str, Header()] = "") -> Response:
        """What the page loads."""
        return await give(built / "assets", name, accept_encoding)

    return router


@functools.lru_cache(maxsize=64)
def _read(path: Path, changed_ns: int) -> _File:
    """A file and its compressed form, until it changes."""
    del changed_ns
    content = path.read_bytes()
    compressed = gzip.compress(content, 9, mtime=0) if path.suffix in SMALLER_BY_GZIP else None
    return _File(content, compressed, hashlib.sha256(content).hexdigest())
