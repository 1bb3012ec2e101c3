"""Rows of the index with everything that a test does not care about filled in."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Float, Integer, Table

from contourcast.service.index.database import Index


def add(index: Index, table: Table, **values: Any) -> None:
    """Inserts a row."""
    row: dict[str, Any] = {}
    for column in table.columns:
        if column.name in values or column.nullable or column.autoincrement is True:
            continue
        if isinstance(column.type, JSON):
            row[column.name] = {}
        elif isinstance(column.type, Integer | Float):
            row[column.name] = 0
        else:
            row[column.name] = ""
    with index.write() as at:
        at.execute(table.insert().values(**row, **values))
