"""How a structure set is written for the system that imports it: five lines for each.

A profile never changes geometry: the same points bound the same tissue, whatever it says. What the
systems themselves want stands in CLINICAL_SERVICE §2.8 with its sources; none of them could be
tried here, so what is not known is left as the writer does it.
"""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field


class Profile(BaseModel):
    """The five lines."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name_bytes: int = Field(default=16, ge=8, le=16, description="Length of ROI names, bytes.")
    holes: Literal["keyhole", "xor"] = Field(
        default="keyhole",
        description="A hole is cut open from its outline, or is a loop of its own.",
    )
    points_at_most: int | None = Field(
        default=None, ge=3, description="Points of a loop; one with more is not sent."
    )
    transfer_syntax: Literal["implicit", "explicit"] = Field(
        default="implicit", description="Implicit or Explicit VR Little Endian."
    )
    charset: Literal["ISO_IR 192", "ISO_IR 100"] = Field(
        default="ISO_IR 192",
        description="UTF-8, or Latin-1 where all text of a set can be written in it.",
    )


DEFAULT: Final = Profile()  # what the writer writes
PROFILES: Final[dict[str, Profile]] = {
    "default": DEFAULT,
    "eclipse": Profile(
        name_bytes=16,
        holes="keyhole",
        points_at_most=None,
        transfer_syntax="implicit",
        charset="ISO_IR 100",
    ),
    "raystation": Profile(
        name_bytes=16,
        holes="keyhole",
        points_at_most=None,
        transfer_syntax="implicit",
        charset="ISO_IR 192",
    ),
}
