"""What a site's rules make of its own series, before anything depends on them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from contourcast.service.intake.rules import Row


def rules(
    try_folder: Annotated[
        Path, typer.Option("--try", help="Folder of DICOM files to try the rules on.")
    ],
    file: Annotated[
        Path | None, typer.Option("--rules", help="TOML file of the site; none: ours.")
    ] = None,
    sender: Annotated[str, typer.Option(help="AE title that would have sent them.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say which series of a folder the rules take for a CBCT, and why; nothing is started."""
    from contourcast.service.intake.rules import SiteRules, read_rules, try_rules

    site = SiteRules() if file is None else read_rules(file)
    rows = try_rules(try_folder, site, sender=sender)
    if as_json:
        typer.echo(json.dumps([_fields(row) for row in rows], indent=1))
        return
    for row in rows:
        typer.echo("\n".join(_lines(row)))
    counts = Counter(row.verdict for row in rows)
    typer.echo("; ".join(f"{n} {verdict}" for verdict, n in counts.items()))


def _fields(row: Row) -> dict[str, Any]:
    """What the site needs to see of a series to write a rule for it; nothing of the patient."""
    series = row.series
    return {
        "series": row.series_uid,
        "files": row.files,
        "verdict": row.verdict,
        "rule": row.rule,
        "why": row.why,
        "manufacturer": series.manufacturer if series else "",
        "model": series.model if series else "",
        "description": series.description if series else "",
        "image_type": "\\".join(series.image_type) if series else "",
    }


def _lines(row: Row) -> list[str]:
    fields = _fields(row)
    decided = f"rule '{row.rule}': {row.why}" if row.rule else row.why
    lines = [f"{row.verdict:<11}  {row.series_uid or '(no series)'}  {row.files} files", decided]
    if row.series is not None:
        stated = ("manufacturer", "model", "description", "image_type")
        lines.append("; ".join(f"{name} '{_printable(fields[name])}'" for name in stated))
    return [lines[0], *(f"             {line}" for line in lines[1:])]


def _printable(text: str) -> str:
    """Text of a file, unable to steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)
