"""What is pinned installs on the oldest Python that is promised (Debian 12 has 3.11.2)."""

from __future__ import annotations

from importlib.metadata import distributions

from packaging.specifiers import SpecifierSet

OLDEST = "3.11.2"


def test_every_installed_package_takes_the_oldest_python() -> None:
    refusing = [
        f"{found.metadata['Name']} {found.version}: {wanted}"
        for found in distributions()
        if (wanted := found.metadata.get("Requires-Python"))
        and not SpecifierSet(wanted).contains(OLDEST)
    ]
    assert refusing == []
