"""The steps of a propagation as the durable workflow runs them: digests in, digests out.

Each step reads what it needs from the store, calls one function of `contourcast.propagate`, and
keeps the result under the digest of its bytes. So a step may run twice, or on another machine,
and gives the same name for the same thing; the job database holds names alone.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import structlog

from contourcast import propagate as pipeline
from contourcast.imaging.errors import WeightsError
from contourcast.propagate import Case, Drawn, Network, Propagation, Settings, is_network
from contourcast.service.jobs.orders import case_of, settings_of
from contourcast.service.jobs.results import dump, load
from contourcast.service.outputs.report import write_results
from contourcast.service.store import Job, Store, flush_folder

log = structlog.get_logger()


class Steps:
    """Steps 4 to 7 of the service's workflow, over one store."""

    def __init__(self, store: Store, *, device: str, weights: Path | None) -> None:
        self.store = store
        self.device = device
        self.weights = weights
        self._case = lru_cache(maxsize=1)(self._read_case)  # hundreds of MiB each
        self._network = lru_cache(maxsize=1)(self._load_network)

    def register(self, propagation: str) -> dict[str, Any]:
        """Where the planning CT is today."""
        job = self._tell(propagation, "registering", "reading the series", 0.0)
        case = self._case(propagation)
        self._tell(propagation, "registering", "registering the planning CT to the CBCT", 0.05)
        start = time.perf_counter()
        registrations = pipeline.register(case, self._settings(job))
        seconds = time.perf_counter() - start
        self.store.tell(
            propagation,
            "registering",
            f"registered: {registrations.quality.verdict.value}",
            0.2,
            figures={
                "registration": {
                    "verdict": registrations.quality.verdict.value,
                    "reasons": list(registrations.quality.reasons),
                    "focus": registrations.focus,
                    "angle_deg": registrations.chosen.cbct_from_planning.angle_deg,
                    "seconds": round(seconds, 3),
                }
            },
        )
        return {"registrations": self.store.put(dump((registrations, seconds)))}

    def carry(self, propagation: str, registrations: str) -> dict[str, Any]:
        """The r-CT channel."""
        self._tell(propagation, "carrying", "carrying the prior to the CBCT", 0.2)
        r_ct = pipeline.carry_prior(self._case(propagation), load(self.store.get(registrations))[0])
        return {"r_ct": self.store.put(dump(r_ct))}

    def draw(self, propagation: str, method: str, registrations: str, r_ct: str) -> dict[str, Any]:
        """One method's contour."""
        job = self.store.job(propagation)
        methods = job.order["methods"]
        done = 0.2 + 0.7 * methods.index(method) / len(methods)
        self._tell(propagation, "drawing", f"drawing: {method}", done)
        drawn = pipeline.draw(
            self._case(propagation),
            self._settings(job),
            load(self.store.get(registrations))[0],
            load(self.store.get(r_ct)),
            method,
            network=self._network(job.order["network"]) if is_network(method) else None,
            clock=time.perf_counter,
        )
        figures = job.figures | {
            "methods": job.figures.get("methods", {}) | {method: _method_figures(drawn)}
        }
        self.store.tell(
            propagation,
            "drawing",
            f"{method} failed" if drawn.failed else f"drawn: {method}",
            done + 0.7 / len(methods),
            figures=figures,
        )
        return {"drawn": self.store.put(dump(drawn))}

    def compare(
        self, propagation: str, registrations: str, r_ct: str, drawn: Sequence[str]
    ) -> dict[str, Any]:
        """What the contours say of each other, and the verdict."""
        job = self._tell(propagation, "comparing", "comparing the contours", 0.9)
        found, seconds = load(self.store.get(registrations))
        result = pipeline.compare(
            self._case(propagation),
            self._settings(job),
            found,
            load(self.store.get(r_ct)),
            [load(self.store.get(one)) for one in drawn],
            network=self._network(job.order["network"]) if job.order["network"] else None,
            registration_seconds=seconds,
        )
        self.store.tell(
            propagation,
            "comparing",
            f"verdict: {result.verdict.value}",
            0.95,
            figures=job.figures
            | {"verdict": result.verdict.value, "reasons": list(result.quality.reasons)},
        )
        parts = (
            result.agreement,
            result.prior_volume_cc,
            result.quality,
            result.network_name,
            result.network_digest,
        )
        return {"compared": self.store.put(dump(parts))}

    def write(
        self,
        propagation: str,
        registrations: str,
        r_ct: str,
        drawn: Sequence[str],
        compared: str,
    ) -> dict[str, Any]:
        """RS.dcm, REG.dcm, report and picture, all at once; their digests."""
        job = self._tell(propagation, "writing", "writing the structure set and the report", 0.95)
        folder = self.store.result_folder(propagation)
        if not folder.exists():  # else an earlier run wrote them all and was killed just after
            found, seconds = load(self.store.get(registrations))
            agreement, prior_cc, quality, name, digest = load(self.store.get(compared))
            self._write(
                Propagation(
                    case=self._case(propagation),
                    settings=self._settings(job),
                    registrations=found,
                    registration_seconds=seconds,
                    r_ct=load(self.store.get(r_ct)),
                    drawn=tuple(load(self.store.get(one)) for one in drawn),
                    agreement=agreement,
                    prior_volume_cc=prior_cc,
                    quality=quality,
                    network_name=name,
                    network_digest=digest,
                ),
                job,
                folder,
            )
        return {"files": {p.name: _digest(p) for p in sorted(folder.iterdir())}}

    def forget(self) -> None:
        """Lets go of the scans that were read."""
        self._case.cache_clear()

    def discard_drafts(self) -> int:
        """Deletes what a worker that was killed left half written; how many."""
        left = [p for p in (self.store.folder / "results").iterdir() if p.name.startswith(".")]
        for path in left:
            shutil.rmtree(path, ignore_errors=True)
        strays = list((self.store.folder / "derived").glob(".*"))
        for path in strays:
            path.unlink(missing_ok=True)
        return len(left) + len(strays)

    def _write(self, result: Propagation, job: Job, folder: Path) -> None:
        draft = folder.with_name(f".{folder.name}")
        shutil.rmtree(draft, ignore_errors=True)
        write_results(result, draft, made_at=job.made_at)
        for path in draft.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        flush_folder(draft)
        draft.rename(folder)
        flush_folder(folder.parent)

    def _tell(self, propagation: str, state: Any, sentence: str, done: float) -> Job:
        log.info("step", job_id=propagation, state=state, sentence=sentence)
        self.store.tell(propagation, state, sentence, done)
        return self.store.job(propagation)

    def _read_case(self, propagation: str) -> Case:
        return case_of(self.store.job(propagation).order, self.store)

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


def _method_figures(drawn: Drawn) -> dict[str, Any]:
    centroid = drawn.centroid_xyz_mm
    return {
        "volume_cc": drawn.volume_cc,
        "centroid_xyz_mm": None if centroid is None else [round(float(c), 3) for c in centroid],
        "verdict": drawn.quality.verdict.value,
        "failed": drawn.failed,
        "ended_as": drawn.ended_as,
        "seconds": round(drawn.seconds, 3),
    }


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
