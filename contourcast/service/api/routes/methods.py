"""What a contour can be drawn with, and what is known of the network."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from contourcast.imaging.errors import ContourcastError
from contourcast.propagate import NETWORK
from contourcast.registration.methods import METHODS
from contourcast.service.api.context import Context, in_thread
from contourcast.service.jobs.network import served_model


class MethodItem(BaseModel):
    """A way to draw today's contour."""

    name: str
    kind: Literal["registration", "network"]
    weights_digest: str = ""
    unavailable: str = Field(default="", description="Why it cannot be asked for, if so.")


class MethodsAnswer(BaseModel):
    """Every method that a propagation may ask for."""

    methods: list[MethodItem]


class ModelItem(BaseModel):
    """A network with its weights, and what is known of them."""

    network: str
    digest: str = Field(
        description="SHA-256 of the card, which names the weights; part of every order."
    )
    served: bool = Field(description="Whether this service draws with it.")
    card: dict[str, Any] = Field(description="How it came about, and what it was trained to see.")


class ModelsAnswer(BaseModel):
    """Every model that this service has."""

    models: list[ModelItem]
    unavailable: str = Field(default="", description="Why there is none, if so.")


def routes(context: Context) -> APIRouter:
    """The routes over one application's records."""
    router = APIRouter(tags=["methods"])
    read = served_model(context.settings)

    @router.get("/v1/methods")
    async def get_methods() -> MethodsAnswer:
        """What a propagation may ask for."""
        name, digest, reason = NETWORK, "", ""
        try:
            name, digest = await in_thread(context.served_network)
        except ContourcastError as error:
            reason = str(error)
        network = MethodItem(name=name, kind="network", weights_digest=digest, unavailable=reason)
        carried = [MethodItem(name=method, kind="registration") for method in METHODS]
        return MethodsAnswer(methods=[*carried, network])

    @router.get("/v1/models")
    async def get_models() -> ModelsAnswer:
        """The network that is served, with its card."""
        try:
            model = await in_thread(read)
        except ContourcastError as error:
            return ModelsAnswer(models=[], unavailable=str(error))
        item = ModelItem(network=model.name, digest=model.digest, served=True, card=model.card)
        return ModelsAnswer(models=[item])

    return router
