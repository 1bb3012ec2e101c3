"""Where results go, what of them is on its way, and what happened that others should know."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from contourcast.service.api.context import Context, in_thread
from contourcast.service.api.paging import LARGEST, USUAL, Cursor, Limit, after, lead_on
from contourcast.service.pacs.destinations import Destination, WebhookDestination
from contourcast.service.pacs.notices import Kind
from contourcast.service.pacs.outbox import Delivery, DeliveryState, Outbox
from contourcast.service.problems import document_for

# What an archive may be given, in the order in which it is told.
ROLES: Final = (
    "structure_set",
    "registration",
    "signed",
    "secondary_capture",
    "pdf",
    "segmentation",
)


class DestinationItem(BaseModel):
    """A system that gets results or notices; nothing of its address or credentials."""

    name: str
    kind: str = Field(description="orthanc, dicomweb, dimse or webhook.")
    gets: list[str] = Field(description="What is sent there.")
    deliveries: dict[DeliveryState, int]


class DestinationsAnswer(BaseModel):
    """Every destination of the settings."""

    destinations: list[DestinationItem]


class DeliveryItem(BaseModel):
    """Something for one destination."""

    id: str
    destination: str
    propagation: str | None
    state: DeliveryState
    attempts: int
    made_at: str
    next_at: str = Field(description="Before then nobody tries.")
    confirm_at: str | None
    objects: list[dict[str, Any]] = Field(description="Role, digest and UIDs of what goes.")
    receipt: dict[str, Any]
    problem: dict[str, Any] = Field(description="Why the last attempt failed.")


class DeliveriesAnswer(BaseModel):
    """Deliveries, newest first."""

    deliveries: list[DeliveryItem]


class NoticeItem(BaseModel):
    """One thing that happened."""

    number: int
    at: str
    kind: Kind
    subject: str = Field(description="A UID or an id.")
    body: dict[str, Any]


class NoticesAnswer(BaseModel):
    """Notices in their order."""

    notices: list[NoticeItem]
    last: int = Field(description="Ask on with `after` of this number.")


def routes(context: Context) -> APIRouter:
    """The routes over one application's records."""
    router = APIRouter(tags=["deliveries"])
    outbox = Outbox(context.records.index)
    notices = context.records.notices

    @router.get("/v1/destinations")
    async def get_destinations() -> DestinationsAnswer:
        """Where results go."""
        counts = await in_thread(outbox.counts)
        return DestinationsAnswer(
            destinations=[_destination(one, counts) for one in context.settings.destinations]
        )

    @router.get("/v1/deliveries")
    async def get_deliveries(
        request: Request,
        response: Response,
        state: DeliveryState | None = None,
        destination: Annotated[str | None, Query(max_length=40)] = None,
        propagation: Annotated[str | None, Query(max_length=64)] = None,
        limit: Limit = USUAL,
        cursor: Cursor = "",
    ) -> DeliveriesAnswer:
        """What goes, and went, where."""
        (before,) = after(cursor, int) or (None,)
        found = await in_thread(
            lambda: outbox.list(
                before=before,
                limit=limit + 1,
                state=state,
                destination=destination,
                propagation=propagation,
            )
        )
        if len(found) > limit:
            lead_on(request, response, found[limit - 1].number)
        return DeliveriesAnswer(deliveries=[_delivery(each) for each in found[:limit]])

    @router.get("/v1/deliveries/{delivery}", responses=document_for(404))
    async def get_delivery(delivery: str) -> DeliveryItem:
        """One delivery, and what its destination said."""
        return _delivery(await in_thread(outbox.get, delivery))

    @router.post("/v1/deliveries/{delivery}/resend", responses=document_for(404))
    async def resend(delivery: str) -> DeliveryItem:
        """Send it again, as often as if it were new."""
        return _delivery(await in_thread(outbox.resend, delivery))

    @router.get("/v1/notices")
    async def get_notices(
        request: Request,
        response: Response,
        after: Annotated[int, Query(ge=0, lt=LARGEST, description="The last number known.")] = 0,
        limit: Limit = USUAL,
    ) -> NoticesAnswer:
        """What happened since: for programs that rather ask than be told by a webhook."""
        found = await in_thread(lambda: notices.list(after=after, limit=limit))
        last = found[-1].number if found else after
        if len(found) == limit:
            url = request.url.include_query_params(after=last)
            response.headers["Link"] = f'<{url.path}?{url.query}>; rel="next"'
        return NoticesAnswer(
            notices=[
                NoticeItem(number=n.number, at=n.at, kind=n.kind, subject=n.subject, body=n.body)
                for n in found
            ],
            last=last,
        )

    return router


def _destination(one: Destination, counts: dict[tuple[str, str], int]) -> DestinationItem:
    if isinstance(one, WebhookDestination):
        gets = ["notices"] if one.kinds is None else list(one.kinds)
    else:
        gets = [role for role in ROLES if getattr(one, role)]
    return DestinationItem(
        name=one.name,
        kind=one.kind,
        gets=gets,
        deliveries={
            state: counts[one.name, state] for state in DeliveryState if (one.name, state) in counts
        },
    )


def _delivery(found: Delivery) -> DeliveryItem:
    return DeliveryItem(
        id=found.id,
        destination=found.destination,
        propagation=found.propagation or None,
        state=found.state,
        attempts=found.attempts,
        made_at=found.made_at,
        next_at=found.next_at,
        confirm_at=found.confirm_at,
        objects=found.objects,
        receipt=found.receipt,
        problem=found.problem,
    )
