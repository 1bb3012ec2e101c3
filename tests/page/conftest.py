"""One department and one browser for all tests of the page in a process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from support.review_page import Department, chromium, department


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="session")
def clinic(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Department]:
    del browser  # where there is none, nothing needs to be drawn
    with department(tmp_path_factory.mktemp("clinic")) as running:
        yield running
