"""Whether what is kept lies on an encrypted disk, as far as the kernel tells (Linux).

Encryption at rest is the site's duty (CLINICAL_SERVICE §5.3): of the disk, or of the bucket.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

DEVICES: Final = Path("/sys/dev/block")


def encryption_of(folder: Path, *, devices: Path = DEVICES) -> str:
    """A sentence on the disk that a folder lies on, or will lie on.

    Args:
        folder: Need not be there yet.
        devices: Where the kernel lists block devices by their numbers.
    """
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    number = there.stat().st_dev
    try:
        encrypted = _is_encrypted(devices / f"{os.major(number)}:{os.minor(number)}")
    except OSError:  # not a disk of its own, or a container that hides the kernel's list
        return f"{there}: cannot be told here; the site has to see to it"
    if encrypted:
        return f"{there}: on an encrypted disk (dm-crypt)"
    return f"{there}: NOT encrypted as far as the kernel knows; patient data belongs on such a disk"


def _is_encrypted(device: Path) -> bool:
    """Whether it, or a disk below it, is dm-crypt's: a volume of LVM may lie on LUKS.

    Raises:
        OSError: The kernel does not show it.
    """
    device.stat()
    uuid = device / "dm" / "uuid"
    if uuid.is_file() and uuid.read_text("ascii", errors="replace").startswith("CRYPT-"):
        return True
    below = device / "slaves"
    return below.is_dir() and any(_is_encrypted(each) for each in below.iterdir())
