import os
from pathlib import Path

import pytest

from contourcast.service.store.at_rest import encryption_of


def device(devices: Path, number: str, uuid: str = "") -> Path:
    made = devices / number
    (made / "slaves").mkdir(parents=True)
    if uuid:
        (made / "dm").mkdir()
        (made / "dm" / "uuid").write_text(uuid + "\n", "ascii")
    return made


def test_a_disk_is_encrypted_if_it_or_one_below_it_is(tmp_path: Path) -> None:
    number = tmp_path.stat().st_dev
    devices = tmp_path / "block"
    folder = tmp_path / "not" / "there" / "yet"
    assert "cannot be told" in encryption_of(folder, devices=devices)
    volume = device(devices, f"{os.major(number)}:{os.minor(number)}", "LVM-4711")
    told = encryption_of(folder, devices=devices)
    assert told.startswith(f"{tmp_path}: NOT encrypted")
    luks = device(tmp_path / "others", "dm-0", "CRYPT-LUKS2-0815")
    (volume / "slaves" / "dm-0").symlink_to(luks)
    assert "dm-crypt" in encryption_of(folder, devices=devices)


def test_what_a_container_hides_cannot_be_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some give no leave to look into /sys: that is no reason for `doctor` to end."""
    devices, stat = tmp_path / "block", Path.stat

    def hidden(path: Path, **how: bool) -> os.stat_result:
        if devices in path.parents:
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **how)

    monkeypatch.setattr(Path, "stat", hidden)
    assert "cannot be told" in encryption_of(tmp_path, devices=devices)
