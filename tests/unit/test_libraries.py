from __future__ import annotations

import sys

import pytest

from contourcast.models.libraries import untouched_path


def test_a_failing_import_leaves_the_path_as_it_was() -> None:
    def fails() -> None:
        with untouched_path():
            sys.path.insert(1, "/opencv")
            raise ImportError("libxcb.so.1")

    before = list(sys.path)
    with pytest.raises(ImportError):
        fails()
    assert sys.path == before


def test_an_import_that_exchanges_the_path_does_not_keep_it() -> None:
    before = list(sys.path)
    with untouched_path():
        sys.path = [*sys.path, "/more"]
    assert sys.path == before
