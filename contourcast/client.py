"""A client of the service: files there, today's contours back, in one call.

    from contourcast import Client

    with Client("https://contourcast.example", key=key) as client:
        for result in client.run(Path("fraction-07").rglob("*.dcm"), out=Path("results")):
            print(result.id, result.verdict)

Everything may be done again after it was cut off, on either side: files that are there are told
as `already`, the same request is the same propagation, and what was fetched is not fetched again.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

import httpx

from contourcast.imaging.errors import ContourcastError, InputError

MIB: Final = 2**20
# Of one request: enough to keep a line busy, little enough to send again.
BATCH_BYTES: Final = 64 * MIB
BATCH_FILES: Final = 500
PIECE: Final = MIB
LONG_POLL_S: Final = 30.0
TRIES: Final = 9  # with the waits between them, about four minutes
FIRST_WAIT_S: Final = 0.5
LONGEST_WAIT_S: Final = 60.0
LOOK_S: Final = 0.5
PASSING: Final = frozenset({408, 429, 502, 503, 504})
NAMES: Final = {
    "structure-set": "RS.dcm",
    "registration": "REG.dcm",
    "report": "report.json",
    "pictures": "overlay.png",
}
HERE: Final = ("stored", "already")
# Slices are missing, and nobody waits for them; a person may know it already.
GAPPED: Final = ("incomplete", "dismissed")


class ServerError(ContourcastError):
    """The server does not do what it was asked for."""


class ServerAwayError(ServerError):
    """The server does not answer, or cannot take more, for longer than we try."""


@dataclass(frozen=True, kw_only=True)
class SentFile:
    """What became of one file.

    Attributes:
        outcome: ``stored``, ``already``, ``conflict`` or ``refused``.
        problem: Why it is not there, if so.
    """

    path: str
    outcome: str
    sop_instance_uid: str
    series_instance_uid: str
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of one scan.

    Attributes:
        id: Of the propagation; of the open question, where a person has to answer one first; empty
            where the scan is not whole.
        state: ``awaiting_review``, ``failed``, ``needs_person``, ``incomplete`` …
        verdict: ``accept``, ``look``, ``reject``; empty when nothing was drawn.
        problem: What is wrong, or asked.
        files: What was fetched.
    """

    id: str
    cbct: str
    state: str
    verdict: str
    problem: str
    files: tuple[Path, ...] = ()


OnFile = Callable[[SentFile], None]
OnStep = Callable[[str, float], None]
OnWait = Callable[[str], None]


def _nothing(*_: object) -> None:
    return None


