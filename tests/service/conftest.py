"""One course and one finished job for all tests that only look."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from support.course import CourseFiles, make_course
from support.server import Finished, serving


@pytest.fixture(scope="session")
def course(tmp_path_factory: pytest.TempPathFactory) -> CourseFiles:
    return make_course(tmp_path_factory.mktemp("course"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, course: CourseFiles) -> Iterator[Finished]:
    with serving(tmp_path_factory.mktemp("finished") / "data") as server:
        server.send(course)
        propagation = server.ask(course)
        server.done(propagation)
        yield Finished(server=server, course=course, id=propagation)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A server that was started in this process set up logging for itself."""
    yield
    structlog.reset_defaults()
