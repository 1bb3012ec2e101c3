from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from pydicom.dataset import FileDataset
from typer.testing import CliRunner

from contourcast.cli.rules import rules as rules_command
from contourcast.imaging.dicom.instance import CT_IMAGE, ENHANCED_CT
from contourcast.imaging.errors import InputError
from contourcast.service.intake.facts import PatientKey, SeriesFacts
from contourcast.service.intake.rules import (
    SeriesRule,
    SiteRules,
    Verdict,
    judge_series,
    read_rules,
    try_rules,
)
from contourcast.service.problems import SettingsError
from contourcast.simulation.courses import MANUFACTURER as SIMULATOR
from support.data import REPOSITORY, data_item
from support.dicom_factory import disc, make_ct_series, make_structure_set

RULES = SiteRules()
PLAIN = SeriesFacts(
    series_uid="1.2",
    study_uid="1.3",
    patient=PatientKey(patient_id="P-1"),
    modality="CT",
    sop_class_uid=CT_IMAGE,
    frame_of_reference="1.4",
)
AXIAL = ("ORIGINAL", "PRIMARY", "AXIAL")


@pytest.mark.parametrize(
    ("manufacturer", "model", "description", "verdict"),
    [
        ("Varian Medical Systems", "On-Board Imager", "", "cbct"),
        ("Varian Medical Systems", "On-Board Imager", "kVCBCT_01a01", "cbct"),
        ("Varian Medical Systems / MIM Software", "Patient Verification", "Aligned CB02", "cbct"),
        ("Varian Medical Systems", "Halcyon", "Thorax", "cbct"),
        ("Varian Medical Systems", "ETHOS", "", "cbct"),
        ("Varian Medical Systems", "ETHOS", "sCT_1", "ignore"),
        ("Varian Medical Systems", "ARIA RadOnc", "Lung", "planning_ct"),
        ("ELEKTA", "XVI", "", "cbct"),
        ("Elekta Limited", "", "VolumeView F20", "cbct"),
        ("ELEKTA", "", "XVI 5.0.4", "cbct"),
        (SIMULATOR, "", "Thorax CBCT, fraction 3", "cbct"),
        (SIMULATOR, "", "Thorax planning CT", "planning_ct"),
        ("SYNTHETIC", "", "simulated CBCT", "cbct"),
        ("", "", "Cone-Beam CT", "cbct"),
        ("Philips", "Brilliance Big Bore", "PANCREAS DI, iDose (3)", "planning_ct"),
        ("ADAC", "Pinnacle3", "Gated, 40.0%B", "planning_ct"),
        ("SIEMENS", "SOMATOM go.Sim", "Thorax 2.0 Qr40", "planning_ct"),
        ("Vendor", "", "Synthetic CT from MR", "ignore"),
        ("Vendor", "", "SCTLung", "planning_ct"),
        ("", "", "", "planning_ct"),
    ],
)
def test_our_own_rules_know_the_machines(
    manufacturer: str, model: str, description: str, verdict: Verdict
) -> None:
    series = replace(
        PLAIN,
        manufacturer=manufacturer,
        model=model,
        description=description,
        image_type=AXIAL,
    )
    judged = judge_series(series, RULES)
    assert (judged.verdict, bool(judged.rule)) == (verdict, True)


@pytest.mark.parametrize(
    ("sop_class", "modality", "why"),
    [
        (ENHANCED_CT, "CT", "it is CT, not a single-frame CT series"),
        (CT_IMAGE, "PT", "it is PT, not a single-frame CT series"),
        ("1.2.840.10008.5.1.4.1.1.481.3", "RTSTRUCT", "it is RTSTRUCT"),
        ("1.2.3", "Mrs^Name", "it is something, not"),
    ],
)
def test_what_is_no_single_frame_ct_is_ignored_whatever_it_is_called(
    sop_class: str, modality: str, why: str
) -> None:
    series = replace(PLAIN, sop_class_uid=sop_class, modality=modality, description="CBCT")
    judged = judge_series(series, RULES)
    assert (judged.verdict, judged.rule) == ("ignore", "")
    assert judged.why.startswith(why)


