"""Wrong pairings against the verdict: none may be accepted, and right ones should be.

    python benchmarks/never_silently_wrong.py [--seeds 4] [--json FILE]

Scans: 4D-Lung 113, Pancreatic-CT-CBCT-SEG 001, Lung-PET-CT-Dx A0001 and A0002,
NSCLC-Radiogenomics R01-001, OpenTPS 4DCT; virtual cone beams of each; ten virtual patients of one
build, each under two others' names (tests/support).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from contourcast.imaging.errors import ContourcastError
from contourcast.registration.settings import RegistrationSettings
from support.pairings import correct, wrong


@dataclass(frozen=True, kw_only=True)
class Row:
    """What became of one pairing."""

    kind: str
    name: str
    verdict: str
    figures: dict[str, float | None] = field(default_factory=dict)
    against: list[str] = field(default_factory=list)


def main() -> int:
    """Prints a table; fails when a wrong pairing is accepted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=4, help="right pairings per scan")
    parser.add_argument("--json", type=Path, help="every figure of every pairing")
    parser.add_argument("--only", default="", help="kinds with this in their name")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    began = time.process_time()
    for pairing in chain(correct(arguments.seeds), wrong()):
        if arguments.only not in pairing.kind:
            continue
        try:
            quality = pairing.answer(RegistrationSettings())
            row = Row(
                kind=pairing.kind,
                name=pairing.name,
                verdict=str(quality.verdict),
                figures={f.name: f.value for f in quality.figures},
                against=[f.name for f in quality.figures if f.reason],
            )
        except ContourcastError as error:
            row = Row(kind=pairing.kind, name=pairing.name, verdict="refused", against=[error.code])
        rows.append(row)
        if arguments.json:
            arguments.json.write_text(json.dumps([asdict(r) for r in rows], indent=1))
    print(_table(rows))
    print(f"{time.process_time() - began:.0f} s CPU, one thread")
    right = [r for r in rows if r.kind.startswith("correct")]
    silently = [r.name for r in rows if r.verdict == "accept" and r not in right]
    share = sum(r.verdict == "accept" for r in right) / max(len(right), 1)
    print(f"wrong: {len(rows) - len(right)}, accepted {len(silently)} {silently}")
    print(f"correct: {len(right)}, accepted {share:.0%}")
    return int(bool(silently))


def _table(rows: list[Row]) -> str:
    kinds: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        kinds[row.kind].append(row)
    names = ("overlap", "lncc", "near_bone_lncc", "start_ratio")
    lines = [
        "| kind | pairs | accept | look | reject | refused | " + " | ".join(names) + " |",
        "|---" * (6 + len(names)) + "|",
    ]
    for kind, group in kinds.items():
        count = Counter(row.verdict for row in group)
        ranges = []
        for name in names:
            values = [v for row in group if (v := row.figures.get(name)) is not None]
            ranges.append(f"{min(values):.2f} to {max(values):.2f}" if values else "–")
        cells = [kind, str(len(group))]
        cells += [str(count[v]) for v in ("accept", "look", "reject", "refused")]
        lines.append("| " + " | ".join([*cells, *ranges]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
