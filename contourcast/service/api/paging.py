"""Pages of a list: an opaque cursor in the query, the next page in a ``Link`` (RFC 8288)."""

from __future__ import annotations

import base64
import json
from typing import Annotated, Any, Final

from fastapi import Query, Request, Response

from contourcast.imaging.errors import InputError

MOST: Final = 500
USUAL: Final = 100
LARGEST: Final = 2**53  # of a number in a cursor: what JSON and every database hold

Limit = Annotated[int, Query(ge=1, le=MOST, description="Items of a page, at most.")]
Cursor = Annotated[
    str, Query(max_length=512, description="Where the former page ended: as in its Link.")
]


def after(cursor: str, *kinds: type) -> tuple[Any, ...] | None:
    """What a cursor says: the key of the last item of the former page; none on the first page.

    Args:
        cursor: As it came.
        kinds: Of each part of the key: ``int`` or ``str``.

    Raises:
        InputError: It is not one of ours, or of another list.
    """
    if not cursor:
        return None
    try:
        key = json.loads(base64.b64decode(cursor, altchars=b"-_", validate=True))
    except (ValueError, RecursionError):
        key = None
    if (
        not isinstance(key, list)
        or [type(part) for part in key] != list(kinds)
        or any(isinstance(part, int) and not 0 <= part < LARGEST for part in key)
    ):
        raise InputError(
            "the cursor is none of this list", remedy="begin without one, and follow Link"
        )
    return tuple(key)


def cursor_at(*key: int | str) -> str:
    """The cursor of a page that begins after an item."""
    text = json.dumps(key, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode("ascii")


def lead_on(request: Request, response: Response, *key: int | str) -> None:
    """Says where the page after this one is."""
    url = request.url.include_query_params(cursor=cursor_at(*key))
    response.headers["Link"] = f'<{url.path}?{url.query}>; rel="next"'
