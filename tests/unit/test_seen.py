"""What a network was fitted on, and that a scan which is unlike it is told and not judged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contourcast.imaging.errors import InputError, WeightsError
from contourcast.imaging.grid import Grid
from contourcast.imaging.source import Patient, SeriesSource, Study
from contourcast.imaging.volume import Volume
from contourcast.models.diff_umamba import DiffUMamba
from contourcast.models.predictor import load_network
from contourcast.models.seen import Seen, united
from contourcast.models.weights import CARD_FILE, card_from_json, load_model, save_model
from contourcast.training.nnunet.export import seen_in
from contourcast.training.samples import load_samples, save_sample
from support.evidence import patch_sample
from support.models import TINY, ball_case, tiny_card


def scan(
    *,
    spacing_xyz_mm: tuple[float, float, float] = (1.0, 1.0, 3.0),
    shape_zyx: tuple[int, int, int] = (40, 60, 50),
    maker: str = "ACME",
) -> Volume:
    source = SeriesSource(
        patient=Patient(),
        study=Study(instance_uid="1.2"),
        series_instance_uid="1.2.3",
        sop_class_uid="",
        slices=(),
        digest="",
        manufacturer=maker,
    )
    return Volume(
        values=np.zeros(shape_zyx, np.float32),
        grid=Grid.even(
            shape_zyx=shape_zyx, spacing_xyz_mm=spacing_xyz_mm, origin_xyz_mm=(0.0, 0.0, 0.0)
        ),
        frame_of_reference="1.2.4",
        source=source,
    )


def test_a_scan_is_within_what_it_was_itself() -> None:
    assert Seen.of(scan()).note(scan()) == ""


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"spacing_xyz_mm": (1.0, 1.0, 3.2)}, "voxels of 1 × 1 × 3 mm"),
        ({"spacing_xyz_mm": (0.9, 0.9, 3.0)}, "this scan has 0.9 × 0.9 × 3; 45 × 54 × 120"),
        ({"shape_zyx": (40, 90, 50)}, "fields of 50 × 60 × 120 mm; this scan has 50 × 90 × 120"),
        ({"shape_zyx": (30, 60, 50)}, "40 slices; this scan has 50 × 60 × 90; 30"),
        ({"maker": "Other"}, "machines of ACME; this scan has Other"),
    ],
)
def test_what_lies_outside_is_told(other: dict[str, Any], said: str) -> None:
    assert said in Seen.of(scan()).note(scan(**other))


@pytest.mark.parametrize(
    "other", [{"maker": "acme"}, {"maker": ""}, {"spacing_xyz_mm": (1.0, 1.0, 3.005)}]
)
def test_what_is_the_same_or_not_stated_is_not_told(other: dict[str, Any]) -> None:
    assert Seen.of(scan()).note(scan(**other)) == ""


def test_several_scans_span_a_range() -> None:
    both = united([Seen.of(scan()), Seen.of(scan(spacing_xyz_mm=(2.0, 2.0, 3.0), maker="B"))])
    assert both is not None
    assert both.spacing_xyz_mm == ((1.0, 2.0), (1.0, 2.0), (3.0, 3.0))
    assert both.manufacturers == ("ACME", "B")
    assert both.note(scan(spacing_xyz_mm=(1.5, 1.5, 3.0), maker="B")) == ""
    assert "voxels of 1 to 2 × 1 to 2 × 3 mm" in both.note(scan(spacing_xyz_mm=(4.0, 4.0, 3.0)))


def test_where_one_part_is_not_known_the_whole_is_not() -> None:
    assert united([]) is None
    assert united([Seen.of(scan()), None]) is None
    nameless = united([Seen.of(scan()), Seen.of(scan(maker=""))])
    assert nameless is not None
    assert nameless.manufacturers == ()


@pytest.mark.parametrize("slices", [(2, 1), (0, 1), (1, float("inf"))])
def test_a_range_that_is_none_is_refused(slices: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="a range of scans is none"):
        replace(Seen.of(scan()), slices=slices)


class TestCard:
    def test_it_survives_its_file_and_is_part_of_the_digest(self, tmp_path: Path) -> None:
        card = tiny_card(seen=Seen.of(scan()))
        assert card_from_json(card.to_json()) == card
        for name, each in (("plain", tiny_card()), ("seen", card)):
            torch.manual_seed(0)
            save_model(tmp_path / name, DiffUMamba(TINY), each, dtype=torch.float32)
        assert load_model(tmp_path / "plain")[2] != load_model(tmp_path / "seen")[2]

    def test_a_card_that_does_not_know_is_written_as_before(self) -> None:
        assert "seen" not in json.loads(tiny_card().to_json())

    def test_what_it_cannot_mean_is_refused(self, tmp_path: Path) -> None:
        plain = json.loads(tiny_card(seen=Seen.of(scan())).to_json())
        for change in ({"slices": [9, 1]}, {"colour": 1}):
            text = json.dumps(plain | {"seen": plain["seen"] | change})
            with pytest.raises(WeightsError, match="seen"):
                card_from_json(text)


class TestPredictor:
    def told(self, folder: Path, seen: Seen | None) -> list[str]:
        torch.manual_seed(0)
        save_model(folder, DiffUMamba(TINY), tiny_card(seen=seen), dtype=torch.float32)
        cbct, r_ct, _ = ball_case()
        notes: list[str] = []
        load_network(folder).predict(cbct, r_ct, on_note=notes.append)
        return notes

    def test_a_scan_like_those_gives_no_note(self, tmp_path: Path) -> None:
        assert self.told(tmp_path, Seen.of(ball_case()[0])) == []

    def test_a_scan_unlike_those_gives_one(self, tmp_path: Path) -> None:
        (note,) = self.told(tmp_path, Seen.of(scan(maker="")))
        assert note.startswith("the network was fitted on voxels of 1 × 1 × 3 mm; ")

    def test_a_card_of_before_gives_no_note(self, tmp_path: Path) -> None:
        assert self.told(tmp_path, None) == []
        assert "seen" not in (tmp_path / CARD_FILE).read_text()


def test_a_sample_keeps_what_its_scan_was(tmp_path: Path) -> None:
    for name, seen in (("a", Seen.of(scan())), ("b", None)):
        save_sample(tmp_path, replace(patch_sample(seed=1), name=name, seen=seen))
    assert [sample.seen for sample in load_samples(tmp_path)] == [Seen.of(scan()), None]


def test_an_export_says_what_all_its_cases_were() -> None:
    def case(spacing_mm: float) -> dict[str, Any]:
        seen = Seen.of(scan(spacing_xyz_mm=(spacing_mm, spacing_mm, 3.0)))
        return {"facts": {"seen": json.loads(json.dumps(seen.__dict__))}}

    found = seen_in({"cases": {"a": case(1.0), "b": case(2.0)}})
    assert found is not None
    assert found.spacing_xyz_mm[0] == (1.0, 2.0)
    assert seen_in({"cases": {"a": case(1.0), "b": {"facts": {}}}}) is None
    assert seen_in({}) is None
