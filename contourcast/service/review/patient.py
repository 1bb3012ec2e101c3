"""Whose scan it is, as the page and the worklist tell it to those who may know."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel
from sqlalchemy import Connection, select

from contourcast.service.index.tables import series


class PatientItem(BaseModel):
    """Who it is, for those who may know."""

    key: str
    id: str
    name: str
    birth_date: str

    def without_name(self) -> PatientItem:
        """For those who may know the ID alone."""
        return self.model_copy(update={"name": "", "birth_date": ""})


def facts_of(at: Connection, series_uids: Collection[str]) -> dict[str, dict[str, Any]]:
    """What the headers of scans say (`series.facts_json`), by Series Instance UID."""
    query = select(series.c.uid, series.c.facts_json).where(series.c.uid.in_(series_uids))
    return {row.uid: row.facts_json for row in at.execute(query)}


def patient_of_scan(patient_key: str, facts: Mapping[str, Any] | None) -> PatientItem | None:
    """As the scan itself says: another issuer's patient may have the same number.

    Args:
        patient_key: Under which the index has it; empty: not known.
        facts: `series.facts_json` of the scan.
    """
    who = (facts or {}).get("patient")
    if not patient_key or who is None:
        return None
    return PatientItem(
        key=patient_key, id=who["patient_id"], name=who["name"], birth_date=who["birth_date"]
    )
