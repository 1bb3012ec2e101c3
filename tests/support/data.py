"""Where real data and other programs are found, and what happens when they are not there."""

from __future__ import annotations

import fcntl
import functools
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from contourcast.models.libraries import untouched_path

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = REPOSITORY.parent / "shared" / "data"


def require(kind: str, available: bool, reason: str) -> None:
    """Skips for a reason, or fails when CONTOURCAST_REQUIRE names this kind (peer, real, gpu)."""
    if available:
        return
    if kind in os.environ.get("CONTOURCAST_REQUIRE", "").split(","):
        pytest.fail(f"{reason} (CONTOURCAST_REQUIRE forbids to skip)")
    pytest.skip(reason)


@functools.cache
def data_item(name: str) -> Path:
    """The folder of one item of the shared test data, unpacked on first use by one process."""
    require("real", (SHARED / name).is_dir(), f"real data '{name}' is not beside the repository")
    cache = os.environ.get("XDG_CACHE_HOME")
    place = Path(cache) / "contourcast-data" if cache else REPOSITORY / ".data"
    place.mkdir(parents=True, exist_ok=True)
    with (place / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(
            [sys.executable, str(SHARED / "unpack"), str(place), "--item", name],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return place / name


def peer(program: str) -> str:
    """The path of another program that serves as an oracle."""
    found = shutil.which(program)
    require("peer", found is not None, f"{program} is not installed: make peers")
    return found or ""


def peer_module(name: str) -> Any:
    """Another Python package that serves as an oracle; what it says on import is not ours."""
    require(
        "peer",
        importlib.util.find_spec(name.partition(".")[0]) is not None,
        f"{name} is not installed: pip install contourcast[compare]",
    )
    with warnings.catch_warnings(), untouched_path():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)
