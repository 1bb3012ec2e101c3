"""A site's rules: which series is a CBCT, which ROI is a target, which contour is the prior.

The rules are data, a TOML file of the site in place of ours, and tried on the site's own series
before they count: ``contourcast rules --try FOLDER``.

```toml
roi_names = ["^i?GTV"]
prior = "latest_approved"

[[series]]
name = "XVI"
verdict = "cbct"
manufacturer = "elekta"
model = "xvi"
```
"""

from __future__ import annotations

import os
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from contourcast.imaging.dicom.instance import Header, read_header
from contourcast.imaging.errors import ContourcastError, InputError, NotDicomError
from contourcast.service.intake.facts import SeriesFacts, series_facts
from contourcast.service.problems import SettingsError

Verdict = Literal["cbct", "planning_ct", "ignore"]
PriorRule = Literal["latest_approved", "planning"]
# What a rule may ask of, in the order in which its reasons are told.
CONDITIONS: Final = ("manufacturer", "model", "description", "image_type", "sender")


def _expression(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"'{pattern}' is no regular expression: {error}") from error
    return pattern


Expression = Annotated[str, AfterValidator(_expression)]


class SeriesRule(BaseModel):
    r"""One row: every condition that it states must be met; a row without any meets all.

    A condition is a regular expression, searched for anywhere and in any letter case. The parts
    of Image Type are one text, joined as in the file: ``ORIGINAL\PRIMARY\AXIAL``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, description="What reasons call it.")
    verdict: Verdict = Field(description="What a series is that meets it.")
    manufacturer: Expression | None = Field(default=None, description="(0008,0070) Manufacturer")
    model: Expression | None = Field(
        default=None, description="(0008,1090) Manufacturer's Model Name"
    )
    description: Expression | None = Field(
        default=None, description="(0008,103E) Series Description"
    )
    image_type: Expression | None = Field(default=None, description="(0008,0008) Image Type")
    sender: Expression | None = Field(default=None, description="AE title of who sent it")

    def met_by(self, series: SeriesFacts) -> bool:
        """Whether every condition holds."""
        texts = _texts(series)
        return all(
            re.search(pattern, texts[condition], re.IGNORECASE)
            for condition, pattern in self._conditions()
        )

    def why(self) -> str:
        """What it asks, in words; nothing of the series."""
        asked = [f"{condition} matches '{pattern}'" for condition, pattern in self._conditions()]
        return " and ".join(asked) or "it meets every CT series"

    def _conditions(self) -> list[tuple[str, str]]:
        stated = [(condition, getattr(self, condition)) for condition in CONDITIONS]
        return [(condition, pattern) for condition, pattern in stated if pattern is not None]


# What the field knows of these machines; docs/rules.md says which rows were tried on what.
DEFAULT_SERIES: Final = (
    SeriesRule(
        name="made from another image",
        verdict="ignore",
        description=r"(?<![a-z])(s-?CT|pseudo-?CT|synthetic)(?![a-z])",
    ),
    SeriesRule(name="called a CBCT", verdict="cbct", description=r"cb_?ct|cone[ -]?beam"),
    SeriesRule(
        name="Varian on-board imager",
        verdict="cbct",
        manufacturer="varian",
        model=r"on-?board|\bOBI\b|\bXI\b|patient verification",
    ),
    SeriesRule(
        name="Varian ring machine",
        verdict="cbct",
        manufacturer="varian",
        model="halcyon|ethos|hypersight",
    ),
    SeriesRule(name="Elekta XVI", verdict="cbct", manufacturer="elekta", model=r"\bXVI\b"),
    SeriesRule(
        name="Elekta XVI by description",
        verdict="cbct",
        manufacturer="elekta",
        description=r"\bXVI\b|volumeview|symmetry",
    ),
    SeriesRule(name="any other CT", verdict="planning_ct"),
)


class SiteRules(BaseModel):
    """All rules of a site; what it does not state is ours."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    series: tuple[SeriesRule, ...] = Field(
        default=DEFAULT_SERIES, description="The first that is met decides."
    )
    roi_names: tuple[Expression, ...] = Field(
        default=("^i?GTV",),
        description="Names of targets, where no ROI says by its type that it is one.",
    )
    prior: PriorRule = Field(
        default="latest_approved",
        description="Which contour is carried: the one last signed in this course, or the plan's.",
    )
    repeat_minutes: float = Field(
        default=180.0,
        ge=0,
        le=1440,
        description="A scan so soon after another of its course is of the same fraction.",
    )

    def names_target(self, roi_name: str) -> bool:
        """Whether a ROI of that name is a target, in any letter case."""
        return any(re.search(p, roi_name.strip(), re.IGNORECASE) for p in self.roi_names)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a series is, and who said so.

    Attributes:
        rule: Name of the rule that decided; empty when none did.
    """

    verdict: Verdict
    rule: str
    why: str


def judge_series(series: SeriesFacts, rules: SiteRules) -> Judged:
    """What a series is; the first rule that it meets decides."""
    if not series.is_ct:
        named = series.modality if re.fullmatch(r"[A-Z]{2,16}", series.modality) else "something"
        return Judged(verdict="ignore", rule="", why=f"it is {named}, not a single-frame CT series")
    for rule in rules.series:
        if rule.met_by(series):
            return Judged(verdict=rule.verdict, rule=rule.name, why=rule.why())
    return Judged(verdict="ignore", rule="", why="no rule is met")


def read_rules(path: Path) -> SiteRules:
    """A site's rules from its TOML file.

    Raises:
        SettingsError: It cannot be read, or states something that is no rule.
    """
    try:
        with path.open("rb") as file:
            return SiteRules.model_validate(tomllib.load(file))
    except OSError as error:
        raise SettingsError(
            f"the rules cannot be read: {error.strerror}",
            file=path.name,
            remedy="name a TOML file that the service may read",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"the rules are not TOML: {error}", file=path.name, remedy="see docs/rules.md"
        ) from error
    except ValidationError as error:
        said = [(".".join(map(str, e["loc"])), e["msg"]) for e in error.errors()]
        raise SettingsError(
            "; ".join(f"{where}: {what}" for where, what in said),
            file=path.name,
            remedy="see docs/rules.md",
        ) from error


@dataclass(frozen=True, kw_only=True)
class Row:
    """One series of a folder, and what the rules make of it.

    Attributes:
        series: None when none of its files could be read.
        files: How many.
        why: What the rule asks, or why it cannot be read.
    """

    series_uid: str
    series: SeriesFacts | None = field(repr=False)
    files: int
    verdict: Verdict | Literal["unreadable"]
    rule: str
    why: str


def try_rules(folder: Path, rules: SiteRules, *, sender: str = "") -> list[Row]:
    """What the rules make of each series below a folder, CBCTs first; nothing is kept or started.

    Files that are no DICOM are passed over; those that are and cannot be read have rows of their
    own.

    Args:
        folder: Searched to the bottom.
        rules: The ones to try.
        sender: The AE title that would have sent them.

    Raises:
        InputError: It is no folder, or holds no DICOM file.
    """
    if not folder.is_dir():
        raise InputError("this is not a folder", file=folder.name, remedy="name a folder of DICOM")
    found: defaultdict[str, list[Header]] = defaultdict(list)
    rows: list[Row] = []
    for path in _files(folder):
        try:
            header = read_header(path)
        except NotDicomError:
            continue
        except ContourcastError as error:
            rows.append(
                Row(
                    series_uid="",
                    series=None,
                    files=1,
                    verdict="unreadable",
                    rule="",
                    why=f"{path.name}: {error.cause}",
                )
            )
            continue
        found[header.series_instance_uid].append(header)
    if not found and not rows:
        raise InputError(
            "the folder holds no DICOM file", file=folder.name, remedy="name a folder of DICOM"
        )
    for uid, headers in found.items():
        facts = series_facts(headers, sender=sender)
        judged = judge_series(facts, rules)
        rows.append(
            Row(
                series_uid=uid,
                series=facts,
                files=len(headers),
                verdict=judged.verdict,
                rule=judged.rule,
                why=judged.why,
            )
        )
    order = ("cbct", "planning_ct", "ignore", "unreadable")
    return sorted(rows, key=lambda row: (order.index(row.verdict), row.series_uid, row.why))


def _files(folder: Path) -> Iterator[Path]:
    """Every file below, in the order of names; hidden ones and links to elsewhere are left out."""
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(names):
            path = Path(here, name)
            if not name.startswith(".") and name != "DICOMDIR" and not path.is_symlink():
                yield path


def _texts(series: SeriesFacts) -> dict[str, str]:
    return {
        "manufacturer": series.manufacturer,
        "model": series.model,
        "description": series.description,
        "image_type": "\\".join(series.image_type),
        "sender": series.sender,
    }
