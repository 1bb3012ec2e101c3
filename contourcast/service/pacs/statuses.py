"""DICOM's status codes as a table: value, category, meaning.

Each row is a range of values, since the standard gives out many statuses by their first digits
alone (``Cxxx``). The rows of a service stand before those of all services; the first that fits is
taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

Category = Literal["success", "pending", "warning", "failure", "cancel"]
Service = Literal["echo", "store", "find", "move", "get", "commit"]

SUCCESS: Final = 0x0000
OUT_OF_RESOURCES: Final = 0xA700
MISMATCH: Final = 0xA900
CANNOT_UNDERSTAND: Final = 0xC000
PROCESSING_FAILURE: Final = 0x0110
NO_SUCH_INSTANCE: Final = 0x0112
INVALID_ARGUMENT: Final = 0x0115
CLASS_NOT_SUPPORTED: Final = 0x0122


class Row(NamedTuple):
    """The values from `first` to `last` and what they mean."""

    first: int
    last: int
    category: Category
    meaning: str


# PS3.7 Annex C: any service may answer these.
GENERAL: Final = (
    Row(0x0000, 0x0000, "success", "done"),
    Row(0x0001, 0x0001, "warning", "done in part, or with a remark"),
    Row(0x0105, 0x0105, "failure", "no such attribute"),
    Row(0x0106, 0x0106, "failure", "invalid value of an attribute"),
    Row(0x0107, 0x0107, "warning", "some attributes were not known"),
    Row(0x0110, 0x0110, "failure", "failure while it was worked on"),
    Row(0x0111, 0x0111, "failure", "an instance of this UID is there already"),
    Row(0x0112, 0x0112, "failure", "no such instance"),
    Row(0x0113, 0x0113, "failure", "no such event"),
    Row(0x0114, 0x0114, "failure", "no such argument"),
    Row(0x0115, 0x0115, "failure", "invalid value of an argument"),
    Row(0x0116, 0x0116, "warning", "a value is out of range"),
    Row(0x0117, 0x0117, "failure", "invalid UID of the instance"),
    Row(0x0118, 0x0118, "failure", "no such class"),
    Row(0x0119, 0x0119, "failure", "the instance is of another class"),
    Row(0x0120, 0x0120, "failure", "an attribute is missing"),
    Row(0x0121, 0x0121, "failure", "an attribute has no value"),
    Row(0x0122, 0x0122, "failure", "the class is not supported"),
    Row(0x0123, 0x0123, "failure", "no such action"),
    Row(0x0124, 0x0124, "failure", "not authorised"),
    Row(0x0131, 0x0131, "failure", "the transaction is known already"),
    Row(0x0210, 0x0210, "failure", "the message was sent twice"),
    Row(0x0211, 0x0211, "failure", "no such operation"),
    Row(0x0212, 0x0212, "failure", "a parameter of the message is of the wrong type"),
    Row(0x0213, 0x0213, "failure", "out of resources"),
    Row(0xFE00, 0xFE00, "cancel", "cancelled"),
    Row(0xFF00, 0xFF01, "pending", "more is to come"),
)

OF_SERVICE: Final[dict[Service, tuple[Row, ...]]] = {
    "echo": (),
    # PS3.4 Table B.2-1
    "store": (
        Row(0xA700, 0xA7FF, "failure", "out of resources"),
        Row(0xA900, 0xA9FF, "failure", "the data set does not match its class"),
        Row(0xB000, 0xB000, "warning", "stored with changed attributes"),
        Row(0xB006, 0xB006, "warning", "stored without some attributes"),
        Row(0xB007, 0xB007, "warning", "stored, though it does not match its class"),
        Row(0xC000, 0xCFFF, "failure", "not understood"),
    ),
    # PS3.4 Table C.4-1
    "find": (
        Row(0xA700, 0xA7FF, "failure", "out of resources"),
        Row(0xA900, 0xA9FF, "failure", "the query does not match its class"),
        Row(0xC000, 0xCFFF, "failure", "not able to search"),
    ),
    # PS3.4 Table C.4-2
    "move": (
        Row(0xA701, 0xA701, "failure", "out of resources: it could not count the matches"),
        Row(0xA702, 0xA702, "failure", "out of resources: it could not send them"),
        Row(0xA700, 0xA7FF, "failure", "out of resources"),
        Row(0xA801, 0xA801, "failure", "it does not know the AE that it shall send to"),
        Row(0xA900, 0xA9FF, "failure", "the query does not match its class"),
        Row(0xB000, 0xB000, "warning", "some instances failed"),
        Row(0xC000, 0xCFFF, "failure", "not able to send"),
    ),
    # PS3.4 Table C.4-3
    "get": (
        Row(0xA701, 0xA701, "failure", "out of resources: it could not count the matches"),
        Row(0xA702, 0xA702, "failure", "out of resources: it could not send them"),
        Row(0xA700, 0xA7FF, "failure", "out of resources"),
        Row(0xA900, 0xA9FF, "failure", "the query does not match its class"),
        Row(0xB000, 0xB000, "warning", "some instances failed"),
        Row(0xC000, 0xCFFF, "failure", "not able to send"),
    ),
    "commit": (),
}


@dataclass(frozen=True, kw_only=True)
class Status:
    """What a peer answered: the code and what it says."""

    value: int
    category: Category
    meaning: str

    def __str__(self) -> str:
        return f"status {self.value:04X}, {self.meaning}"

    @property
    def done(self) -> bool:
        """Whether what was asked for is done, be it with a remark."""
        return self.category in ("success", "warning")

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed later, as it stands."""
        return self.meaning.startswith("out of resources") or self.value == PROCESSING_FAILURE


def status_of(service: Service, value: int) -> Status:
    """The row of a value; one that the standard does not know counts as a failure."""
    for row in (*OF_SERVICE[service], *GENERAL):
        if row.first <= value <= row.last:
            return Status(value=value, category=row.category, meaning=row.meaning)
    return Status(value=value, category="failure", meaning="a status that the standard lacks")
