"""What is pinned installs on the oldest Python that is promised (Debian 12 has 3.11.2)."""

from __future__ import annotations

from importlib.metadata import distributions

from packaging.specifiers import SpecifierSet

OLDEST = "3.11.2"


def test_every_installed_package_takes_the_oldest_python() -> None:
    refusing = [
        f"{found.name} {found.version}: {found.metadata['Requires-Python']}"
        for found in distributions()
        if "Requires-Python" in found.metadata
        and not SpecifierSet(found.metadata["Requires-Python"]).contains(OLDEST)
    ]
    assert refusing == []
