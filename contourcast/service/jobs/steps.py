"""The steps of a propagation as the durable workflow runs them: digests in, digests out.

Each step reads what it needs from the store, calls functions of `contourcast.propagate`, and
keeps the result under the digest of its bytes. So a step may run twice, or on another machine,
and gives the same name for the same thing; the job database holds names alone.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import structlog
from sqlalchemy import Connection

from contourcast import propagate as pipeline
from contourcast.imaging.errors import WeightsError
from contourcast.imaging.verdict import Quality
from contourcast.propagate import Case, Drawn, Network, Propagation, Settings, is_network
from contourcast.service.intake.states import State
from contourcast.service.jobs.orders import case_of, settings_of
from contourcast.service.jobs.propagations import Job
from contourcast.service.jobs.queues import CPU, GPU
from contourcast.service.jobs.results import dump, load
from contourcast.service.outputs.recommended import recommended
from contourcast.service.outputs.report import JudgedFigure, Report, write_results
from contourcast.service.records import Records
from contourcast.service.review.figures import change_percent, mean_or_none
from contourcast.service.review.pages import Pages

# A worker that was not seen for so long is not waited for (CLINICAL_SERVICE §6.1, "GPU gone").
GPU_SEEN_S: Final = 60.0

log = structlog.get_logger()
Send = Callable[[Connection, Job, Mapping[str, str]], bool]


def to_nobody(at: Connection, job: Job, files: Mapping[str, str]) -> bool:
    """Where there is no destination, nothing is sent."""
    del at, job, files
    return False


class Steps:
    """Steps 4 to 7 of the service's workflow, over one index and store.

    Args:
        records: Index and store.
        device: Where to compute.
        weights: Model folder; None: the network that is shipped.
        send: Notes, in the transaction that ends a job, what goes where; says whether anything.
    """

    def __init__(
        self,
        records: Records,
        *,
        device: str,
        weights: Path | None,
        send: Send = to_nobody,
    ) -> None:
        self.records = records
        self.device = device
        self.weights = weights
        self._send = send
        self._pages = Pages(records)
        self._case = lru_cache(maxsize=1)(self._read_case)  # hundreds of MiB each
        self._network = lru_cache(maxsize=1)(self._load_network)

    def register(self, propagation: str) -> dict[str, Any]:
        """Where the planning CT is today, and the r-CT channel."""
        job = self._tell(propagation, State.REGISTERING, "reading the series", 0.0)
        case = self._case(propagation)
        self._tell(propagation, State.REGISTERING, "registering the planning CT to the CBCT", 0.05)
        start = time.perf_counter()
        registrations = pipeline.register(case, self._settings(job))
        seconds = time.perf_counter() - start
        quality = registrations.quality
        self.records.propagations.tell(
            propagation,
            State.REGISTERING,
            f"registered: {quality.verdict.value}",
            0.2,
            figures={
                "registration": {
                    "verdict": quality.verdict.value,
                    **_why(quality),
                    "focus": registrations.focus,
                    "angle_deg": registrations.chosen.cbct_from_planning.angle_deg,
                    "seconds": round(seconds, 3),
                }
            },
        )
        return {
            "registrations": self._put((registrations, seconds)),
            "r_ct": self._put(pipeline.carry_prior(case, registrations)),
        }

    def place(self, propagation: str) -> dict[str, Any]:
        """Where networks are drawn: by a worker with a GPU, if one was seen lately."""
        del propagation
        gpu = self.records.workers.listening(GPU, within_s=GPU_SEEN_S)
        return {"queue": GPU if gpu else CPU}

    def draw(self, propagation: str, method: str, registrations: str, r_ct: str) -> dict[str, Any]:
        """One method's contour."""
        job = self.records.propagations.job(propagation)
        methods = job.order["methods"]
        done = 0.2 + 0.7 * methods.index(method) / len(methods)
        self._tell(propagation, State.DRAWING, f"drawing: {method}", done)
        drawn = pipeline.draw(
            self._case(propagation),
            self._settings(job),
            self._get(registrations)[0],
            self._get(r_ct),
            method,
            network=self._network(job.order["network"]) if is_network(method) else None,
            clock=time.perf_counter,
        )
        if drawn.notes:
            log.info("drawn_with_notes", job_id=propagation, method=method, notes=drawn.notes)
        self.records.propagations.tell(
            propagation,
            State.DRAWING,
            f"{method} failed" if drawn.failed else f"drawn: {method}",
            done + 0.7 / len(methods),
            figures={"methods": {method: _method_figures(drawn)}},
        )
        return {"drawn": self._put(drawn)}

    def finish(
        self, propagation: str, registered: Mapping[str, str], drawn: Sequence[str]
    ) -> dict[str, Any]:
        """What the contours say of each other, the verdict, and every file; their digests."""
        job = self._tell(propagation, State.COMPARING, "comparing the contours", 0.9)
        registrations, seconds = self._get(registered["registrations"])
        result = pipeline.compare(
            self._case(propagation),
            self._settings(job),
            registrations,
            self._get(registered["r_ct"]),
            [self._get(one) for one in drawn],
            network=self._network(job.order["network"]) if job.order["network"] else None,
            registration_seconds=seconds,
        )
        verdict = result.verdict.value
        self.records.propagations.tell(
            propagation,
            State.COMPARING,
            f"verdict: {verdict}",
            0.95,
            figures={
                "verdict": verdict,
                "methods": {each.method: _method_figures(each) for each in result.drawn},
                **_why(result.quality),
                **_compared_figures(result),
            },
            verdict=verdict,
        )
        self._tell(propagation, State.WRITING, "writing the structure set and the report", 0.95)
        files, report = self._write(result, job)
        if job.origin.cohort is None:  # of an evaluation, few are ever looked at
            structures = self.records.derived.result(job.id, "RS.dcm")
            self._pages.prepare(job, result.case, report, structures, files["RS.dcm"])
        self._case.cache_clear()
        return {"files": files}

    def end(
        self, propagation: str, outcome: Mapping[str, Any], attempt: int | None = None
    ) -> dict[str, Any]:
        """Results, deliveries and the state after them, all in one transaction.

        Of an attempt that another has followed, nothing is believed.
        """
        files, problem = outcome.get("files"), outcome.get("problem")
        propagations = self.records.propagations
        with self.records.index.write() as at:
            job = propagations.under_way(at, propagation, attempt=attempt)
            if job is not None:
                sending = bool(files) and self._send(at, job, files or {})
                propagations.end_within(
                    at, propagation, files=files, problem=problem, delivering=sending
                )
        return {}

    def began(self, propagation: str) -> tuple[datetime, str]:
        """When the first instance of its CBCT came, and its state."""
        job = self.records.propagations.job(propagation)
        came = self.records.archive.first_arrival(job.order["cbct"]["series"])
        return came or job.made_at, job.state.value

    def _write(self, result: Propagation, job: Job) -> tuple[dict[str, str], Report]:
        """Writes the files aside and brings them into the store; digests of what is there now."""
        draft = self.records.archive.incoming().with_suffix("")
        try:
            site = self.records.site
            made_at = site.clock(job.made_at)
            report = write_results(result, draft, made_at=made_at, series_number=site.series_number)
            self.records.derived.put_results(job.id, {p.name: p for p in sorted(draft.iterdir())})
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        digests = {
            name: _digest(self.records.derived.result(job.id, name))
            for name in self.records.derived.results(job.id)
        }
        return digests, report

    def _put(self, thing: object) -> str:
        return self.records.derived.put(dump(thing))

    def _get(self, digest: str) -> Any:
        return load(self.records.derived.get(digest))

    def _tell(self, propagation: str, state: State, sentence: str, done: float) -> Job:
        log.info("step", job_id=propagation, state=state.value, sentence=sentence)
        self.records.propagations.tell(propagation, state, sentence, done)
        return self.records.propagations.job(propagation)

    def _read_case(self, propagation: str) -> Case:
        return case_of(self.records.propagations.job(propagation).order, self.records.archive)

    def _settings(self, job: Job) -> Settings:
        settings = settings_of(job.order["methods"], job.order["focus"])
        return replace(settings, device=self.device)

    def _load_network(self, digest: str) -> Network:
        from contourcast.models.predictor import load_network

        network = load_network(self.weights, device=self.device)
        if network.digest != digest:
            raise WeightsError(
                "the model folder holds other weights than when this was asked for",
                remedy="send the request again",
            )
        return network