def test_the_first_rule_that_is_met_decides_and_all_of_its_conditions_must_hold() -> None:
    site = SiteRules(
        series=(
            SeriesRule(name="one", verdict="cbct", manufacturer="acme", sender="^LINAC[12]$"),
            SeriesRule(name="two", verdict="ignore", image_type=r"^DERIVED\\"),
            SeriesRule(name="three", verdict="planning_ct", manufacturer="acme"),
        )
    )
    acme = replace(PLAIN, manufacturer="ACME Corp", image_type=("DERIVED", "PRIMARY"))
    assert judge_series(replace(acme, sender="linac1"), site).rule == "one"
    assert judge_series(replace(acme, sender="LINAC11"), site).rule == "two"
    assert judge_series(replace(acme, image_type=AXIAL), site).rule == "three"
    nothing = judge_series(PLAIN, site)
    assert (nothing.verdict, nothing.rule, nothing.why) == ("ignore", "", "no rule is met")
    assert judge_series(replace(acme, sender="LINAC1"), site).why == (
        "manufacturer matches 'acme' and sender matches '^LINAC[12]$'"
    )


def test_a_reason_quotes_the_rule_and_nothing_of_the_series() -> None:
    judged = judge_series(replace(PLAIN, description="LEAK^NAME CBCT"), RULES)
    assert "LEAK" not in judged.why


