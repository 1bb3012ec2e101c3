"""One department for all tests of the page in a process, and a browser for each module of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from support.data import peer
from support.review_page import Department, chromium, department


@pytest.fixture(scope="module")  # its event loop holds the thread, which other tests need
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="session")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Department]:
    peer("chromium")  # where there is none, nothing needs to be drawn
    with department(tmp_path_factory.mktemp("clinic")) as running:
        yield running
