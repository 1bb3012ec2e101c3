"""What a service keeps in a folder, to be looked at from outside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from contourcast.service.records import Records, open_records
from contourcast.service.settings import ServiceSettings


@contextmanager
def looking_into(folder: Path) -> Iterator[Records]:
    """Opens index and store beside whoever else has them open."""
    records = open_records(ServiceSettings(data_folder=folder, disk_reserve_mib=0), role="test")
    try:
        yield records
    finally:
        records.close()


def stored_files(folder: Path) -> set[Path]:
    """Every file of the store but its own mark, whatever the index says."""
    files = (p for p in (folder / "store").rglob("*") if p.is_file())
    return {p for p in files if not p.name.startswith(".")}