# A site's own file


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_site_s_file_stands_in_place_of_ours_as_far_as_it_goes(tmp_path: Path) -> None:
    site = read_rules(
        write(
            tmp_path / "rules.toml",
            """
            roi_names = ["^tumou?r", "^GTV"]
            prior = "planning"
            [[series]]
            name = "ours"
            verdict = "cbct"
            sender = "LINAC"
            """,
        )
    )
    assert site.prior == "planning"
    assert site.names_target(" Tumor left")
    assert not site.names_target("iGTV")
    assert [rule.name for rule in site.series] == ["ours"]
    partly = read_rules(write(tmp_path / "rules.toml", 'prior = "planning"'))
    assert partly.series == RULES.series
    assert partly.roi_names == RULES.roi_names


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prior = ", "not TOML"),
        ("\udcff", "not TOML"),
        ('prior = "first"', "prior"),
        ("colour = 1", "colour"),
        ('roi_names = ["["]', "no regular expression"),
        ('[[series]]\nname = "x"\nverdict = "cbct"\nmodel = "("', "no regular expression"),
        ('[[series]]\nname = "x"\nverdict = "maybe"', "series.0.verdict"),
        ('[[series]]\nname = ""\nverdict = "cbct"', "series.0.name"),
        ('[[series]]\nverdict = "cbct"', "series.0.name"),
        ('[[series]]\nname = "x"\nverdict = "cbct"\nkernel = "x"', "series.0.kernel"),
    ],
)
def test_a_file_that_states_no_rules_is_refused_with_the_place(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "rules.toml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(SettingsError) as refused:
        read_rules(path)
    assert said in refused.value.cause
    assert refused.value.file == "rules.toml"
    assert str(tmp_path) not in str(refused.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        read_rules(tmp_path / "none.toml")


PAGE = REPOSITORY / "docs" / "rules.md"


def test_the_page_for_sites_lists_our_rules_as_they_are() -> None:
    ours = PAGE.read_text().partition("## Ours")[2].partition("## A file")[0]
    listed = [row.split("|")[1:3] for row in ours.splitlines() if row.startswith("| ")][2:]
    assert [[cell.strip() for cell in row] for row in listed] == [
        [rule.name, rule.verdict] for rule in RULES.series
    ]


def test_the_page_for_sites_shows_a_file_that_can_be_read(tmp_path: Path) -> None:
    example = PAGE.read_text().partition("```toml\n")[2].partition("```")[0]
    site = read_rules(write(tmp_path / "rules.toml", example))
    assert [rule.verdict for rule in site.series] == ["ignore", "cbct", "planning_ct"]
    assert site.names_target("Tumor")


# contourcast rules --try FOLDER


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A planning CT with its set, a CBCT, a broken file, and what is no DICOM."""

    def varian(dataset: FileDataset, _: int) -> None:
        dataset.Manufacturer = "Varian Medical Systems"
        dataset.ManufacturerModelName = "On-Board Imager"
        dataset.SeriesDescription = "Thorax\x1b[31m"

    ct = make_ct_series(tmp_path / "patient" / "ct", name="plan")
    cbct = make_ct_series(tmp_path / "patient" / "cbct", name="today", change=varian)
    make_structure_set(
        tmp_path / "patient" / "rs.dcm", {"GTV": [disc((0, -10, -30), 5)]}, reference=ct
    )
    (tmp_path / "patient" / "broken.dcm").write_bytes(cbct.paths[0].read_bytes()[:900])
    (tmp_path / "patient" / "notes.txt").write_text("nothing")
    (tmp_path / "patient" / ".hidden").mkdir()
    (tmp_path / "patient" / ".hidden" / "x.dcm").write_bytes(cbct.paths[0].read_bytes())
    (tmp_path / "patient" / "link.dcm").symlink_to(cbct.paths[0])
    return tmp_path / "patient"


def test_rules_are_tried_on_every_series_of_a_folder(folder: Path) -> None:
    rows = try_rules(folder, RULES)
    assert [(row.verdict, row.files, row.rule) for row in rows] == [
        ("cbct", 5, "Varian on-board imager"),
        ("planning_ct", 5, "any other CT"),
        ("ignore", 1, ""),
        ("unreadable", 1, ""),
    ]
    assert rows[3].why.startswith("broken.dcm: ")
    assert "Phantom" not in repr(rows)


def test_a_sender_may_be_tried(folder: Path) -> None:
    site = SiteRules(series=(SeriesRule(name="linac", verdict="cbct", sender="^LINAC"),))
    assert [r.verdict for r in try_rules(folder, site, sender="LINAC7")].count("cbct") == 2
    assert [r.verdict for r in try_rules(folder, site)].count("cbct") == 0


def test_a_folder_without_dicom_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(InputError, match="no DICOM file"):
        try_rules(tmp_path, RULES)
    with pytest.raises(InputError, match="not a folder"):
        try_rules(tmp_path / "notes.txt", RULES)


app = typer.Typer()
app.command()(rules_command)


def test_the_command_prints_what_a_site_needs_to_write_a_rule(folder: Path) -> None:
    said = CliRunner().invoke(app, ["--try", str(folder)])
    assert said.exit_code == 0
    assert "rule 'Varian on-board imager': manufacturer matches 'varian'" in said.stdout
    assert "model 'On-Board Imager'; description 'Thorax?[31m'" in said.stdout
    assert said.stdout.splitlines()[-1] == "1 cbct; 1 planning_ct; 1 ignore; 1 unreadable"
    assert "Phantom" not in said.stdout


def test_the_command_takes_the_site_s_file_and_prints_json(folder: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "r.toml", '[[series]]\nname = "all"\nverdict = "ignore"')
    said = CliRunner().invoke(app, ["--try", str(folder), "--rules", str(file), "--json"])
    rows = json.loads(said.stdout)
    assert {row["verdict"] for row in rows} == {"ignore", "unreadable"}
    assert [row["rule"] for row in rows].count("all") == 2


# Real and simulated series


@pytest.mark.real
@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("pancreas_ct_cbct", ["cbct", "planning_ct", "ignore", "ignore"]),
        ("lung_cbct_simulated", ["cbct"]),
        ("lung_planning_ct", ["planning_ct", "ignore"]),
    ],
)
def test_the_shared_series_are_judged_right(item: str, expected: list[str]) -> None:
    assert [row.verdict for row in try_rules(data_item(item), RULES)] == expected
