"""Proposals against truth."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from contourcast.imaging.errors import InputError
from contourcast.simulation.fraction import fraction
from contourcast.simulation.truth import save_truth
from contourcast.training.calibrate import FAILED, ScoreBook, read_scores
from contourcast.training.cases import load_models, thinned
from contourcast.training.evaluate import (
    compare,
    evaluate,
    leads_over,
    leads_table,
    plot,
    strata_table,
    table,
)
from contourcast.training.rows import PRIOR, Row, rows_of_runs, rows_of_samples, rows_of_scores
from support.evidence import patch_sample, score
from support.models import tiny_model
from support.virtual import tiny_patient


def row(
    patient: str,
    method: str,
    dsc: float,
    *,
    target: str = "label",
    fraction: str = "fraction-01",
    truth_cc: float = 20.0,
    visible: float | None = 0.8,
) -> Row:
    return Row(
        patient=patient,
        fraction=fraction,
        method=method,
        target=target,
        state="drawn" if dsc else "failed",
        verdict="accept",
        truth_cc=truth_cc,
        proposal_cc=20.0,
        dsc=dsc,
        iou=dsc / (2 - dsc),
        hd95_mm=3.0 if dsc else None,
        msd_mm=1.0 if dsc else None,
        surface_dice_1mm=0.5,
        surface_dice_2mm=0.6,
        surface_dice_3mm=0.7,
        added_path_length_mm=100.0,
        visible_share=visible,
        seconds=1.0,
    )


class TestTable:
    def test_a_failure_counts_in_the_mean_and_is_counted(self) -> None:
        rows = [row("a", "rigid", 0.8), row("b", "rigid", 0.0)]
        text = table(rows)
        assert "| rigid | 0.400 " in text
        line = next(line for line in text.splitlines() if line.startswith("| rigid"))
        assert line.split("|")[-3].strip() == "1"

    def test_the_interval_draws_patients_and_not_cbcts(self) -> None:
        rows = [
            row(patient, "rigid", dsc, fraction=str(n))
            for patient, dsc in (("a", 0.9), ("b", 0.1))
            for n in range(10)
        ]
        assert "(0.100 to 0.900)" in table(rows)

    def test_means_are_over_cbcts_and_over_patients_with_median_and_quartiles(self) -> None:
        rows = [row("a", "rigid", 0.9, fraction=str(n)) for n in range(3)]
        rows += [row("b", "rigid", 0.5), row("c", "rigid", 0.0)]
        lines = [line.split(" | ") for line in table(rows).splitlines()]
        (of,) = (cells for cells in lines if cells[:2] == ["| rigid", "dsc"])
        number, mean, median, patients, their_mean, their_median = of[2:]
        assert (number, patients) == ("5", "3")
        assert mean.startswith("0.640 ± 0.397 (")
        assert median == "0.900 (0.500 to 0.900)"
        assert their_mean == "0.467 ± 0.451 (0.000 to 0.900)"
        assert their_median == "0.500 (0.250 to 0.700) |"
        (distance,) = (cells for cells in lines if cells[:2] == ["| rigid", "hd95_mm"])
        assert (distance[2], distance[5]) == ("4", "2"), "where there is a contour"

    def test_a_case_measured_twice_is_refused(self) -> None:
        with pytest.raises(InputError, match="measured twice by rigid"):
            table([row("a", "rigid", 0.9)] * 2)

    def test_a_plot_is_drawn_even_where_a_method_has_no_distance(self, tmp_path: Path) -> None:
        plot([row("a", "rigid", 0.8), row("a", "dir-t", 0.0)], tmp_path / "plots.png")
        assert (tmp_path / "plots.png").read_bytes()[:4] == b"\x89PNG"

    def test_no_run_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no run was found"):
            compare([tmp_path], [tmp_path], tmp_path / "out")


class TestTruths:
    def known(self, folder: Path, *, week: float) -> Path:
        truth = fraction(tiny_patient(), week=week, series_uid="1.2.3").truth
        save_truth(truth, folder / "patient-001" / "truth", "fraction-01")
        return folder

    def run(self, folder: Path) -> Path:
        folder.mkdir()
        report = {"cbct": {"series_instance_uid": "1.2.9"}, "verdict": "look", "methods": []}
        (folder / "report.json").write_text(json.dumps(report))
        return folder

    def test_two_that_differ_for_one_cbct_are_refused(self, tmp_path: Path) -> None:
        three, seven = (self.known(tmp_path / f"{n}", week=n) for n in (3, 7))
        with pytest.raises(InputError, match="two truths of one CBCT differ") as refused:
            rows_of_runs([self.run(tmp_path / "run")], [three, seven])
        said = str(refused.value)
        assert "1.2.3" in said
        assert "3/patient-001/fraction-01 and 7/patient-001/fraction-01" in said
        assert "--truth" in said

    def test_one_that_is_met_twice_is_one(self, tmp_path: Path) -> None:
        here, copy = (self.known(tmp_path / name, week=3) for name in ("here", "copy"))
        with pytest.raises(InputError, match="the truth of this run's CBCT is not known"):
            rows_of_runs([self.run(tmp_path / "run")], [here, copy, here / "patient-001"])

    @pytest.mark.parametrize("text", ["{}", "[]", '{"cbct": {"series_inst'])
    def test_a_report_that_is_not_whole_is_refused(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "report.json").write_text(text)
        with pytest.raises(InputError, match=r"no whole report of a run; run/report\.json; run"):
            rows_of_runs([tmp_path / "run"], [tmp_path])


class TestTests:
    def rows(self) -> list[Row]:
        return [
            row(f"p{n}", method, base + 0.01 * n, truth_cc=5.0 + 4 * n)
            for n in range(8)
            for method, base in (("rigid", 0.5), ("dir-l", 0.6), ("mine", 0.5 + 0.02 * (n % 3)))
        ]

    def test_leads_are_paired_by_case_whatever_the_order(self) -> None:
        rows = self.rows()
        shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
        found = {
            lead.method: lead for lead in leads_over(shuffled, "rigid") if lead.metric == "dsc"
        }
        assert found["dir-l"].found.lead.mean == pytest.approx(0.1)
        assert found["dir-l"].found.lead.low == pytest.approx(0.1)
        assert found["mine"].found.lead.mean == pytest.approx(0.0175)

    def test_only_cases_of_both_count(self) -> None:
        rows = [r for r in self.rows() if (r.method, r.patient) != ("dir-l", "p3")]
        found = {lead.method: lead for lead in leads_over(rows, "rigid") if lead.metric == "dsc"}
        assert found["dir-l"].found.lead.cases == 7
        assert found["mine"].found.lead.cases == 8

    def test_a_distance_that_failures_lack_is_not_compared(self) -> None:
        """Who draws nothing on the hard cases must not win the mean over the easy ones."""
        rows = [
            replace(row(f"p{n}", method, dsc), hd95_mm=hd95_mm)
            for n in range(10)
            for method, dsc, hd95_mm in (
                ("rigid", 0.6 if n % 2 else 0.8, 12.0 if n % 2 else 4.0 + n / 10),
                ("fails", 0.0 if n % 2 else 0.8, None if n % 2 else 3.5 + n / 10),
                ("mine", 0.7, 5.0 + n),
            )
        ]
        leads = leads_over(rows, "rigid")
        found = {lead.method: lead for lead in leads if lead.metric == "hd95_mm"}
        assert found["mine"].found.lead.cases == 10
        assert found["mine"].untested == ""
        assert found["fails"].found.lead.cases == 0
        assert math.isnan(found["fails"].corrected_t_patients)
        assert "not defined on 5 of 10 CBCTs" in found["fails"].untested
        assert f"hd95_mm of fails not compared: {found['fails'].untested}" in leads_table(leads)
        cells = {
            line.split("|")[1].strip(): line.split("|")
            for line in table(rows).split("\n\n")[1].splitlines()[2:]
        }
        assert cells["fails"][4].strip() == "3.9 (5)"
        assert cells["rigid"][4].strip() == "8.2 (10)"

    def test_p_is_corrected_within_one_metric_and_target(self) -> None:
        leads = [lead for lead in leads_over(self.rows(), "rigid") if lead.metric == "dsc"]
        assert [lead.method for lead in leads] == ["dir-l", "mine"]
        assert leads[0].corrected_wilcoxon == pytest.approx(2 * leads[0].found.p_wilcoxon)

    def test_an_unknown_reference_is_named_with_the_nearest(self) -> None:
        with pytest.raises(InputError, match="nearest is 'rigid'"):
            leads_over(self.rows(), "rigit")

    def test_strata_by_size(self) -> None:
        text = strata_table(self.rows(), "rigid")
        lines = {line.split("|")[1].strip(): line for line in text.splitlines() if "|" in line}
        assert lines["< 10 cc"].split("|")[2].strip() == "2"  # 5, 9 cc
        assert lines["10 to 30 cc"].split("|")[2].strip() == "5"
        assert lines["> 30 cc"].split("|")[2].strip() == "1"
        assert "(+0.100, +0.100 to +0.100)" in lines["> 30 cc"]
        assert "< 30 % visible" not in lines

    def test_files_say_all(self, tmp_path: Path) -> None:
        leads = evaluate(self.rows(), tmp_path, reference="rigid", facts={"models": []})
        document = json.loads((tmp_path / "evaluation.json").read_text())
        assert document["bootstrap"]["seed"] == 0
        assert document["versions"]["torch"]
        assert len(document["leads"]) == len(leads)
        assert all(of["over_patients"]["cases"] == 8 for of in document["methods"])
        with (tmp_path / "cases.csv").open(newline="") as file:
            assert len(list(csv.DictReader(file))) == 24
        assert leads_table(leads) in (tmp_path / "table.md").read_text()
        first = (tmp_path / "boxes.svg").read_bytes()
        evaluate(self.rows(), tmp_path, reference="rigid")
        assert (tmp_path / "boxes.svg").read_bytes() == first


class TestScores:
    def test_a_book_gives_a_row_for_each_target(self, tmp_path: Path) -> None:
        book = ScoreBook(tmp_path / "scores.csv")
        book.add([score("rigid", 0.5), score("dir-l", 0.6, ended_as=f"{FAILED}folds")])
        rows = rows_of_scores([tmp_path / "scores.csv"])
        found = {(r.method, r.target): r for r in rows}
        assert found["rigid", "anatomy"].dsc == 0.25
        assert found["dir-l", "label"].state == "failed"
        assert found["rigid", "label"].case == found["dir-l", "label"].case

    def test_a_failure_that_was_mended_counts_once(self, tmp_path: Path) -> None:
        path = tmp_path / "scores.csv"
        ScoreBook(path).add([score("dir-l", 0.1, ended_as=f"{FAILED}folds")])
        ScoreBook(path).add([score("dir-l", 0.6)])
        assert [s.dice for s in read_scores(path)] == [0.6]

    def test_another_csv_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "other.csv").write_text("a,b\n1,2\n")
        with pytest.raises(InputError, match="no book of scores"):
            rows_of_scores([tmp_path / "other.csv"])

    def test_an_empty_book_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "scores.csv").write_text("ct,patient\n")
        with pytest.raises(InputError, match="no score was found"):
            rows_of_scores([tmp_path / "scores.csv"])


class TestSamples:
    def test_models_and_prior_are_measured_on_the_middle_patch(self, tmp_path: Path) -> None:
        tiny_model(tmp_path / "one", seed=1)
        tiny_model(tmp_path / "two", seed=2)
        models = load_models([f"a={tmp_path / 'one'}", str(tmp_path / "two")])
        rows = rows_of_samples(models, [patch_sample(seed=n) for n in range(2)])
        assert [r.method for r in rows] == [PRIOR, "a", "two"] * 2
        prior = rows[0]
        sample = patch_sample(seed=0)
        inside = sample.prior_mm > 0
        truth = sample.label >= 0.5
        assert prior.dsc == pytest.approx(2 * (inside & truth).sum() / (inside.sum() + truth.sum()))
        assert prior.truth_cc == pytest.approx(truth.sum() * 0.027)

    def test_two_models_of_one_name_are_refused(self, tmp_path: Path) -> None:
        tiny_model(tmp_path / "x" / "model")
        tiny_model(tmp_path / "y" / "model")
        with pytest.raises(InputError, match="two models are named 'model'"):
            load_models([str(tmp_path / "x" / "model"), str(tmp_path / "y" / "model")])

    def test_models_of_another_spacing_are_not_mixed(self, tmp_path: Path) -> None:
        tiny_model(tmp_path / "one")
        (model,) = load_models([str(tmp_path / "one")])
        other = replace(model, card=replace(model.card, spacing_zyx_mm=(2.0, 2.0, 2.0)))
        with pytest.raises(InputError, match="different size or spacing"):
            rows_of_samples([model, other], [patch_sample(seed=0)])

    def test_a_sample_smaller_than_the_patch_is_refused(self, tmp_path: Path) -> None:
        tiny_model(tmp_path / "one")
        models = load_models([str(tmp_path / "one")])
        with pytest.raises(InputError, match="make the samples with this model's patch"):
            rows_of_samples(models, [patch_sample(seed=0, shape_zyx=(15, 24, 24))])

    def test_thinning_reaches_over_all_patients(self) -> None:
        samples = [patch_sample(seed=n) for n in range(6)]
        assert [s.name for s in thinned(samples, 3)] == ["sample-0", "sample-2", "sample-4"]
        assert len(thinned(samples, 0)) == 6