def _why(quality: Quality) -> dict[str, Any]:
    """Why it is not accepted, in words; and the figure that the first of them is about."""
    first = next((JudgedFigure.of(figure) for figure in quality.reservations), None)
    return {
        "reasons": list(quality.reasons),
        "doubt": None if first is None else first.model_dump(mode="json"),
    }


def _compared_figures(result: Propagation) -> dict[str, Any]:
    """What the worklist and the history ask of a propagation."""
    volumes = {drawn.method: drawn.volume_cc for drawn in result.drawn}
    best = recommended(volumes)
    centroid = result.r_ct.mask().centroid_xyz_mm()
    pairs = {frozenset(pair): found.dice for pair, found in result.agreement.items()}
    return {
        "roi_name": result.case.prior.name,
        "recommended": best,
        "prior_volume_cc": result.prior_volume_cc,
        "prior_centroid_xyz_mm": _rounded(centroid),
        "volume_change_percent": change_percent(volumes.get(best), result.prior_volume_cc),
        "agreement": mean_or_none(pairs.values()),
    }


def _rounded(point_xyz_mm: np.ndarray | None) -> list[float] | None:
    return None if point_xyz_mm is None else [round(float(c), 3) for c in point_xyz_mm]


def _method_figures(drawn: Drawn) -> dict[str, Any]:
    return {
        "volume_cc": drawn.volume_cc,
        "centroid_xyz_mm": _rounded(drawn.centroid_xyz_mm),
        "verdict": drawn.quality.verdict.value,
        "failed": drawn.failed,
        "ended_as": drawn.ended_as,
        "seconds": round(drawn.seconds, 3),
    }


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
