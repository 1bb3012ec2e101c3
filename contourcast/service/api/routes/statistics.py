"""What people had to do to each method's contours, over everything that was decided."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, Field

from contourcast.service.api.context import Context, in_thread
from contourcast.service.review.history import MethodEditing, editing


class EditingAnswer(BaseModel):
    """Editing by method."""

    methods: list[MethodEditing]
    since: str | None = Field(description="When the first decision was made; null: none was.")


def routes(context: Context) -> APIRouter:
    """The routes over one application's records."""
    router = APIRouter(tags=["statistics"])
    index = context.records.index

    @router.get("/v1/statistics/editing")
    async def get_editing() -> EditingAnswer:
        """How often each method's contour was signed unchanged, edited or rejected."""

        def find() -> EditingAnswer:
            with index.read() as at:
                methods, since = editing(at)
            return EditingAnswer(methods=methods, since=since)

        return await in_thread(find)

    return router