class Client:
    """Talks to one service; threads may not share it.

    Args:
        url: Where it is, such as ``https://contourcast.example``.
        key: A key of the service; empty on its own machine while it has none.
        timeout_s: Without a byte.
        verify: As httpx takes it: certificates to trust.
        sleep: Waits between tries.
        on_wait: Hears before each such wait for whom and why, in a sentence.

    Raises:
        InputError: The key would go over the network in plain text.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str = "",
        timeout_s: float = 120.0,
        verify: Any = True,
        sleep: Callable[[float], None] = time.sleep,
        on_wait: OnWait = _nothing,
    ) -> None:
        place = httpx.URL(url)
        if key and place.scheme != "https" and place.host not in ("127.0.0.1", "::1", "localhost"):
            raise InputError(
                "the key would go over the network in plain text", remedy="name an https address"
            )
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(
            base_url=url, headers=headers, timeout=timeout_s, verify=verify, follow_redirects=False
        )
        self._place = place.netloc.decode("ascii")
        self._sleep = sleep
        self._on_wait = on_wait

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes its connections."""
        self._http.close()

    def run(
        self,
        files: Iterable[Path],
        *,
        out: Path,
        request: Mapping[str, Any] | None = None,
        on_file: OnFile = _nothing,
        on_step: OnStep = _nothing,
        limit_s: float = 3600.0,
    ) -> list[Result]:
        """Sends files, waits for what is drawn on each scan among them, and fetches it.

        Args:
            files: DICOM files of any series, in any order.
            out: Folder for a folder of each result, and for what makes this resumable.
            request: As `ask` takes it; None: the service finds by itself what belongs together.
            on_file: Hears what became of each file.
            on_step: Hears what is going on, and the share of it that is done.
            limit_s: After so long without an end it gives up.

        Raises:
            ServerError: The server refused.
            ServerAwayError: It does not answer.
        """
        out.mkdir(parents=True, exist_ok=True)
        sent = self.send(files, on_file=on_file, state=out / ".sent.json")
        self.complete(sent)
        jobs = [self.ask(**request)] if request else list(self._matched(sent, on_step, limit_s))
        results = []
        for job in jobs:
            if "unmatched" in job:
                results.append(_unmatched(job))
                continue
            ended = self.wait(job["id"], on_step=on_step, limit_s=limit_s)
            fetched = self.fetch(ended["id"], out / ended["id"]) if ended["verdict"] else []
            results.append(_result(ended, fetched))
        return results

    # Step by step

    def send(
        self, files: Iterable[Path], *, on_file: OnFile = _nothing, state: Path | None = None
    ) -> list[SentFile]:
        """Sends files, many in one request.

        Args:
            files: DICOM files; what is none is told as refused.
            on_file: Hears what became of each.
            state: Where it is noted what is there already; a second time, that is not sent.
        """
        book = _Book(state)
        sent: list[SentFile] = []
        fresh: list[Path] = []
        for path in sorted(files):
            known = book.known(path)
            if known is None:
                fresh.append(path)
            else:
                sent.append(known)
                on_file(known)
        for batch in _batches(fresh):
            answers = self._send_batch(batch)
            book.note(batch, answers)
            for answer in answers:
                on_file(answer)
            sent += answers
        return sent

    def complete(self, sent: Sequence[SentFile]) -> None:
        """Says of each series that was sent how many instances are all.

        Nothing is said while a file is not there, refused or in conflict: of which series it would
        have been one cannot always be read, and a scan that lacks a slice is not whole.
        """
        if any(file.outcome not in HERE for file in sent):
            return
        counts: dict[str, set[str]] = {}
        for file in sent:
            counts.setdefault(file.series_instance_uid, set()).add(file.sop_instance_uid)
        for series, instances in counts.items():
            self._ask("PUT", f"/v1/series/{series}/completion", json={"instances": len(instances)})

    def ask(self, **request: Any) -> dict[str, Any]:
        """Asks for today's contours; see ``POST /v1/propagations`` for what may be said."""
        return self._json("POST", "/v1/propagations", json=request)

    def wait(
        self, propagation: str, *, on_step: OnStep = _nothing, limit_s: float = 3600.0
    ) -> dict[str, Any]:
        """A propagation, once the machine is through with it.

        Raises:
            ServerAwayError: It is not, after so long.
        """
        until_s = time.monotonic() + limit_s
        while True:
            job = self._json(
                "GET", f"/v1/propagations/{propagation}", params={"wait": min(LONG_POLL_S, limit_s)}
            )
            on_step(job["doing"], job["done"])
            if job["ended"]:
                return job
            self._require_time(until_s)

    def fetch(self, propagation: str, folder: Path) -> list[Path]:
        """Fetches the results of a propagation into a folder; what is there is left as it is."""
        folder.mkdir(parents=True, exist_ok=True)
        links = self._json("GET", f"/v1/propagations/{propagation}")["links"]
        return [
            self._fetch(link, folder / NAMES[part]) for part, link in links.items() if part in NAMES
        ]

    # How

    def _send_batch(self, batch: Sequence[Path]) -> list[SentFile]:
        boundary = uuid.uuid4().hex
        kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
        answer = self._ask(
            "POST",
            "/v1/instances",
            content=lambda: _related(batch, boundary),
            headers={"Content-Type": kind},
            refusals=True,
        )
        said = _problem(answer)
        if "instances" not in said:
            raise _refused(said, answer.status_code)
        return [
            SentFile(
                path=str(path),
                outcome=one["outcome"],
                sop_instance_uid=one["sop_instance_uid"],
                series_instance_uid=one["series_instance_uid"],
                problem=one["problem"]["detail"] if one["problem"] else "",
            )
            for path, one in zip(batch, said["instances"], strict=True)
        ]

    def _matched(
        self, sent: Sequence[SentFile], on_step: OnStep, limit_s: float
    ) -> Iterator[dict[str, Any]]:
        """What the service opened by itself on the scans among the files; what it did not, too."""
        until_s = time.monotonic() + limit_s
        for uid in sorted({f.series_instance_uid for f in sent if f.outcome in HERE}):
            while _is_undecided(series := self._json("GET", f"/v1/series/{uid}")):
                on_step(series["reason"] or "waiting for the series to be whole", 0.0)
                self._require_time(until_s)
                self._sleep(LOOK_S)
            newest = _newest(series)
            if series["modality"] != "CT":
                continue
            if series["state"] in GAPPED:
                yield {"id": "", "cbct": uid, "unmatched": "incomplete", "why": series["reason"]}
            elif newest["match"] == "needs_person":
                why = "a person has to say to what it belongs: see /v1/courses"
                yield {"id": newest["id"], "cbct": uid, "unmatched": "needs_person", "why": why}
            elif newest["match"] == "matched":
                found = self._json("GET", "/v1/propagations", params={"cbct": uid})
                yield from (p for p in found["propagations"] if p["state"] != "superseded")

    def _fetch(self, link: str, path: Path) -> Path:
        headers = {}
        if path.exists():
            headers["If-None-Match"] = f'"{hashlib.sha256(path.read_bytes()).hexdigest()}"'
        answer = self._ask("GET", link, headers=headers)
        if answer.status_code != 304:
            draft = path.with_name(f".{path.name}.part")
            draft.write_bytes(answer.content)
            draft.replace(path)
        return path

    def _json(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        return dict(self._ask(method, path, **more).json())

    def _ask(
        self,
        method: str,
        path: str,
        *,
        content: Callable[[], Iterator[bytes]] | None = None,
        refusals: bool = False,
        **more: Any,
    ) -> httpx.Response:
        """One request, again and again while what stands in its way may pass."""
        for tried in range(1, TRIES + 1):
            wait_s = min(FIRST_WAIT_S * 2 ** (tried - 1), LONGEST_WAIT_S)
            try:
                body = None if content is None else content()
                answer = self._http.request(method, path, content=body, **more)
            except httpx.TransportError as error:
                if tried == TRIES:
                    raise ServerAwayError(
                        "the server does not answer", remedy="look at it, then call this again"
                    ) from error
                why = "does not answer"
            else:
                if answer.status_code not in PASSING:
                    if answer.status_code >= 400 and not refusals:
                        raise _refused(_problem(answer), answer.status_code)
                    return answer
                if tried == TRIES:
                    problem = _problem(answer)
                    raise ServerAwayError(
                        problem.get("cause") or f"the server answers {answer.status_code}",
                        remedy="call this again later: it goes on where it was",
                    )
                why = f"answers {answer.status_code}"
                wait_s = max(wait_s, _retry_after_s(answer))
            self._on_wait(f"{self._place} {why}; trying again in {wait_s:g} s")
            self._sleep(wait_s)
        raise AssertionError("the last try returns or raises")

    @staticmethod
    def _require_time(until_s: float) -> None:
        if time.monotonic() >= until_s:
            raise ServerAwayError(
                "it has not come to its end in the time that was given",
                remedy="call this again: it goes on where it was",
            )


class _Book:
    """What is known to be there, by path, size and time of change."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            try:
                self._known = json.loads(path.read_text("utf-8"))
            except ValueError:  # cut off while it was written: all is sent again
                self._known = {}

    def known(self, path: Path) -> SentFile | None:
        found = self._known.get(_name_of(path))
        return None if found is None else SentFile(**found | {"outcome": "already"})

    def note(self, batch: Sequence[Path], answers: Sequence[SentFile]) -> None:
        """Writes down what is there; what was refused may be mended and sent again."""
        for path, answer in zip(batch, answers, strict=True):
            if answer.outcome in HERE:
                self._known[_name_of(path)] = asdict(answer)
        if self._path is not None:
            draft = self._path.with_name(f"{self._path.name}.part")
            draft.write_text(json.dumps(self._known), "utf-8")
            draft.replace(self._path)


def _name_of(path: Path) -> str:
    stat = path.stat()
    return f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"


def _batches(files: Sequence[Path]) -> Iterator[list[Path]]:
    batch: list[Path] = []
    size = 0
    for path in files:
        bytes_of = path.stat().st_size
        if batch and (size + bytes_of > BATCH_BYTES or len(batch) == BATCH_FILES):
            yield batch
            batch, size = [], 0
        batch.append(path)
        size += bytes_of
    if batch:
        yield batch


def _related(files: Sequence[Path], boundary: str) -> Iterator[bytes]:
    """The files as the parts of one body (RFC 2387); their names stay here."""
    for path in files:
        yield f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                yield piece
        yield b"\r\n"
    yield f"--{boundary}--\r\n".encode()


def _problem(answer: httpx.Response) -> dict[str, Any]:
    """The document that an answer is; empty where it is none, as a proxy's page."""
    try:
        said = answer.json()
    except ValueError:
        said = {}
    return said if isinstance(said, dict) else {}


def _refused(problem: Mapping[str, Any], status: int) -> ServerError:
    return ServerError(
        problem.get("cause") or f"the server answers {status}",
        uid=problem.get("where", ""),
        remedy=problem.get("remedy", ""),
    )


def _retry_after_s(answer: httpx.Response) -> float:
    said = answer.headers.get("Retry-After", "")
    return min(float(said), LONGEST_WAIT_S) if said.isdecimal() else 0.0


def _result(job: Mapping[str, Any], files: Sequence[Path]) -> Result:
    return Result(
        id=job["id"],
        cbct=job["cbct"],
        state=job["state"],
        verdict=job["verdict"],
        problem=job["problem"]["detail"] if job["problem"] else "",
        files=tuple(files),
    )


def _unmatched(job: Mapping[str, Any]) -> Result:
    return Result(
        id=job["id"], cbct=job["cbct"], state=job["unmatched"], verdict="", problem=job["why"]
    )


def _is_undecided(series: Mapping[str, Any]) -> bool:
    """Whether it is not known yet what becomes of a scan.

    The match of an older revision says nothing once another slice has come.
    """
    if series["modality"] != "CT" or series["state"] in GAPPED:
        return False
    newest = _newest(series)
    return (
        series["state"] != "whole" or newest["id"] != series["revision"] or newest["match"] is None
    )


def _newest(series: Mapping[str, Any]) -> Mapping[str, Any]:
    return series["revisions"][-1] if series["revisions"] else {"id": None, "match": None}
