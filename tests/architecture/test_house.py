"""The house keeps its own promises."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from itertools import chain

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import contourcast
from support.data import REPOSITORY


def test_ci_calls_the_readme_s_own_test_command() -> None:
    assert "make test" in (REPOSITORY / "README.md").read_text()
    assert re.search(r"\bmake test$", (REPOSITORY / ".ci/run").read_text(), re.MULTILINE)


def test_the_readme_s_commands_are_make_targets_and_cli_commands() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in re.findall(r"make ([a-z-]+)", readme):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    listed = subprocess.run(
        [sys.executable, "-m", "contourcast", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for command in re.findall(r"^    contourcast ([a-z]+)", readme, re.MULTILINE):
        assert re.search(rf"\b{command}\b", listed), command


def test_every_requirement_is_pinned() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    pinned = {
        canonicalize_name(line.split("==")[0]): line.split("==")[1].strip()
        for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    }
    for text in wanted:
        requirement = Requirement(text)
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not in constraints.txt"
        assert requirement.specifier.contains(version), f"{text} against {version}"


@pytest.mark.parametrize("door", ["service", "registration", "models"])
def test_the_doors_lead_into_the_package(door: str) -> None:
    link = REPOSITORY / door
    assert link.is_symlink()
    assert link.resolve() == REPOSITORY / "contourcast" / door


def test_help_does_not_pay_for_torch() -> None:
    script = "import sys, contourcast, contourcast.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_gateway_reads_dicom_without_torch() -> None:
    script = (
        "import sys, contourcast.imaging.dicom.ct_series, contourcast.imaging.dicom.rtstruct_in,"
        " contourcast.imaging.dicom.rtstruct_out; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_public_names_are_exactly_the_intended_ones() -> None:
    assert sorted(contourcast.__all__) == dir(contourcast)
    for name in contourcast.__all__:
        assert getattr(contourcast, name) is not None


def test_the_committed_report_schema_is_the_report_s_own() -> None:
    from contourcast.service.outputs.report import Report

    committed = json.loads((REPOSITORY / "docs" / "report.schema.json").read_text())
    assert committed == Report.model_json_schema()
