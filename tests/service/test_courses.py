"""What a client is told of a course, so that it notices what somebody else said meanwhile."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import update

from contourcast.service.api.app import create_app
from contourcast.service.index.tables import fraction
from contourcast.service.settings import ServiceSettings
from support.http import served
from support.records import looking_into
from support.rows import add


def test_an_answer_that_is_not_followed_yet_is_told_and_changes_the_tag(folder: Path) -> None:
    given = {
        "question": "roi",
        "choice": ["1"],
        "by": "somebody",
        "at": "2026-03-02T12:00:00+00:00",
    }
    with (
        served(create_app(ServiceSettings(data_folder=folder, disk_reserve_mib=0))) as http,
        looking_into(folder) as records,
    ):
        add(
            records.index,
            fraction,
            revision_id="ab" * 32,
            state="needs_person",
            reasons_json=[],
            answers_json=[],
        )
        seen = http.get(path := f"/v1/courses/{'ab' * 32}")
        with records.index.write() as at:
            at.execute(update(fraction).values(answers_json=[given]))
        now = http.get(path)
        assert now.json()["fractions"][0]["answers"] == [given]
        assert now.headers["etag"] != seen.headers["etag"]
        said = {"question": "roi", "choice": ["2"]}
        late = http.patch(path, json=said, headers={"If-Match": seen.headers["etag"]})
        assert late.status_code == 412
